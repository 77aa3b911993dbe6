"""What a DICOM header says of an image, in plain values: modality, view, spacing, flips, windows.

A tag that is missing, empty or malformed reads as None: headers in the wild hold all three. Values of tags are never
put into messages, since any of them may identify a patient.

Display. Patient axes: +x to the patient's left, +y to the back, +z to the head. In radiological display a row runs to
the patient's left, and a column to the back (axial) or to the feet (coronal, sagittal, radiographs). Worked example: an
axial slice with ImageOrientationPatient (-1, 0, 0, 0, 1, 0) runs to the patient's right along its rows: it is stored
mirrored, and is mirrored back. Without such tags nothing is turned.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

from vlm.types import Modality, View

MODALITIES = {
    "CR": Modality.XRAY,
    "DX": Modality.XRAY,
    "RG": Modality.XRAY,
    "CT": Modality.CT,
    "MR": Modality.MR,
    "US": Modality.ULTRASOUND,
    "IVUS": Modality.ULTRASOUND,
    "MG": Modality.MAMMOGRAPHY,
}
VIEWS = {
    "PA": View.FRONTAL,
    "AP": View.FRONTAL,
    "LL": View.LATERAL,
    "RL": View.LATERAL,
    "LATERAL": View.LATERAL,
    "LAT": View.LATERAL,
    "POSTERO-ANTERIOR": View.FRONTAL,
    "ANTERO-POSTERIOR": View.FRONTAL,
}
PLANES = (View.SAGITTAL, View.CORONAL, View.AXIAL)
OBLIQUE = 0.8
# A tag that cannot be read fails in one of these ways, depending on where its bytes are wrong.
UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, NotImplementedError, EOFError,
    struct.error, BytesLengthException,
)  # fmt: skip


def text(dataset: Dataset, name: str) -> str | None:
    """A tag's value as stripped text, the first of several; None when absent, empty or malformed."""
    try:
        value = dataset.get(name)
    except UNREADABLE:
        return None
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return (str(value).strip() or None) if value is not None else None


def numbers(dataset: Dataset, name: str, count: int | None = None) -> tuple[float, ...] | None:
    """A tag's finite numbers; None when absent or malformed, or when they are fewer than `count`; cut to `count`."""
    try:
        value = dataset.get(name)
        if value is None:
            return None
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
        out = tuple(float(x) for x in (value if several else [value]))
    except UNREADABLE:
        return None
    if not out or not all(math.isfinite(x) for x in out) or (count is not None and len(out) < count):
        return None
    return out if count is None else out[:count]


def number(dataset: Dataset, name: str) -> float | None:
    """A tag's first number; None when absent or malformed."""
    found = numbers(dataset, name, 1)
    return found[0] if found else None


def items(dataset: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence; none when it is absent or malformed."""
    try:
        return [item for item in dataset.get(name) or () if isinstance(item, Dataset)]
    except UNREADABLE:
        return []


def functional(dataset: Dataset, frame: int, name: str) -> Dataset:
    """A functional group of an enhanced multi-frame object: the frame's own, else the shared one, else the data set."""
    own = items(dataset, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    for group in own + items(dataset, "SharedFunctionalGroupsSequence")[:1]:
        found = items(group, name)
        if found:
            return found[0]
    return dataset


def modality_of(dataset: Dataset) -> Modality | None:
    """`Modality` tag as ours; None when absent, OTHER when it is none of ours."""
    name = text(dataset, "Modality")
    return MODALITIES.get(name.upper(), Modality.OTHER) if name else None


def orientation_of(dataset: Dataset, frame: int = 0) -> np.ndarray | None:
    """(2, 3) unit vectors along a row and along a column in patient axes; None when unknown."""
    found = numbers(functional(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    if found is None:
        return None
    directions = np.array(found).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    return directions if np.allclose(lengths, 1, atol=0.05) else None


def view_of(dataset: Dataset, frame: int = 0) -> View | None:
    """Projection of a radiograph, or plane of a slice; None when no tag tells."""
    directions = orientation_of(dataset, frame)
    if directions is not None:
        normal = np.abs(np.cross(*directions))
        return PLANES[int(normal.argmax())] if normal.max() >= OBLIQUE else View.OTHER
    position = text(dataset, "ViewPosition")
    if position:
        return VIEWS.get(position.upper(), View.OTHER)
    meanings = [text(item, "CodeMeaning") for item in items(dataset, "ViewCodeSequence")]
    return VIEWS.get(meanings[0].upper()) if meanings and meanings[0] else None


def flips_of(dataset: Dataset, frame: int = 0) -> tuple[bool, bool]:
    """(mirror left-right, mirror up-down) that bring the stored image into radiological display.

    FieldOfViewHorizontalFlip is not read: it says what the detector did, not how the image now lies.
    """
    directions = orientation_of(dataset, frame)
    if directions is not None:
        row, column = directions
        across, down = int(np.abs(row).argmax()), int(np.abs(column).argmax())
        mirrored = across == 0 and row[0] < -OBLIQUE
        upside_down = (down == 1 and column[1] < -OBLIQUE) or (down == 2 and column[2] > OBLIQUE)
        return bool(mirrored), bool(upside_down)
    if modality_of(dataset) is not Modality.XRAY:
        return False, False
    try:
        letters = [str(x).strip().upper() for x in dataset.get("PatientOrientation") or ()]
    except UNREADABLE:
        return False, False
    if len(letters) != 2:
        return False, False
    return letters[0].startswith("R"), letters[1].startswith("H")


def spacing_of(dataset: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """(row, column) spacing in mm: PixelSpacing, else that at the detector (magnified) or of a scanned film."""
    measures = functional(dataset, frame, "PixelMeasuresSequence")
    for source, name in (
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "NominalScannedPixelSpacing"),
    ):
        found = numbers(source, name, 2)
        if found and min(found) > 0:
            return found[0], found[1]
    return None


def window_of_file(dataset: Dataset, frame: int = 0) -> tuple[float, float, str] | None:
    """(centre, width, function) of the file's first window; None when there is none that makes sense.

    The function is "LINEAR", "LINEAR_EXACT" or "SIGMOID" (PS3.3 C.11.2.1).
    """
    voi = functional(dataset, frame, "FrameVOILUTSequence")
    centre, width = number(voi, "WindowCenter"), number(voi, "WindowWidth")
    function = (text(voi, "VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width <= (1 if function == "LINEAR" else 0):
        return None
    return centre, width, function


def count_of_frames(dataset: Dataset) -> int:
    """Number of frames, at least 1."""
    return max(1, int(number(dataset, "NumberOfFrames") or 1))


def palette_of(dataset: Dataset) -> Any | None:
    """The red table's descriptor, or None when the file has no palette."""
    return numbers(dataset, "RedPaletteColorLookupTableDescriptor", 3)
