"""Checks a data set before a machine is rented: files, boxes, sections, labels, duplicates and leaks between splits.

An error would spoil a training or a score: an image that does not open or shows nothing, a box outside its image, a
patient or an image in two splits. A warning is for a person to judge.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from knowledge.queries import find
from vlm.data.images import check_image, load_image
from vlm.types import Box, InputError, Study, StudyImage, View

PLACEHOLDER = re.compile(r"\s*(replace this\b.*|n/?a|none|null|nan|tbd|todo|test|lorem ipsum.*|[x\s.]+)\s*\.?\s*", re.I)
HEADING = re.compile(r"\b(findings|impression|indication|comparison|technique)\s*:", re.I)
_SIDED = re.compile(r"\b(left|right)\b", re.I)
_DISPLAYED = (View.FRONTAL, View.AXIAL, View.CORONAL)
_SLACK = 1.0  # pixels by which a box may pass the image's edge: half-pixel conventions differ
_MIDLINE = 0.15  # share of the width around the middle in which a side is not judged


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong or odd.

    Args:
        level: "error" or "warning". kind: short name to count by. study: its id. message: one line.
    """

    level: Literal["error", "warning"]
    kind: str
    study: str
    message: str


@dataclass(frozen=True, slots=True)
class Split:
    """A split: its studies, images and patients, and the first 12 digits of the sha256 of its sorted ids."""

    studies: int
    images: int
    patients: int
    ids: str


@dataclass(slots=True)
class Validation:
    """What was found.

    Args:
        splits: by name, "" for studies without one. counts: of studies with reports, findings, boxes, of boxes.
        labels: studies by label of findings and boxes. issues: in the order in which they were met.
    """

    splits: dict[str, Split]
    counts: dict[str, int]
    labels: Counter[str]
    issues: list[Issue] = field(default_factory=list)

    @property
    def errors(self) -> list[Issue]:
        """The issues that are errors."""
        return [issue for issue in self.issues if issue.level == "error"]


def validate(
    studies: Sequence[Study],
    graph: KnowledgeGraph,
    watch: Callable[[Sequence[Study]], Iterable[Study]] = iter,
) -> Validation:
    """Checks every study; reads each image once.

    Args:
        studies: as a reader gives them.
        graph: the labels' home.
        watch: wraps the iteration, for a progress bar.

    Returns:
        Splits, counts and issues. Nothing is raised for bad data: that is what is counted.
    """
    counts = {
        "studies": len(studies),
        "images": sum(len(s.images) for s in studies),
        "with report": sum(bool(s.report) for s in studies),
        "with findings": sum(s.findings is not None for s in studies),
        "with boxes looked for": sum(s.boxes is not None for s in studies),
        "boxes": sum(len(s.boxes or ()) for s in studies),
    }
    labels: Counter[str] = Counter()
    for study in studies:
        labels.update({f.label for f in study.findings or ()} | {b.label for b in study.boxes or ()})
    result = Validation(_splits(studies), counts, labels)
    pictures: dict[str, list[Study]] = defaultdict(list)
    for study in watch(studies):
        for name, picture in _check_images(study, result.issues):
            pictures[name].append(study)
            result.issues += _check_boxes(study, *picture)
        result.issues += _check_texts(study)
    result.issues += _unknown_labels(studies, labels, graph)
    result.issues += _same_ids(studies)
    result.issues += _leaks(studies)
    result.issues += _same_pictures(pictures)
    result.issues += _same_texts(studies)
    return result


def _splits(studies: Sequence[Study]) -> dict[str, Split]:
    groups: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        groups[study.split or ""].append(study)
    return {
        name: Split(
            len(group),
            sum(len(s.images) for s in group),
            len({s.patient or s.id for s in group}),
            hashlib.sha256("\n".join(sorted(s.id for s in group)).encode()).hexdigest()[:12],
        )
        for name, group in groups.items()
    }


def _check_images(study: Study, issues: list[Issue]) -> Iterable[tuple[str, tuple[int, StudyImage]]]:
    """Yields (hash of the picture, (index, image with its pixels)) of the images that open."""
    if not study.images:
        issues.append(Issue("error", "no image", study.id, "has no image"))
    for index, image in enumerate(study.images):
        try:
            read = load_image(image)
            assert read.pixels is not None
            check_image(read.pixels, str(image.path.name if image.path else index))
        except InputError as error:
            kind = "uniform image" if "uniform" in str(error) else "unreadable image"
            issues.append(Issue("error", kind, study.id, str(error)))
            continue
        grey = np.round(read.pixels * 255).astype(np.uint8)
        yield hashlib.blake2b(grey.tobytes(), digest_size=16).hexdigest(), (index, read)


