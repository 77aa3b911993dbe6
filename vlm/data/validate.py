"""Checks a data set before a machine is rented: files, boxes, sections, labels, duplicates and leaks between splits.

An error would spoil a training or a score: an image that does not open or shows nothing, a box outside its image, a
patient or an image in two splits. A warning is for a person to judge.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import networkx as nx
import numpy as np

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from knowledge.queries import find
from vlm.data.duplicates import like_pictures, like_texts, picture_hash, plain
from vlm.data.images import load_image
from vlm.data.inspection import ImageFacts, Inspection, inspect, picture
from vlm.data.issues import Issue
from vlm.data.parallel import Workers
from vlm.data.text_checks import SideCheck, check_metadata, check_sections
from vlm.types import InputError, Study

SHOWN = 60
"""Studies on the page's contact sheet, evenly spread."""
SHOWN_WRONG = 12
"""Pictures on the page for each kind of issue."""
_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Split:
    """A split: its studies, images and patients, and the first 12 digits of the sha256 of its sorted ids.

    Args:
        texts: studies with findings. seen: of these, in another split than "train", how many say word by word what a
            study of "train" says.
    """

    studies: int
    images: int
    patients: int
    ids: str
    texts: int = 0
    seen: int | None = None


@dataclass(slots=True)
class Validation:
    """What was found.

    Args:
        splits: by name, "" for studies without one. counts: of studies with reports, findings, boxes, of boxes.
        labels: studies by label that is present or has a box. issues: in the order of the checks.
        facts: (study's place in the set, image) of every image that opened.
        pictures: (study, image slot, JPEG, kind of issue or "") for the page.
    """

    splits: dict[str, Split]
    counts: dict[str, int]
    labels: Counter[str]
    issues: list[Issue] = field(default_factory=list)
    facts: list[tuple[int, ImageFacts]] = field(default_factory=list)
    pictures: list[tuple[str, int, bytes, str]] = field(default_factory=list)

    @property
    def errors(self) -> list[Issue]:
        """The issues that are errors."""
        return [issue for issue in self.issues if issue.level == "error"]


def validate(
    studies: Sequence[Study],
    graph: KnowledgeGraph,
    watch: Callable[[int], None] | None = None,
    workers: int = 1,
) -> Validation:
    """Checks every study; reads each image once.

    Args:
        studies: as a reader gives them.
        graph: the labels' home.
        watch: called with the number of studies whose images were read.
        workers: processes that read images.

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
        present = {f.label for f in study.findings or () if f.certainty in (None, Certainty.PRESENT)}
        labels.update(present | {b.label for b in study.boxes or ()})
    result = Validation(_splits(studies), counts, labels)
    _read_images(studies, result, watch, workers)
    sides = SideCheck(graph)
    for study in studies:
        result.issues += [*check_sections(study), *check_metadata(study), *sides(study)]
    result.issues += _lacking(studies)
    result.issues += _unknown_labels(studies, graph)
    result.issues += _same_ids(studies)
    result.issues += _leaks(studies)
    result.issues += _same_pictures(studies, result)
    result.issues += _same_texts(studies)
    return result


def _splits(studies: Sequence[Study]) -> dict[str, Split]:
    groups: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        groups[study.split or ""].append(study)
    texts = {name: [t for s in group if (t := findings_of(s))] for name, group in groups.items()}
    taught = set(texts.get("train", ()))
    return {
        name: Split(
            len(group),
            sum(len(s.images) for s in group),
            len({s.patient or s.id for s in group}),
            hashlib.sha256("\n".join(sorted(s.id for s in group)).encode()).hexdigest()[:12],
            len(texts[name]),
            sum(t in taught for t in texts[name]) if taught and name != "train" else None,
        )
        for name, group in groups.items()
    }


def findings_of(study: Study) -> str:
    """The words of the findings, "" when there are none."""
    return plain((study.report or {}).get("findings", ""))


def _read_images(
    studies: Sequence[Study], result: Validation, watch: Callable[[int], None] | None, workers: int
) -> None:
    step = max(1, len(studies) // SHOWN)
    tasks = [(i, study, i % step == 0) for i, study in enumerate(studies)]
    chunks = [tasks[i : i + _CHUNK] for i in range(0, len(tasks), _CHUNK)]
    found: list[Inspection] = []
    with Workers(workers if len(chunks) > 4 * workers else 1) as pool:
        for inspected in pool.map(inspect, chunks):
            found += inspected
            if watch is not None:
                watch(len(found))
    shown: Counter[str] = Counter()
    for item in sorted(found, key=lambda item: item.number):
        study = studies[item.number]
        result.issues += item.issues
        for image in item.images:
            kind = item.issues[0].kind if item.issues else ""
            if image.shown is not None and (shown[kind] < SHOWN_WRONG or not kind):
                shown[kind] += 1
                result.pictures.append((study.id, image.slot, image.shown, kind))
            result.facts.append((item.number, image if image.shown is None else replace(image, shown=None)))


def _lacking(studies: Sequence[Study]) -> Iterator[Issue]:
    """Studies without what most of the set has: an empty text or a placeholder that the reader left out, no boxes."""
    most = len(studies) / 2
    reports = sum(bool(s.report) for s in studies)
    boxes = sum(bool(s.boxes) for s in studies)
    for study in studies:
        nothing = study.report is None and study.findings is None and study.boxes is None
        if not study.report and reports > most:
            text = f"has no report, as {reports:,} others have: it is empty, or a placeholder"
            yield Issue("warning", "without report", study.id, text)
        elif study.boxes is None and boxes > most:
            yield Issue("warning", "without boxes", study.id, f"has no boxes, as {boxes:,} others have")
        elif nothing:
            yield Issue(
                "warning", "nothing known", study.id, "has no report, findings or boxes (or only a placeholder)"
            )


def _unknown_labels(studies: Sequence[Study], graph: KnowledgeGraph) -> Iterable[Issue]:
    known = set(graph.concepts) | {label for view in graph.views.values() for label in view}
    named: Counter[str] = Counter(f.label for s in studies for f in s.findings or ())
    named.update(b.label for s in studies for b in s.boxes or ())
    for label in named:
        if label in known:
            continue
        try:
            find(graph, label)
        except (KnowledgeError, KeyError):
            text = f"label {label!r} ({named[label]} times) is not in the graph"
            yield Issue("warning", "unknown label", "", text)


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


def _same_pictures(studies: Sequence[Study], result: Validation) -> Iterator[Issue]:
    """Pictures that are the same in every pixel, and those that are nearly, or mirrored."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, (_, image) in enumerate(result.facts):
        groups[image.digest].append(number)
    for same in groups.values():
        if len(same) < 2:
            continue
        owners = sorted({studies[result.facts[n][0]].id for n in same})
        splits = {studies[result.facts[n][0]].split or "" for n in same}
        text = f"the same picture in {', '.join(owners[:4])}{' ...' if len(owners) > 4 else ''}"
        if len(splits) > 1:
            yield Issue("error", "picture in two splits", owners[0], f"{text}: {', '.join(sorted(splits))}")
        else:
            yield Issue("warning", "same picture", owners[0], text)
        _show(studies, result, same[:2], "same picture")
    first = [numbers[0] for numbers in groups.values()]
    if not first:
        return
    thumbs = np.stack([result.facts[n][1].thumb for n in first])
    bits = np.stack([picture_hash(thumb) for thumb in thumbs])
    pairs: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for a, b, turned in like_pictures(bits, thumbs):
        one, other = (result.facts[first[n]][0] for n in (a, b))
        if one != other:
            pairs[turned].append((first[a], first[b]))
    for turned, own in pairs.items():
        yield from _alike(studies, result, own, turned)


