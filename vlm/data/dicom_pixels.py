"""Stored values of one DICOM frame, decoded: as they lie, by pydicom's decoders, or JPEG 2000 at reduced resolution."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from vlm.data.dicom_tags import count_of_frames, number, palette_of
from vlm.data.jpeg2000 import decode_reduced, size_marker
from vlm.types import InputError

JPEG_2000 = (JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
# What pydicom and its decoders raise on bytes that make no sense.
BROKEN = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, NotImplementedError, RuntimeError,
    EOFError, OSError, struct.error, zlib.error, AssertionError, UnicodeError, ArithmeticError, MemoryError,
    BytesLengthException, InvalidDicomError,
)  # fmt: skip
_PLAIN = {(1, bits, sign): np.dtype(f"<{'i' if sign else 'u'}{bits // 8}") for bits in (8, 16) for sign in (0, 1)}
"""(SamplesPerPixel, BitsAllocated, PixelRepresentation) of grey pixels that are read as they lie."""
_SHORT = "less than expected"


def stored_values(path: Path, header: Dataset, index: int) -> np.ndarray:
    """(H, W) stored values, or (H, W, 3) colours, of one frame."""
    whole = any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    name = "unknown encoding"
    try:
        meta = header.file_meta
        if "TransferSyntaxUID" not in meta:
            # Written before files carried their syntax: the encoding that was met while reading tells it.
            implicit, little = header.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        if whole and (plain := _uncompressed(header, index)) is not None:
            return plain
        name = meta.TransferSyntaxUID.name if meta.TransferSyntaxUID.is_transfer_syntax else name
        array = pixel_array(header if whole else path, index=index)
    except AttributeError:
        raise InputError(f"{path}: the DICOM file holds no pixels, or lacks a tag that describes them") from None
    except BROKEN as error:
        if _SHORT in str(error):
            raise InputError(f"{path}: the DICOM file is truncated: pixels are missing; copy it again") from None
        raise InputError(f"{path}: the pixels are truncated, broken or of a kind not read ({name})") from None
    if array.shape[:2] != (header.Rows, header.Columns):
        raise InputError(f"{path}: the pixels do not have the size that the DICOM header states")
    return array


def _uncompressed(header: Dataset, index: int) -> np.ndarray | None:
    """A grey little-endian frame as a view of the file's bytes: most CT is this, and pydicom's general way takes a
    third of the whole reading. None for anything else, broken lengths among it."""
    if header.file_meta.TransferSyntaxUID not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        return None
    tags = (header.get("SamplesPerPixel"), header.get("BitsAllocated"), header.get("PixelRepresentation"))
    if tags not in _PLAIN or "PixelData" not in header or header.Rows < 1 or header.Columns < 1:
        return None
    kind, data = _PLAIN[tags], header.PixelData
    frame = header.Rows * header.Columns * kind.itemsize
    frames = count_of_frames(header)
    if not isinstance(data, bytes) or not frame * frames <= len(data) <= frame * frames + 1:
        return None
    pixels = np.frombuffer(data, kind, header.Rows * header.Columns, index * frame)
    return pixels.reshape(header.Rows, header.Columns)


def reduced_values(header: Dataset, index: int, least: int) -> np.ndarray | None:
    """Stored values of a grey JPEG 2000 frame at reduced resolution; None for anything else, which is decoded in
    full and says there what is wrong."""
    try:
        if header.file_meta.TransferSyntaxUID not in JPEG_2000 or "PixelData" not in header or palette_of(header):
            return None
        frame = get_frame(header.PixelData, index, number_of_frames=count_of_frames(header))
        size = size_marker(frame)
        signed = bool(number(header, "PixelRepresentation"))
        if size is None or (size.width, size.height, size.signed) != (header.Columns, header.Rows, signed):
            return None
        return decode_reduced(frame, least)
    except BROKEN:
        return None
