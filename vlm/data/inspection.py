"""The images of a study, each opened once: whether they open, where the boxes lie, what they look like.

What is kept of an image is about a kilobyte, so that a large set fits into memory; a small picture for the page
only where one is asked for or something is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from vlm.data.burnt_in import text_rows
from vlm.data.duplicates import thumbnail
from vlm.data.images import check_image, load_image
from vlm.data.issues import Issue
from vlm.data.text_checks import side_of
from vlm.types import InputError, Study, StudyImage, View

SHOWN_SIDE = 160
_DISPLAYED = (View.FRONTAL, View.AXIAL, View.CORONAL)
_SLACK = 1.0  # pixels by which a box may pass the image's edge: half-pixel conventions differ
_MIDLINE = 0.15  # share of the width around the middle in which a side is not judged
_ON_IMAGE = ("box outside", "side", "burnt-in text", "tiny box", "uniform image")
"""Kinds of issue that a picture shows."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is kept of an image that opened.

    Args:
        slot: its number in the study. width, height: in pixels. mean: grey, 0 to 1.
        digest: of its 8-bit pixels. thumb: (32, 32) uint8, for likeness.
        shown: JPEG with boxes drawn, for the page; None for most.
    """

    slot: int
    width: int
    height: int
    mean: float
    digest: bytes
    thumb: np.ndarray
    shown: bytes | None = None


@dataclass(slots=True)
class Inspection:
    """A study's images and what is wrong with them. `number` is the study's place in its set."""

    number: int
    images: list[ImageFacts] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)


def inspect(tasks: Sequence[tuple[int, Study, bool]]) -> list[Inspection]:
    """Inspects a few studies: (place in the set, study, whether a picture is wanted in any case)."""
    return [_inspect(*task) for task in tasks]


def _inspect(number: int, study: Study, wanted: bool) -> Inspection:
    out = Inspection(number)
    if not study.images:
        out.issues.append(Issue("error", "no image", study.id, "has no image"))
    for slot, image in enumerate(study.images):
        try:
            read = load_image(image)
            assert read.pixels is not None
            check_image(read.pixels, str(image.path.name if image.path else slot))
        except InputError as error:
            kind = "uniform image" if "uniform" in str(error) else "unreadable image"
            out.issues.append(Issue("error", kind, study.id, str(error)))
            continue
        own = [*_check_boxes(study, slot, read), *_check_text(study, read)]
        out.issues += own
        show = (wanted and slot == 0) or any(issue.kind in _ON_IMAGE for issue in own)
        out.images.append(_facts(study, slot, read.pixels, show))
    return out


def _facts(study: Study, slot: int, pixels: np.ndarray, show: bool) -> ImageFacts:
    grey = np.round(pixels * 255).astype(np.uint8)
    digest = hashlib.blake2b(grey.tobytes(), digest_size=16).digest()
    height, width = pixels.shape
    shown = picture(study, slot, pixels) if show else None
    return ImageFacts(slot, width, height, float(pixels.mean()), digest, thumbnail(pixels), shown)


def picture(study: Study, slot: int, pixels: np.ndarray) -> bytes:
    """A small JPEG of an image, its boxes drawn."""
    height, width = pixels.shape
    scale = SHOWN_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    colour = cv2.cvtColor(np.round(small * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    for box in study.boxes or ():
        if box.image == slot:
            x1, y1, x2, y2 = (round(v * scale) for v in box.xyxy)
            cv2.rectangle(colour, (x1, y1), (max(x1 + 1, x2 - 1), max(y1 + 1, y2 - 1)), (60, 200, 255), 1)
    return cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()


def _check_boxes(study: Study, slot: int, image: StudyImage) -> Iterator[Issue]:
    assert image.pixels is not None
    width, height = image.full_size or image.pixels.shape[::-1]
    for box in study.boxes or ():
        if box.image != slot:
            continue
        x1, y1, x2, y2 = box.xyxy
        if min(x1, y1) < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK:
            text = f"box {box.label} {[round(v, 1) for v in box.xyxy]} leaves the image of {width}x{height} pixels"
            yield Issue("error", "box outside", study.id, text)
        elif (x2 - x1) < 1 or (y2 - y1) < 1:
            yield Issue("warning", "tiny box", study.id, f"box {box.label} is smaller than a pixel")
        side = side_of(box, study)
        across = (x1 + x2) / 2 / width - 0.5
        if side and image.view in _DISPLAYED and abs(across) > _MIDLINE and (across > 0) != (side == "left"):
            where = "right" if across > 0 else "left"
            text = f"box {box.label} is of the patient's {side} but lies at the viewer's {where}: mirrored?"
            yield Issue("warning", "side", study.id, text)


def _check_text(study: Study, image: StudyImage) -> Iterator[Issue]:
    assert image.pixels is not None
    rows = text_rows(image.pixels)
    if rows:
        x1, y1, x2, y2 = rows[0]
        where = f"{'left' if (x1 + x2) < 1 else 'right'} {'top' if (y1 + y2) < 1 else 'bottom'}"
        name = f"{image.path.name}: " if image.path else ""
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        text = f"{name}letters at the {where}{more}: a name? vlm data deidentify masks them"
        yield Issue("warning", "burnt-in text", study.id, text)
