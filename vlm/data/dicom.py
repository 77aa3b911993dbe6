"""DICOM -> pixels in [0, 1]: every transfer syntax that pydicom's decoders read, CR, DX, CT, MR, MG, US and others.

    stored values -> modality LUT or rescale -> window or VOI LUT -> MONOCHROME1 turned -> padding black -> display

The window that is asked for comes first; CT in Hounsfield units then takes the model's window; all others take their
own VOI, or the range of their values. The header is read and its size bounded before a pixel is decoded, and of a
multi-frame file only the frame that is asked for. No tag's value and no message of pydicom's reaches ours: either may
name a patient.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_color_lut
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
)

from vlm.data.dicom_pixels import BROKEN, reduced_values, stored_values
from vlm.data.dicom_tags import (
    count_of_frames,
    flips_of,
    functional,
    items,
    modality_of,
    number,
    numbers,
    orientation_of,
    palette_of,
    spacing_of,
    text,
    view_of,
    window_of_file,
)
from vlm.data.sizes import check_size
from vlm.data.windows import MODEL_CT_WINDOW, apply_range, apply_window, window_of
from vlm.types import InputError, Modality, StudyImage

MAX_INFLATED = 1 << 30
MAX_FRAMES = 100_000
MAX_WHOLE = 1 << 28  # larger files are read frame by frame


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """What orders the files of a series.

    Args:
        series: SeriesInstanceUID; for grouping only, never to be written anywhere.
        modality: None when unknown. frames: number of frames.
        position: distance in mm along the slices' normal; None without position tags.
        instance: InstanceNumber; None when unknown.
        frame_positions: as `position`, of every frame of an enhanced object; () for any other.
        uid: SOPInstanceUID; for joining files only, never to be written anywhere.
    """

    series: str | None
    modality: Modality | None
    frames: int
    position: float | None
    instance: float | None
    frame_positions: tuple[float, ...] = ()
    uid: str | None = None


def read_dicom(
    path: Path,
    window: tuple[float, float] | str | None = None,
    frame: int | None = None,
    ct_window: tuple[float, float] = MODEL_CT_WINDOW,
    least: int | None = None,
) -> StudyImage:
    """Reads one frame of a DICOM file.

    Args:
        path: DICOM file, with or without preamble.
        window: (centre, width) in the unit of the values after rescaling (HU for CT), or a name of `WINDOWS` (CT only);
            None for `ct_window` for CT in Hounsfield units, and for the file's own for all others.
        frame: from 0; None for the middle one.
        ct_window: see there.
        least: pixels of the longer side that are enough: JPEG 2000 is then decoded at reduced resolution, and the
            image's `full_size` says what boxes count in.

    Returns:
        Pixels (H, W) float32 in [0, 1] in radiological display, with view, modality and spacing where tags tell.

    Raises:
        InputError: not DICOM, no pixels, truncated, not decodable, too large, or no such frame.
    """
    with _quiet():
        header = _header(path)
        count = count_of_frames(header)
        index = count // 2 if frame is None else frame
        if not 0 <= index < count:
            raise InputError(f"{path}: has no frame {index}; it has {count}, counted from 0")
        if window is None and _in_hounsfield(header, index):
            window = ct_window
        stored = None if least is None else reduced_values(header, index, least)
        full_size = None if stored is None else (int(header.Columns), int(header.Rows))
        pixels = _shown(path, header, stored_values(path, header, index) if stored is None else stored, index, window)
        mirrored, upside_down = flips_of(header, index)
        if mirrored or upside_down:
            pixels = np.ascontiguousarray(pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1])
        return StudyImage(
            path=path,
            pixels=pixels,
            view=view_of(header, index),
            modality=modality_of(header),
            spacing_mm=spacing_of(header, index),
            window=window,
            frame=index if count > 1 else None,
            full_size=full_size,
        )


def read_slice_header(path: Path) -> SliceHeader:
    """Reads what orders a file within its series; nothing is decoded.

    Raises:
        InputError: not DICOM.
    """
    with _quiet():
        header = _parse(path)
        frames = count_of_frames(header)
        along = [_along(header, i) for i in range(min(frames, MAX_FRAMES) if frames > 1 else 0)]
        return SliceHeader(
            text(header, "SeriesInstanceUID"),
            modality_of(header),
            frames,
            _along(header, 0),
            number(header, "InstanceNumber"),
            tuple(a for a in along if a is not None) if frames == len(along) and None not in along else (),
            text(header, "SOPInstanceUID"),
        )


def _along(header: Dataset, frame: int) -> float | None:
    """Position of a frame in mm along its normal."""
    directions = orientation_of(header, frame)
    position = numbers(functional(header, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    return None if directions is None or position is None else float(np.cross(*directions) @ np.array(position))


_LOCK = threading.Lock()
_READING: list[logging.Logger] = []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pydicom's remarks away, which quote tags. Its loggers are switched off one by one: setting the level of
    their parent would empty the caches of every logger of the process, which takes as long as reading the header."""
    known = _loggers(len(logging.root.manager.loggerDict))
    with _LOCK:
        loggers = [logger for logger in known if logger in _READING or not logger.disabled]
        _READING.extend(loggers)
        for logger in loggers:
            logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        with _LOCK:
            for logger in loggers:
                _READING.remove(logger)
                logger.disabled = logger in _READING  # another thread is still reading


