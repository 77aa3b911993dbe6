"""NIfTI -> one axial slice in radiological display.

The file's affine says which way its axes run. The volume is turned to the closest axes of the patient (no resampling),
and slices are counted from the feet up; a row then runs to the patient's left and a column to the back, as
`vlm.types` asks. Only the slice that is asked for is decoded, save in a compressed file, which is read from its start.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from vlm.data.sizes import check_size
from vlm.data.windows import MODEL_CT_WINDOW, apply_range, apply_window, window_of
from vlm.types import InputError, Modality, StudyImage, View

MAX_VOXELS = 1 << 30
MAX_SLICES = 100_000
# A CT holds air far below zero; MR and label maps do not.
_AIR = -500.0
_BROKEN = (
    ImageFileError, HeaderDataError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError, OverflowError,
    zlib.error, gzip.BadGzipFile, MemoryError, ArithmeticError,
)  # fmt: skip


def read_nifti_slice(
    path: Path,
    window: tuple[float, float] | str | None = None,
    frame: int | None = None,
    ct_window: tuple[float, float] = MODEL_CT_WINDOW,
) -> StudyImage:
    """Reads one axial slice of a NIfTI volume.

    Args:
        path: `.nii` or `.nii.gz`, two to four dimensions (of a series the first volume).
        window: (centre, width) or a name of `WINDOWS`; None for `ct_window` when the slice holds values of CT
            air, and for the 0.1 to 99.9 percent range of the slice otherwise.
        ct_window: see there.
        frame: slice from the feet up, from 0; None for the middle one.

    Returns:
        Pixels (H, W) float32 in [0, 1], view axial, spacing, the slice's number; modality CT where air tells it.

    Raises:
        InputError: not NIfTI, truncated, too large, or no such slice.
    """
    image, axes, flips = _open(path)
    count = image.shape[axes[2]] if len(axes) > 2 else 1
    index = count // 2 if frame is None else frame
    if not 0 <= index < count:
        raise InputError(f"{path}: has no slice {index}; it has {count}, counted from 0 at the feet")
    where: list[Any] = [slice(None)] * min(3, len(image.shape)) + [0] * (len(image.shape) - 3)
    if len(axes) > 2:
        where[axes[2]] = count - 1 - index if flips[2] else index
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = np.asarray(image.dataobj[tuple(where)], dtype=np.float32)
    except _BROKEN:
        raise InputError(f"{path}: the NIfTI file is truncated or broken; copy it again") from None
    if axes[0] < axes[1]:
        values = values.T
    values = values[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    finite = np.isfinite(values)
    values = np.where(finite, values, values[finite].min() if finite.any() else 0)
    zooms = image.header.get_zooms()
    spacing = (float(zooms[axes[1]]), float(zooms[axes[0]]))
    modality = Modality.CT if values.size and values.min() < _AIR else None
    if window is None and modality is Modality.CT:
        window = ct_window
    if window is not None:
        pixels = apply_window(values, *window_of(window))
    else:
        pixels = apply_range(values, *np.percentile(values, (0.1, 99.9)))
    return StudyImage(
        path=path,
        pixels=np.ascontiguousarray(pixels),
        view=View.AXIAL,
        modality=modality,
        spacing_mm=spacing if min(spacing) > 0 and np.isfinite(spacing).all() else None,
        window=window,
        frame=index if count > 1 else None,
    )


def count_slices(path: Path) -> int:
    """Number of axial slices of a NIfTI volume.

    Raises:
        InputError: not NIfTI, or too large.
    """
    image, axes, _ = _open(path)
    return int(image.shape[axes[2]]) if len(axes) > 2 else 1


def slice_positions(path: Path) -> list[float]:
    """Position in mm of each axial slice of a volume, from the feet up (NIfTI's z runs to the head, as DICOM's does).

    Raises:
        InputError: not NIfTI, or too large.
    """
    image, axes, flips = _open(path)
    if len(axes) < 3:
        return [0.0]
    count = int(image.shape[axes[2]])
    if count > MAX_SLICES:
        raise InputError(f"{path}: the volume has {count} slices; at most {MAX_SLICES:,} are read")
    first, step = float(image.affine[2, 3]), float(image.affine[2, axes[2]])
    positions = [first + i * step for i in range(count)]
    return positions[::-1] if flips[2] else positions


def _open(path: Path) -> tuple[Any, tuple[int, ...], tuple[bool, ...]]:
    """The image, its axes that run right-left, front-back and along the body, and which of them must be turned."""
    try:
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
            raise ValueError
        shape = tuple(int(n) for n in image.shape)
        orientation = nib.io_orientation(image.affine)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except _BROKEN:
        raise InputError(f"{path}: is not a NIfTI file, or its header is broken") from None
    if not 2 <= len(shape) <= 5 or min(shape) < 1 or image.header.get_data_dtype().fields is not None:
        raise InputError(f"{path}: a grey volume of 2 to 4 dimensions is expected; this one has the shape {shape}")
    if np.prod([float(n) for n in shape[:3]]) > MAX_VOXELS:
        raise InputError(f"{path}: the volume has {'x'.join(map(str, shape))} voxels; at most {MAX_VOXELS:,} are read")
    to_axis = {int(row[0]): n for n, row in enumerate(orientation) if np.isfinite(row[0])}
    if len(to_axis) < min(3, len(shape)):
        raise InputError(f"{path}: the affine of the NIfTI header is singular; its orientation is unknown")
    if len(shape) == 2 and any(to_axis[n] > 1 for n in (0, 1)):
        raise InputError(f"{path}: a single slice must be axial; its affine says that it is not")
    axes = tuple(to_axis[n] for n in range(min(3, len(shape))))
    # NIfTI counts to the right, front and head; a display counts to the left (so +x turns), back (+y turns), and up.
    flips = tuple(bool(orientation[a, 1] > 0) for a in axes[:2]) + tuple(bool(orientation[a, 1] < 0) for a in axes[2:])
    check_size(shape[axes[0]], shape[axes[1]], path)
    return image, axes, flips
