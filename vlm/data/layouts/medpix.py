"""MedPix cases: `cases.jsonl`, one image a line with its caption and its case's history and diagnosis, and `images/`.

A mark ("MedPix") is burnt into the top right corner and the uploader's name into the bottom strip: both are blackened
when an image is read, or a model would learn names. The captions "Replace this ..." are placeholders: no report.
"""

from __future__ import annotations

import re
from pathlib import Path

from vlm.data.files import inside, read_json_lines, sections_of, text_of
from vlm.types import InputError, Modality, Study, StudyImage, View

MARK, STRIP = (0.58, 0.12), 0.14
"""Width and height of the mark and height of the strip, as shares of the image..."""
MARK_PIXELS, STRIP_PIXELS = (110, 28), 34
"""...and what they take at most in pixels, which is more in a small image."""

PLACEHOLDER = re.compile(r"^\s*replace this\b", re.IGNORECASE)
_NEEDED = ("id", "case", "image", "caption")
_MODALITIES = {"CT": Modality.CT, "MR": Modality.MR}
_SPLITS = {"dev": "val"}
_VIEWS = {
    "axial": View.AXIAL,
    "transverse": View.AXIAL,
    "coronal": View.CORONAL,
    "sagittal": View.SAGITTAL,
    "frontal": View.FRONTAL,
    "ap": View.FRONTAL,
    "pa": View.FRONTAL,
    "lateral": View.LATERAL,
}
_NOT_RADIOLOGY = ("photograph", "gross pathology", "drawing")


def read_medpix(root: Path) -> list[Study]:
    """Reads the case list.

    Args:
        root: folder of `cases.jsonl`, or the file.

    Returns:
        One study a line: the caption is the image's, and `case` is the patient. "dev" becomes "val".

    Raises:
        InputError: a broken line, a missing key, or a path that leaves the folder.
    """
    path = root / "cases.jsonl" if root.is_dir() else root
    studies = []
    for number, record in read_json_lines(path):
        missing = [k for k in _NEEDED if k not in record]
        if missing:
            raise InputError(f"{path}: line {number} has no {missing[0]!r}; is this a list of MedPix cases?")
        caption, plane = text_of(record, "caption"), text_of(record, "plane").strip().lower()
        photo = plane in _NOT_RADIOLOGY
        split = text_of(record, "split")
        studies.append(
            Study(
                id=str(record["id"]),
                images=[
                    StudyImage(
                        inside(path.parent, str(record["image"]), path),
                        view=_VIEWS.get(plane, View.OTHER if plane else None),
                        modality=Modality.OTHER if photo else _MODALITIES.get(text_of(record, "modality")),
                        masked=masked_in(record.get("width"), record.get("height")),
                    )
                ],
                clinical=sections_of(indication=text_of(record, "history")),
                report=None
                if PLACEHOLDER.match(caption)
                else sections_of(findings=caption, impression=text_of(record, "diagnosis")) or None,
                patient=str(record["case"]),
                split=_SPLITS.get(split, split) or None,
                source="medpix",
            )
        )
    return studies


def masked_in(width: object, height: object) -> tuple[tuple[float, float, float, float], ...]:
    """The mark's and the strip's rectangles, as shares of an image of this many pixels (unknown: of the usual ones)."""
    w = float(width) if isinstance(width, int) and width > 0 else 320.0
    h = float(height) if isinstance(height, int) and height > 0 else 320.0
    across, down = max(MARK[0], MARK_PIXELS[0] / w), max(MARK[1], MARK_PIXELS[1] / h)
    strip = max(STRIP, STRIP_PIXELS / h)
    return (max(0.0, 1 - across), 0.0, 1.0, min(1.0, down)), (0.0, max(0.0, 1 - strip), 1.0, 1.0)


def is_medpix(path: Path) -> bool:
    """Whether a path looks like MedPix cases."""
    return (path.is_dir() and (path / "cases.jsonl").is_file()) or path.name == "cases.jsonl"
