"""Volumes -> a bounded set of key slices, each with its place, so that a box names its slice.

    uniform:8   evenly spread, each in the middle of its part                        (the default; reads nothing)
    mls:8       maximum lesion score: the slices on which a score is highest, none close to another   (reads all slices)
    mip:8       slabs of consecutive slices that together are the volume, each shown as the maximum of its slices
    boxes:8     slices with the most box area, then evenly spread ones: for training sets with boxes only, since it
                looks at the truth

The score is any function of an image with pixels: `lesion_score`, which looks at the picture alone, or a detector's
(`vlm.pipeline.Pipeline.lesion_score`, which `vlm generate --slices mls:8` takes). Images that are no slices of a volume
(`StudyImage.place` is None) are kept as they are. Boxes on slices that are left out are left out; in a slab the boxes
of all its slices lie on the slab.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count as counting

import cv2
import numpy as np

from vlm.data.images import load_image
from vlm.types import Box, InputError, SlicePlace, Study, StudyImage

KINDS = ("uniform", "mls", "mip", "boxes")
MAX_KEY_SLICES = 64
DEFAULT_SLICES = 8
Score = Callable[[StudyImage], float]
"""A slice with pixels -> how much it looks as if a lesion were on it; only the order counts."""
_RULE = re.compile(rf"({'|'.join(KINDS)})(?::(\d+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SliceRule:
    """Which slices of a volume are kept: a kind of `KINDS` and how many."""

    kind: str = "uniform"
    most: int = DEFAULT_SLICES

    @classmethod
    def parse(cls, text: str) -> SliceRule:
        """Reads "mls:8"; without a number 8 slices are kept.

        Raises:
            InputError: unknown kind, or a number that is not from 1 to 64.
        """
        match = _RULE.fullmatch(text.strip())
        if match is None:
            raise InputError(f"slices {text!r} is not known; write KIND:NUMBER, the kind being {', '.join(KINDS)}")
        most = int(match[2]) if match[2] else DEFAULT_SLICES
        if not 1 <= most <= MAX_KEY_SLICES:
            raise InputError(f"slices {text!r}: 1 to {MAX_KEY_SLICES} slices can be kept")
        return cls(match[1].lower(), most)


def key_slices(count: int, most: int = DEFAULT_SLICES) -> list[int]:
    """Indices of at most `most` of `count` slices, evenly spread, each in the middle of its part."""
    return list(range(count)) if count <= most else [int((i + 0.5) * count / most) for i in range(most)]


def keep_slices(study: Study, rule: SliceRule, score: Score | None = None) -> Study:
    """Reduces every volume of a study to its key slices.

    Args:
        study: volumes as one image a slice, in order of position.
        rule: which to keep.
        score: for "mls"; None for `lesion_score`.

    Returns:
        The study itself when it holds no volume; else one with fewer images and boxes, whose findings point at the
        boxes that are left.

    Raises:
        InputError: "mls", and a slice cannot be read.
    """
    volumes: dict[int, list[int]] = defaultdict(list)
    for index, image in enumerate(study.images):
        if image.place is not None and not image.slab:
            volumes[image.place.series].append(index)
    if not any(len(v) > rule.most for v in volumes.values()) and rule.kind != "mip":
        return study
    kept: list[tuple[tuple[int, ...], StudyImage]] = []  # (indices that an image stands for, image)
    for _, group in sorted(_groups(study, volumes).items()):
        kept += _of_volume(study, group, rule, score) if len(group) > 1 else [((i,), study.images[i]) for i in group]
    return _reduced(study, kept)


def lesion_score(image: StudyImage) -> float:
    """How much a slice shows something round, of 3 to 40 pixels, that the other half of the body does not: the 99.9th
    percentile of the difference of two Gaussians at three scales, less the same of the mirrored slice.

    A cheap guess without any training: it finds a lone nodule or a stone, and also a lone vessel or a calcified rib.
    """
    assert image.pixels is not None
    pixels = image.pixels
    scale = 256 / max(pixels.shape)
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    best = 0.0
    for sigma in (1.5, 3.0, 6.0):
        blob = cv2.GaussianBlur(pixels, (0, 0), sigma) - cv2.GaussianBlur(pixels, (0, 0), 1.6 * sigma)
        # What lies at the same height on the other side is anatomy; a blurred mirror forgives a slanted patient.
        other = cv2.dilate(np.ascontiguousarray(blob[:, ::-1]), np.ones((15, 15), np.uint8))
        best = max(best, float(np.percentile(np.clip(blob - np.clip(other, 0, None), 0, None), 99.9)))
    return best


def placed(images: Iterable[StudyImage], positions: Sequence[float | None], series: int = 0) -> list[StudyImage]:
    """Gives the slices of one volume, in order, their places."""
    total = len(positions)
    return [
        replace(image, place=SlicePlace(i, i, total, position, series))
        for image, position, i in zip(images, positions, counting(), strict=False)
    ]


def _groups(study: Study, volumes: dict[int, list[int]]) -> dict[int, list[int]]:
    """Volumes and single images, by the place of their first image in the study."""
    single = set(range(len(study.images))) - {i for v in volumes.values() for i in v}
    return {v[0]: v for v in volumes.values()} | {i: [i] for i in single}


def _of_volume(
    study: Study, group: list[int], rule: SliceRule, score: Score | None
) -> list[tuple[tuple[int, ...], StudyImage]]:
    if rule.kind == "mip":
        slabs = [s.tolist() for s in np.array_split(np.array(group), min(rule.most, len(group)))]
        return [(tuple(s), _slab([study.images[i] for i in s])) for s in slabs]
    if len(group) <= rule.most:
        chosen = list(range(len(group)))
    elif rule.kind == "mls":
        measure = score or lesion_score
        chosen = _peaks([measure(load_image(study.images[i])) for i in group], rule.most)
    elif rule.kind == "boxes":
        area = dict.fromkeys(group, 0.0)
        for box in study.boxes or ():
            if box.image in area:
                area[box.image] += box.area
        chosen = _peaks([area[i] for i in group], rule.most, apart=1)
    else:
        chosen = key_slices(len(group), rule.most)
    return [((group[i],), study.images[group[i]]) for i in chosen]


def _peaks(scores: Sequence[float], most: int, apart: int | None = None) -> list[int]:
    """The highest slices, none nearer to another than `apart` (default: a quarter of an even spread), filled up with
    evenly spread ones where nothing scores; in order."""
    apart = max(1, len(scores) // (4 * most)) if apart is None else apart
    chosen: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if len(chosen) < most and scores[index] > 0 and all(abs(index - c) >= apart for c in chosen):
            chosen.append(index)
    spare = [i for i in (*key_slices(len(scores), most), *range(len(scores))) if i not in chosen]
    return sorted([*chosen, *dict.fromkeys(spare)][:most]) if len(chosen) < most else sorted(chosen)


def _slab(images: list[StudyImage]) -> StudyImage:
    middle = images[len(images) // 2]
    if len(images) == 1:
        return middle
    first, last = images[0].place, images[-1].place
    assert first is not None
    assert last is not None
    assert middle.place is not None
    parts = tuple((image.path, image.frame) for image in images if image.path is not None)
    return replace(middle, place=replace(middle.place, first=first.first, last=last.last), slab=parts)


def _reduced(study: Study, kept: list[tuple[tuple[int, ...], StudyImage]]) -> Study:
    place = {index: number for number, (stands_for, _) in enumerate(kept) for index in stands_for}
    boxes: list[Box] = []
    renumbered: dict[int, int] = {}
    for number, box in enumerate(study.boxes or ()):
        if box.image in place:
            renumbered[number] = len(boxes)
            boxes.append(replace(box, image=place[box.image]))
    findings = study.findings and tuple(
        replace(f, boxes=tuple(renumbered[i] for i in f.boxes if i in renumbered)) for f in study.findings
    )
    return replace(
        study,
        images=[image for _, image in kept],
        boxes=None if study.boxes is None else tuple(boxes),
        findings=findings,
    )