def _alike(
    studies: Sequence[Study], result: Validation, pairs: Sequence[tuple[int, int]], turned: bool
) -> Iterator[Issue]:
    """One issue a group of like pictures; those that cross splits by themselves, since they may be a leak."""
    groups = [sorted(group) for group in nx.connected_components(nx.Graph(pairs))]
    for group in sorted(groups, key=lambda g: (-len(g), g[0])):
        members = list(dict.fromkeys(studies[result.facts[n][0]].id for n in group))
        splits = sorted({studies[result.facts[n][0]].split or "no split" for n in group})
        kind = "mirrored picture" if turned else "like picture"
        if len(splits) > 1:
            kind += " in two splits"
        listed = ", ".join(members[:4]) + (" ..." if len(members) > 4 else "")
        what = "mirror images of one another" if turned else "nearly the same picture"
        where = f": {', '.join(splits)}" if len(splits) > 1 else ""
        yield Issue("warning", kind, members[0], f"{len(members)} studies show {what} ({listed}){where}")
        _show(studies, result, group[:2] if len(splits) == 1 else _of_two_splits(studies, result, group), kind)


def _of_two_splits(studies: Sequence[Study], result: Validation, group: Sequence[int]) -> list[int]:
    """The first picture of a group, and the first of another split."""
    split = studies[result.facts[group[0]][0]].split
    return [group[0], next(n for n in group if studies[result.facts[n][0]].split != split)]


def _show(studies: Sequence[Study], result: Validation, numbers: Sequence[int], kind: str) -> None:
    """Puts pictures on the page, read once more: which ones are alike is known only at the end."""
    if sum(k == kind for _, _, _, k in result.pictures) + len(numbers) > SHOWN_WRONG:
        return
    for number in numbers:
        place, image = result.facts[number]
        study = studies[place]
        try:
            pixels = load_image(study.images[image.slot]).pixels
        except InputError:
            continue  # it opened a moment ago; the issue is listed in any case
        assert pixels is not None
        result.pictures.append((study.id, image.slot, picture(study, image.slot, pixels), kind))


def _same_texts(studies: Sequence[Study]) -> Iterable[Issue]:
    """Repeated findings: one issue a text that several studies share, and one a group of texts that are nearly the
    same, the most frequent first."""
    texts: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        words = findings_of(study)
        if words:
            texts[words].append(study)
    for words, same in sorted(texts.items(), key=lambda item: -len(item[1])):
        if len(same) > 1 and len({s.patient or s.id for s in same}) > 1:
            text = f"{len(same)} studies have the findings {words[:60]!r}"
            yield Issue("warning", "same report", same[0].id, text)
    distinct = [words for words in texts if len(words.split()) >= 5]
    groups = [[distinct[i] for i in group] for group in like_texts(distinct)]
    for group in sorted(groups, key=lambda g: -sum(len(texts[t]) for t in g)):
        owners = [study for words in group for study in texts[words]]
        if len({s.patient or s.id for s in owners}) > 1:
            text = f"{len(owners)} studies have nearly the findings {group[0][:60]!r}, in {len(group)} wordings"
            yield Issue("warning", "like report", owners[0].id, text)
