"""A study and its mirror image: pixels, boxes, sides of labels and every left and right of the text change together.

A mirrored body is not a healthy one: the heart's apex lies at the right. So a study is mirrored only when its text
names nothing that has one side by nature (the right atrium, the middle lobe, the lingula, a tortuous aorta's arch, a
levoscoliosis), and it is meant for slices and for sets of lesions, not for chest radiographs whose hearts a model
should judge. Lateral and sagittal views have no left and right across the picture: such a study is not mirrored either.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from vlm.data.images import load_image
from vlm.types import Box, Finding, Study, StudyImage, View

_SWAP = {"left": "right", "right": "left", "lul": "rul", "rul": "lul", "lll": "rll", "rll": "lll"}
_WORD = re.compile(
    r"(?<![A-Za-z])(left|right)(?=(?:ward|wards|sided|most|-|_|\b))|\b(LUL|RUL|LLL|RLL)\b", re.IGNORECASE
)
_ONE_SIDED = re.compile(
    r"\b((left|right)[\s-]+(atri\w+|ventric\w+|heart|coronar\w+|mainstem|middle lobe|ventricular)|middle lobe|rml|"
    r"lingula\w*|minor fissure|azygos|dextro\w*|levo\w*|situs\b.*|apex of the heart|cardiac apex|aort\w+|liver|spleen|"
    r"hepat\w+|splen\w+|stomach|gastric|gallbladder|cholecyst\w+|appendi\w+|c(a|e)cum|sigmoid)\b",
    re.IGNORECASE,
)
_BACK_TO_FRONT = (View.LATERAL, View.SAGITTAL, View.OTHER)


def swap_sides(text: str) -> str:
    """Every left as right and every right as left, in its case: "Left-sided, RUL" -> "Right-sided, LUL"."""

    def other(match: re.Match[str]) -> str:
        word = match[0]
        swapped = _SWAP[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _WORD.sub(other, text)


def can_be_mirrored(study: Study) -> bool:
    """Whether the mirror image is a body that the text still describes (the module's docstring)."""
    texts = [*(study.report or {}).values(), *study.clinical.values()]
    labels = [f.label.replace("_", " ") for f in study.findings or ()] + [b.label for b in study.boxes or ()]
    views = {image.view for image in study.images}
    return not views & set(_BACK_TO_FRONT) and not any(_ONE_SIDED.search(t) for t in (*texts, *labels))


def mirrored(study: Study) -> Study:
    """The mirror image of a study: "<id>/mirrored", its pixels read.

    Raises:
        InputError: an image cannot be read.
    """
    images = [load_image(image) for image in study.images]
    widths = [image.pixels.shape[1] if image.pixels is not None else 0 for image in images]
    return replace(
        study,
        id=f"{study.id}/mirrored",
        images=[_turned(image) for image in images],
        boxes=None if study.boxes is None else tuple(_box(b, widths[b.image]) for b in study.boxes),
        findings=None if study.findings is None else tuple(_finding(f) for f in study.findings),
        report=None if study.report is None else {k: swap_sides(v) for k, v in study.report.items()},
        clinical={k: swap_sides(v) for k, v in study.clinical.items()},
        patient=study.patient or study.id,
    )


def _turned(image: StudyImage) -> StudyImage:
    assert image.pixels is not None
    # A loaded image's masks are in its pixels already.
    return replace(image, pixels=np.ascontiguousarray(image.pixels[:, ::-1]), masked=())


def _box(box: Box, width: int) -> Box:
    x1, y1, x2, y2 = box.xyxy
    return replace(box, xyxy=(width - x2, y1, width - x1, y2), label=swap_sides(box.label))


def _finding(finding: Finding) -> Finding:
    side = {"left": "right", "right": "left"}.get(finding.side or "", finding.side)
    return replace(finding, label=swap_sides(finding.label), side=side)  # type: ignore[arg-type]