def _check_boxes(study: Study, index: int, image: StudyImage) -> Iterable[Issue]:
    assert image.pixels is not None
    height, width = image.pixels.shape
    for box in study.boxes or ():
        if box.image != index:
            continue
        x1, y1, x2, y2 = box.xyxy
        if min(x1, y1) < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK:
            text = f"box {box.label} {[round(v, 1) for v in box.xyxy]} leaves the image of {width}x{height} pixels"
            yield Issue("error", "box outside", study.id, text)
        elif (x2 - x1) < 1 or (y2 - y1) < 1:
            yield Issue("warning", "tiny box", study.id, f"box {box.label} is smaller than a pixel")
        side = _side_of(box, study)
        across = (x1 + x2) / 2 / width - 0.5
        if side and image.view in _DISPLAYED and abs(across) > _MIDLINE and (across > 0) != (side == "left"):
            where = "right" if across > 0 else "left"
            text = f"box {box.label} is of the patient's {side} but lies at the viewer's {where}: mirrored?"
            yield Issue("warning", "side", study.id, text)


def _side_of(box: Box, study: Study) -> str | None:
    """The side that the box's name, or a finding that points at it, states."""
    match = _SIDED.search(box.label.replace("_", " "))
    if match:
        return match[1].lower()
    index = (study.boxes or ()).index(box)
    sides = {f.side for f in study.findings or () if index in f.boxes} & {"left", "right"}
    return sides.pop() if len(sides) == 1 else None


def _check_texts(study: Study) -> Iterable[Issue]:
    if study.report is None and study.findings is None and study.boxes is None:
        yield Issue("warning", "nothing known", study.id, "has no report, findings or boxes (or only a placeholder)")
    for name, text in (study.report or {}).items():
        if not text.strip():
            yield Issue("warning", "empty section", study.id, f"the section {name} is empty")
        elif PLACEHOLDER.fullmatch(text):
            yield Issue("warning", "placeholder", study.id, f"the section {name} reads {text.strip()[:60]!r}")
        for match in HEADING.finditer(text):
            if match[1].lower() != name:
                yield Issue("warning", "section in section", study.id, f"{name} holds the heading {match[0]!r}")
    report = study.report or {}
    if report.get("impression") and not report.get("findings"):
        yield Issue("warning", "no findings section", study.id, "has an impression and no findings")
    texts = [report.get("findings", ""), report.get("impression", "")]
    if all(texts) and texts[0].strip().lower() == texts[1].strip().lower() and len(texts[0]) > 40:
        yield Issue("warning", "same sections", study.id, "findings and impression are the same text")


def _unknown_labels(studies: Sequence[Study], labels: Counter[str], graph: KnowledgeGraph) -> Iterable[Issue]:
    known = set(graph.concepts) | {label for view in graph.views.values() for label in view}
    for label in labels:
        if label in known:
            continue
        try:
            find(graph, label)
        except (KnowledgeError, KeyError):
            named = [f.label for s in studies for f in s.findings or ()] + [
                b.label for s in studies for b in s.boxes or ()
            ]
            yield Issue(
                "warning", "unknown label", "", f"label {label!r} ({named.count(label)} times) is not in the graph"
            )


def _same_ids(studies: Sequence[Study]) -> Iterable[Issue]:
    for name, count in Counter(s.id for s in studies).items():
        if count > 1:
            yield Issue("error", "same id", name, f"{count} studies have this id")


def _leaks(studies: Sequence[Study]) -> Iterable[Issue]:
    splits: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        if study.patient is not None:
            splits[study.patient].add(study.split or "")
    for patient, names in splits.items():
        if len(names) > 1:
            text = f"patient {patient} is in {', '.join(sorted(n or 'no split' for n in names))}"
            yield Issue("error", "patient in two splits", patient, text)


def _same_pictures(pictures: dict[str, list[Study]]) -> Iterable[Issue]:
    for same in pictures.values():
        if len(same) < 2:
            continue
        ids, splits = sorted({s.id for s in same}), {s.split or "" for s in same}
        text = f"the same picture in {', '.join(ids[:4])}{' ...' if len(ids) > 4 else ''}"
        if len(splits) > 1:
            yield Issue("error", "picture in two splits", ids[0], f"{text}: {', '.join(sorted(splits))}")
        else:
            yield Issue("warning", "same picture", ids[0], text)


def _same_texts(studies: Sequence[Study]) -> Iterable[Issue]:
    """Repeated findings: one issue a text that several studies share, the most frequent first."""
    texts: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        words = " ".join(re.findall(r"[a-z0-9]+", (study.report or {}).get("findings", "").lower()))
        if words:
            texts[words].append(study)
    for words, same in sorted(texts.items(), key=lambda item: -len(item[1])):
        if len(same) > 1 and len({s.patient or s.id for s in same}) > 1:
            text = f"{len(same)} studies have the findings {words[:60]!r}"
            yield Issue("warning", "same report", same[0].id, text)
