"""A study made small for a shard: images decoded, scaled down and written as PNG; boxes and spacing follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vlm.data.images import check_image, load_image
from vlm.data.shards import HU_WINDOW, WHOLE, Packed
from vlm.data.views import choose_views
from vlm.data.windows import MODEL_CT_WINDOW, window_of
from vlm.types import Box, Finding, InputError, Study, StudyImage


@dataclass(frozen=True, slots=True)
class Packing:
    """How pixels are kept.

    Args:
        size: images are scaled down to this longest side, never up.
        bits: 8 or 16 a pixel.
        hu: CT in Hounsfield units is kept in 16 bit without a window.
        views: most images of a study; more are thinned as training would.
        window: of CT, as `vlm.data.windows.window_of` takes it; None for the model's.
    """

    size: int = 512
    bits: int = 8
    hu: bool = False
    views: int = 16
    window: str | None = None


def pack(study: Study, packing: Packing) -> Packed:
    """Decodes a study's images and packs them.

    Raises:
        InputError: no image, or one that cannot be read or shows nothing.
    """
    chosen = choose_views(study.images, packing.views)
    if not chosen:
        raise InputError("has no image")
    images, data, kept_hu, ratios = [], [], [], []
    for index in chosen:
        image, in_hu = _load(study.images[index], packing)
        assert image.pixels is not None
        pixels = image.pixels
        check_image(pixels, image.path.name if image.path else study.id)
        small = shrink(pixels, packing.size)
        width, height = image.full_size or pixels.shape[::-1]
        ratios.append((small.shape[1] / width, small.shape[0] / height))
        data.append(encode(small, 16 if in_hu else packing.bits))
        kept_hu.append(in_hu)
        images.append(_described(image, ratios[-1]))
    boxes, findings = _kept(study, chosen, ratios)
    return Packed(replace(study, images=images, boxes=boxes, findings=findings), tuple(data), tuple(kept_hu))


def _load(image: StudyImage, packing: Packing) -> tuple[StudyImage, bool]:
    """The image with pixels, and whether they stand for Hounsfield units."""
    if packing.hu:
        read = load_image(replace(image, window=None), HU_WINDOW, packing.size)
        if read.window == HU_WINDOW:  # else it has no such units
            return replace(read, window=image.window), True
    window = MODEL_CT_WINDOW if packing.window is None else window_of(packing.window)
    return replace(load_image(image, window, packing.size), window=None), False


def _described(image: StudyImage, ratio: tuple[float, float]) -> StudyImage:
    """What is still to be said of an image once it is packed."""
    spacing = image.spacing_mm
    scaled = None if spacing is None else (spacing[0] / ratio[1], spacing[1] / ratio[0])
    return StudyImage(
        view=image.view, modality=image.modality, spacing_mm=scaled, window=image.window, place=image.place
    )


def _kept(
    study: Study, chosen: Sequence[int], ratios: Sequence[tuple[float, float]]
) -> tuple[tuple[Box, ...] | None, tuple[Finding, ...] | None]:
    """Boxes and findings of the images that are kept; indices follow."""
    if study.boxes is None:
        return None, study.findings
    boxes: list[Box] = []
    place: dict[int, int] = {}
    for number, box in enumerate(study.boxes):
        if box.image not in chosen:
            continue
        slot = chosen.index(box.image)
        x, y = ratios[slot]
        x1, y1, x2, y2 = box.xyxy
        place[number] = len(boxes)
        boxes.append(replace(box, xyxy=(x1 * x, y1 * y, x2 * x, y2 * y), image=slot))
    if study.findings is None:
        return tuple(boxes), None
    moved = [replace(f, boxes=tuple(place[b] for b in f.boxes if b in place)) for f in study.findings]
    return tuple(boxes), tuple(moved)


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W) float32 -> longest side at most `size`, by area averaging; as `letterbox` scales, so nothing is lost
    where the model's image size is the same."""
    height, width = pixels.shape
    scale = size / max(height, width)
    if scale >= 1:
        return pixels
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, inner, interpolation=cv2.INTER_AREA)


def encode(pixels: np.ndarray, bits: int) -> bytes:
    """(H, W) float32 in [0, 1] -> PNG of 8 or 16 bit grey."""
    grey: np.ndarray = np.round(pixels * (255 if bits == 8 else WHOLE)).astype(np.uint8 if bits == 8 else np.uint16)
    done, data = cv2.imencode(".png", grey)
    if not done:
        raise InputError(f"image of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be written as PNG")
    return data.tobytes()
