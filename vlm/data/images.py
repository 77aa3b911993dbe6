"""One image file -> pixels in [0, 1]: PNG, JPEG, TIFF, DICOM and NIfTI, told apart by content and never by name alone.

Sizes are read from the header and bounded before anything is decoded. 16-bit grey files are scaled by the smallest bit
depth that holds their largest value (a 12-bit detector in a 16-bit PNG is divided by 4095), so that one file always
gives one picture.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm.data.sizes import MAX_PIXELS, MIN_SIDE, check_size
from vlm.data.windows import MODEL_CT_WINDOW
from vlm.types import InputError, StudyImage

MAX_RATIO = 1100
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_MAGIC = {b"PAR1": "PARQUET", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}


def read_image(
    path: Path,
    window: tuple[float, float] | str | None = None,
    frame: int | None = None,
    ct_window: tuple[float, float] = MODEL_CT_WINDOW,
    least: int | None = None,
) -> StudyImage:
    """Reads one image file.

    Args:
        path: PNG, JPEG or TIFF (8 or 16 bit), DICOM, or NIfTI.
        window: (centre, width), or a name of `vlm.data.windows.WINDOWS`; None for the reader's default.
        frame: which frame or slice of a multi-frame file or volume; None for the middle one.
        ct_window: of CT in Hounsfield units when no window is asked for.
        least: pixels of the longer side that are enough: JPEG 2000 may then be decoded at reduced resolution.

    Returns:
        The image with pixels (H, W) float32 in [0, 1], and view, modality and spacing as far as the file tells.

    Raises:
        InputError: the file is absent, is no image, is broken, or is too large or too small.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "DICOM":
        from vlm.data.dicom import read_dicom

        return read_dicom(path, window, frame, ct_window, least)
    if kind == "NIFTI":
        from vlm.data.nifti import read_nifti_slice

        return read_nifti_slice(path, window, frame, ct_window)
    if kind == "PARQUET":
        from vlm.data.shards import read_packed

        return read_packed(path, window, frame, ct_window)
    return StudyImage(path=path, pixels=_read_picture(path, kind))


def load_image(
    image: StudyImage, ct_window: tuple[float, float] = MODEL_CT_WINDOW, least: int | None = None
) -> StudyImage:
    """Returns the image with its pixels read; what the study says of view, modality and spacing wins over the file.

    Args:
        image: with a path or pixels. ct_window, least: as in `read_image`.

    Raises:
        InputError: as `read_image`; and for an image with neither path nor pixels.
    """
    if image.pixels is not None:
        return image
    if image.path is None:
        raise InputError("an image of the study has neither a path nor pixels")
    read = (
        _projected(image, ct_window)
        if image.slab
        else read_image(image.path, image.window, image.frame, ct_window, least)
    )
    assert read.pixels is not None
    return replace(
        read,
        path=image.path,
        frame=read.frame if image.frame is None else image.frame,
        place=image.place,
        slab=image.slab,
        pixels=blackened(read.pixels, image.masked) if image.masked else read.pixels,
        masked=image.masked,
        view=image.view or read.view,
        modality=image.modality or read.modality,
        spacing_mm=image.spacing_mm or read.spacing_mm,
        window=image.window or read.window,
    )


def _projected(image: StudyImage, ct_window: tuple[float, float]) -> StudyImage:
    """The middle slice of a slab with the maximum of all its slices."""
    read: StudyImage | None = None
    for path, frame in image.slab:
        part = read_image(path, image.window, frame, ct_window)
        if read is None or read.pixels is None:
            read = part
            continue
        if part.pixels is None or part.pixels.shape != read.pixels.shape:
            raise InputError(f"{path}: the slices of a slab have different sizes; choose other key slices than mip")
        np.maximum(read.pixels, part.pixels, out=read.pixels)
    assert read is not None
    return read


def blackened(pixels: np.ndarray, rectangles: tuple[tuple[float, float, float, float], ...]) -> np.ndarray:
    """Sets rectangles to black; a pixel that a rectangle touches is covered whole.

    Args:
        pixels: (H, W) float32; changed in place.
        rectangles: x1, y1, x2, y2 in shares of width and height.
    """
    height, width = pixels.shape
    for x1, y1, x2, y2 in rectangles:
        top, bottom = int(np.floor(y1 * height)), int(np.ceil(y2 * height))
        pixels[top:bottom, int(np.floor(x1 * width)) : int(np.ceil(x2 * width))] = 0
    return pixels