@lru_cache(maxsize=1)
def _loggers(_: int) -> list[logging.Logger]:
    """pydicom's loggers, looked up again whenever the process has more loggers than before."""
    known = {name: x for name, x in logging.root.manager.loggerDict.items() if isinstance(x, logging.Logger)}
    return [logging.getLogger("pydicom"), *(x for name, x in known.items() if name.startswith("pydicom."))]


def _parse(path: Path, pixels: bool = False) -> Dataset:
    try:
        _bound_deflated(path)
        return dcmread(path, stop_before_pixels=not pixels, force=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (*BROKEN, RecursionError):
        raise InputError(f"{path}: the DICOM header is broken or truncated; export or copy it again") from None


def _bound_deflated(path: Path) -> None:
    """Refuses a deflated file that inflates beyond a gigabyte: pydicom would inflate it whole."""
    with path.open("rb") as stream:
        if DeflatedExplicitVRLittleEndian.encode() + b"\0" not in stream.read(1024):
            return
    meta = read_file_meta_info(path)
    start = 144 + int(meta.FileMetaInformationGroupLength)  # preamble 128, "DICM" 4, the length's own element 12
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data, total = path.read_bytes()[start:], 0
    while data and not inflate.eof:
        total += len(inflate.decompress(data, 1 << 24))
        data = inflate.unconsumed_tail
        if total > MAX_INFLATED:
            raise InputError(f"{path}: the deflated DICOM file inflates to more than a gigabyte; store it uncompressed")


def _header(path: Path) -> Dataset:
    try:
        small = path.stat().st_size <= MAX_WHOLE
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be read'}") from None
    header = _parse(path, small)
    rows, columns = number(header, "Rows"), number(header, "Columns")
    if rows is None or columns is None:
        if not any(name in header for name in ("SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID")):
            raise InputError(f"{path}: is not a DICOM file, or is cut off in its header")
        raise InputError(f"{path}: the DICOM file holds no pixels (a report or a presentation state, or cut off)")
    check_size(int(columns), int(rows), path)
    return header


def _shown(
    path: Path, header: Dataset, stored: np.ndarray, index: int, window: tuple[float, float] | str | None
) -> np.ndarray:
    """Stored values -> (H, W) float32 in [0, 1], padding black."""
    bits = int(number(header, "BitsStored") or stored.dtype.itemsize * 8)
    if stored.ndim == 3 or palette_of(header):
        return _grey(path, header, stored, bits)
    padding = _padding(header, stored)
    modality = modality_of(header)
    if isinstance(window, str) and "/" not in window and modality is not Modality.CT:
        window_of(window)
        raise InputError(f"{path}: window {window!r} is for CT; leave it out here, or give CENTRE/WIDTH")
    try:
        pixels = _windowed(header, stored, index, window, bits, padding)
    except (*BROKEN, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: a lookup table in the DICOM header is broken; export it again") from None
    if (text(header, "PhotometricInterpretation") or "").upper() == "MONOCHROME1":
        np.subtract(1, pixels, out=pixels)
    if padding is not None:
        pixels[padding] = 0
    return pixels


def _windowed(
    header: Dataset,
    stored: np.ndarray,
    index: int,
    window: tuple[float, float] | str | None,
    bits: int,
    padding: np.ndarray | None,
) -> np.ndarray:
    transform = functional(header, index, "PixelValueTransformationSequence")
    slope, intercept = number(transform, "RescaleSlope"), number(transform, "RescaleIntercept")
    table = items(header, "ModalityLUTSequence")
    if table:
        stored, slope, intercept = apply_modality_lut(stored, header), None, None
    rescaled = slope is not None and intercept is not None and slope != 0
    a, b = (float(slope), float(intercept)) if rescaled else (1.0, 0.0)  # type: ignore[arg-type]
    if window is not None:
        return _apply(stored, a, b, *window_of(window))
    voi = functional(header, index, "FrameVOILUTSequence")
    if items(voi, "VOILUTSequence") and (a, b) == (1.0, 0.0) and np.issubdtype(stored.dtype, np.integer):
        depth = int(numbers(items(voi, "VOILUTSequence")[0], "LUTDescriptor", 3)[2])  # type: ignore[index]
        shown = apply_voi(stored, header if voi is header else voi)
        return np.clip(shown * np.float32(1 / (2**depth - 1)), 0, 1, dtype=np.float32)
    own = window_of_file(header, index)
    if own is not None:
        centre, width, function = own
        if function == "SIGMOID":
            scaled = _apply_unclipped(stored, a, b, centre, width)
            return 1 / (1 + np.exp(-4 * scaled))
        return _apply(stored, a, b, *((centre - 0.5, width - 1) if function == "LINEAR" else (centre, width)))
    if bits <= 8 and not table:
        return apply_range(stored, *((-128, 127) if stored.dtype.kind == "i" else (0, 2**bits - 1)))
    seen = stored if padding is None else stored[~padding]
    low, high = np.percentile(seen, (0.1, 99.9)) if seen.size else (0, 0)
    return apply_range(stored if a > 0 else -stored.astype(np.float32), *((low, high) if a > 0 else (-high, -low)))


def _in_hounsfield(header: Dataset, index: int) -> bool:
    """Whether a CT's values become Hounsfield units by slope and intercept."""
    if modality_of(header) is not Modality.CT or items(header, "ModalityLUTSequence"):
        return False
    if number(header, "SamplesPerPixel") not in (None, 1) or palette_of(header):
        return False  # a picture of a CT
    transform = functional(header, index, "PixelValueTransformationSequence")
    slope, intercept = number(transform, "RescaleSlope"), number(transform, "RescaleIntercept")
    return bool(slope) and intercept is not None and (text(transform, "RescaleType") or "HU") == "HU"


def _apply(stored: np.ndarray, slope: float, intercept: float, centre: float, width: float) -> np.ndarray:
    """Window over slope * stored + intercept in one pass."""
    if slope > 0:
        return apply_window(stored, (centre - intercept) / slope, width / slope)
    return apply_window(stored * np.float32(slope) + np.float32(intercept), centre, width)


def _apply_unclipped(stored: np.ndarray, slope: float, intercept: float, centre: float, width: float) -> np.ndarray:
    return (stored.astype(np.float32) * np.float32(slope) + np.float32(intercept - centre)) / np.float32(width)


def _padding(header: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """(H, W) True where the scanner filled up the rectangle; None when nothing is."""
    value, limit = number(header, "PixelPaddingValue"), number(header, "PixelPaddingRangeLimit")
    if value is None:
        return None
    if stored.dtype.kind == "i" and value >= 2 ** (stored.dtype.itemsize * 8 - 1):
        value -= 2 ** (stored.dtype.itemsize * 8)  # a signed value that was written as unsigned
    low, high = sorted((value, value if limit is None else limit))
    mask = (stored >= low) & (stored <= high)
    if stored.shape != (header.Rows, header.Columns):  # reduced: values beside the padding are mixed with it
        mask = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return mask if mask.any() and not mask.all() else None


def _grey(path: Path, header: Dataset, stored: np.ndarray, bits: int) -> np.ndarray:
    try:
        if stored.ndim == 2:
            stored = apply_color_lut(stored, header)
            bits = int(palette_of(header)[2])  # type: ignore[index]
            bits = 16 if bits == 16 and stored.dtype.itemsize == 2 else stored.dtype.itemsize * 8
    except (*BROKEN, RecursionError):
        raise InputError(f"{path}: the colour table in the DICOM header is broken; export it again") from None
    scaled = np.ascontiguousarray(stored[..., :3]).astype(np.float32) * np.float32(1 / (2**bits - 1))
    return np.clip(cv2.cvtColor(scaled, cv2.COLOR_RGB2GRAY), 0, 1)
