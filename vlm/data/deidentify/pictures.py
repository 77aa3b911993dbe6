"""PNG, JPEG, TIFF, NIfTI and DICOM files: what is beside the pixels goes, the pixels stay as they are, or have their
text blackened when that is asked for."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from vlm.data.deidentify.pixels import blacken, find_text, text_of_frames, to_grey
from vlm.data.deidentify.tags import HeaderCleaner
from vlm.data.dicom import BROKEN
from vlm.data.dicom import _quiet as quiet
from vlm.data.files import write_atomic
from vlm.data.sizes import check_size
from vlm.types import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"sBIT", b"pHYs", b"cHRM", b"sRGB")
_NIFTI_TEXTS = {348: ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)), 540: ((240, 80), (320, 24), (508, 16))}
_MAX_INFLATED = 1 << 32
_MARKS = ("SOPClassUID", "SOPInstanceUID", "Modality", "DirectoryRecordSequence")


def clean_dicom(source: Path, target: Path, cleaner: HeaderCleaner, counts: Counter[str]) -> int:
    """Writes a DICOM file without identifiers.

    Returns:
        Number of rectangles that were blackened.

    Raises:
        InputError: not DICOM, a media directory, broken, or (when text is to be masked) pixels that do not decode.
    """
    with quiet():
        try:
            dataset = dcmread(source, force=True)
            if not any(name in dataset for name in _MARKS):
                raise InputError("is not a DICOM file, or is broken")
            if "TransferSyntaxUID" not in dataset.file_meta:
                implicit, little = dataset.original_encoding
                explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        except (*BROKEN, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("is not a DICOM file, or is broken") from None
        if "DirectoryRecordSequence" in dataset:
            raise InputError("is a media directory (DICOMDIR): it lists patients and is left out")
        masked = 0
        try:
            if cleaner.masked and "PixelData" in dataset:
                masked = _mask_dicom(dataset)
            cleaner.clean(dataset, counts)
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
        except InputError:
            raise
        except (*BROKEN, RecursionError):
            raise InputError("the DICOM file is broken, or of a kind that cannot be written again") from None
    write_atomic(target, buffer.getvalue())
    return masked


def _mask_dicom(dataset: Dataset) -> int:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(columns, rows, Path("image"))
    try:
        shown = pixel_array(dataset)  # colours come as RGB
    except (*BROKEN, RecursionError):
        raise InputError("the pixels do not decode, so that no text in them can be masked") from None
    colours = int(dataset.SamplesPerPixel) > 1
    frames = shown if int(dataset.get("NumberOfFrames", 1) or 1) > 1 else shown[None]
    boxes = text_of_frames(frames)
    if not boxes:
        return 0
    black = shown.max() if str(dataset.PhotometricInterpretation) == "MONOCHROME1" else shown.min()
    shown = shown.copy()
    blacken(shown, boxes, black if not colours else 0, colours)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if colours:
        dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = "RGB"
    data = np.ascontiguousarray(shown).astype(shown.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if int(dataset.BitsAllocated) > 8 else "OB"
    dataset["PixelData"].is_undefined_length = False
    return len(boxes)


def clean_picture(source: Path, target: Path, mask: bool, counts: Counter[str]) -> int:
    """Writes a PNG, JPEG, TIFF or BMP without its metadata; pixels are the same unless text is found in them.

    Returns:
        Number of rectangles that were blackened.

    Raises:
        InputError: not a picture, or broken.
    """
    data = source.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size, Path("image"))
            kind, frames = image.format, getattr(image, "n_frames", 1)
            image.load()
            boxes = find_text(to_grey(np.asarray(_plain(image)))) if mask else []
            if boxes:
                counts["metadata"] += 1
                write_atomic(target, _blackened(image, boxes, kind or "PNG"))
            elif kind == "PNG":
                write_atomic(target, _png(data, counts))
            elif kind in ("JPEG", "MPO"):
                write_atomic(target, _jpeg(data, counts))
            elif frames > 1:
                raise InputError("holds several pages; split it into single pictures")
            else:
                counts["metadata"] += 1
                write_atomic(target, _encoded(image, kind or "TIFF"))
    except InputError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        raise InputError("is not a picture that can be read") from None
    return len(boxes)


def _plain(image: Image.Image) -> Image.Image:
    return image.convert("RGB") if image.mode in ("P", "RGBA", "CMYK", "YCbCr", "LA") else image


def _blackened(image: Image.Image, boxes: list[tuple[int, int, int, int]], kind: str) -> bytes:
    plain = _plain(image)
    pixels = np.array(plain)
    blacken(pixels, boxes, 0, pixels.ndim == 3)
    return _encoded(Image.fromarray(pixels), kind)


def _encoded(image: Image.Image, kind: str) -> bytes:
    """The pixels alone: a copy carries neither EXIF nor text."""
    bare = Image.fromarray(np.array(image)) if image.mode != "P" else image.convert("RGB")
    buffer = io.BytesIO()
    kind = "JPEG" if kind == "MPO" else kind
    bare.save(buffer, kind, **({"quality": 97, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _png(data: bytes, counts: Counter[str]) -> bytes:
    """Keeps the chunks that hold pixels and how to show them; also drops what stands behind the end."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name in _PNG_KEPT:
            out.append(data[at : at + 12 + length])
        else:
            counts["metadata"] += 1
        at += 12 + length
        if name == b"IEND":
            break
    return b"".join(out)