def check_image(pixels: np.ndarray, name: str) -> None:
    """Refuses pixels that show nothing.

    Args:
        pixels: (H, W) float32 in [0, 1].
        name: the file, for the message.

    Raises:
        InputError: the image is uniform (all black, all white), not finite, or smaller than 8 pixels on a side.
    """
    if min(pixels.shape) < MIN_SIDE:
        raise InputError(
            f"{name}: image is {pixels.shape[1]}x{pixels.shape[0]} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name}: image holds values that are not finite; export it again")
    if high - low < 1e-3:
        raise InputError(f"{name}: image is uniform (every pixel is {low:.2f}); check the export, or the window for CT")


def file_kind(path: Path) -> str:
    """Tells "PNG", "JPEG", "TIFF", "DICOM" or "NIFTI" from the first bytes.

    Raises:
        InputError: the file is absent, empty or none of them.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(352)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, an image file is expected") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not head:
        raise InputError(f"{path}: the file is empty")
    if head[128:132] == b"DICM":  # first: its preamble may be a TIFF header, for readers of both
        return "DICOM"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    lower = path.name.lower()
    if lower.endswith(NIFTI_SUFFIXES) or head[344:348] in (b"n+1\0", b"ni1\0"):
        return "NIFTI"
    # A data set without preamble starts with group 0008 (or 0002) in little or big endian.
    if lower.endswith(DICOM_SUFFIXES) or head[:2] in (b"\x08\x00", b"\x02\x00"):
        return "DICOM"
    raise InputError(f"{path}: is not an image (PNG, JPEG, TIFF, DICOM and NIfTI are read)")


def _read_picture(path: Path, kind: str) -> np.ndarray:
    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warning: our own bound is stricter in words and in effect
            with Image.open(io.BytesIO(data), formats=(kind,)) as header:
                width, height = header.size
                depth = 1 if header.mode in ("1", "P") else 8
    except Image.DecompressionBombError:
        raise InputError(f"{path}: image has more than {MAX_PIXELS // 1_000_000} megapixels; make it smaller") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, TypeError, KeyError, EOFError) as error:
        raise InputError(f"{path}: broken {kind} header ({_line(error)})") from None
    check_size(width, height, path)
    # Deflate shrinks 1032 bytes to one at best: a short file with a large size in its header is broken, not an image.
    if width * height * depth / 8 > MAX_RATIO * len(data):
        raise InputError(f"{path}: the {kind} file is truncated: {len(data)} bytes cannot hold {width}x{height} pixels")
    # OpenCV fills the missing part of a cut file with grey and only prints a line: half a lung would pass as fluid.
    if not _whole(data, kind):
        raise InputError(f"{path}: the {kind} file is truncated or broken; copy it again")
    return to_unit(_decode(path, data, kind))


def _whole(data: bytes, kind: str) -> bool:
    if kind == "JPEG":
        return b"\xff\xd9" in data[-4096:]
    if kind != "PNG":
        return True
    at = 8
    while at + 12 <= len(data):  # length, name, content, check sum; OpenCV reserves what the length says, up to 2 GB
        name, at = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IEND":
            return at <= len(data)
    return False


def _decode(path: Path, data: bytes, kind: str) -> np.ndarray:
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        array = None
    if array is None:
        # Pillow reads some files that OpenCV does not (CMYK JPEG, 12-bit and old compressed TIFF).
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                    grey = image if image.mode in ("I;16", "I", "F", "L") else image.convert("L")
                    return np.asarray(grey)
        except (OSError, ValueError, SyntaxError, TypeError, KeyError, EOFError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: the {kind} file is broken or truncated ({_line(error)})") from None
    return grey_of(array)


def grey_of(array: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 2), BGR (H, W, 3) or BGRA (H, W, 4) -> (H, W); transparent pixels become black."""
    if array.ndim == 2:
        return array
    channels = array.shape[2]
    if channels <= 2:
        return array[..., 0]
    grey = cv2.cvtColor(np.ascontiguousarray(array[..., :3]), cv2.COLOR_BGR2GRAY)
    return np.where(array[..., 3] == 0, 0, grey).astype(grey.dtype) if channels == 4 else grey


def to_unit(array: np.ndarray) -> np.ndarray:
    """Scales grey values to [0, 1] float32: 8 bit by 255, wider integers by the depth in use, floats by range."""
    if array.dtype == bool:
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array * np.float32(1 / 255)
    values = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.unsignedinteger):
        bits = max(8, int(array.max()).bit_length())
        return values * np.float32(1.0 / (2**bits - 1))
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