def _jpeg(data: bytes, counts: Counter[str]) -> bytes:
    """Drops comments and application segments but JFIF's and Adobe's colour mark; the coded pixels are untouched."""
    out, at = [b"\xff\xd8"], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        mark = data[at + 1]
        if mark == 0xFF:
            at += 1
            continue
        length = 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        if mark in (0xE0, 0xEE) or not (0xE0 <= mark <= 0xEF or mark == 0xFE):
            out.append(data[at : at + length])
        else:
            counts["metadata"] += 1
        at += length
        if mark == 0xDA:
            end = _end_of_scan(data, at)
            out.append(data[at:end])
            at = end
        if data[at : at + 2] in (b"\xff\xd9", b""):
            out.append(b"\xff\xd9")
            break
    return b"".join(out)


def _end_of_scan(data: bytes, at: int) -> int:
    """Where coded pixels end: at a 0xFF that is neither stuffed nor a restart mark."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data)
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7 and data[at + 1] != 0xFF:
            return at
        at += 1 if data[at + 1] == 0xFF else 2


def clean_nifti(source: Path, target: Path, counts: Counter[str]) -> None:
    """Writes a NIfTI file with empty text fields and without extensions' content; voxels and affine are the same bytes.

    Raises:
        InputError: not NIfTI, truncated, or larger than 4 GiB unpacked.
    """
    raw = source.read_bytes()
    packed = raw[:2] == b"\x1f\x8b"
    if packed:
        try:
            inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
            raw = inflate.decompress(raw, _MAX_INFLATED)
        except zlib.error:
            raise InputError("is truncated or broken") from None
        if inflate.unconsumed_tail or not inflate.eof:
            raise InputError("is truncated, or larger than 4 GiB unpacked")
    data = bytearray(raw)
    size = next((n for n in _NIFTI_TEXTS if data[:4] in (struct.pack("<i", n), struct.pack(">i", n))), None)
    if size is None or len(data) < size + 4:
        raise InputError("is not a NIfTI file")
    order = "<" if data[:4] == struct.pack("<i", size) else ">"
    for start, length in _NIFTI_TEXTS[size]:
        if any(data[start : start + length]):
            counts["NIfTI header text"] += 1
            data[start : start + length] = bytes(length)
    offset = (
        struct.unpack_from(f"{order}f", data, 108)[0] if size == 348 else struct.unpack_from(f"{order}q", data, 168)[0]
    )
    single = data[344:348] == b"n+1\0" if size == 348 else data[4:8] == b"n+2\0"
    end = min(int(offset), len(data)) if single else len(data)
    if any(data[size:end]):
        counts["NIfTI extension"] += 1
        data[size:end] = bytes(max(0, end - size))
    write_atomic(target, gzip.compress(bytes(data), 6, mtime=0) if packed else bytes(data))
