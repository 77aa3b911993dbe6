"""Geometry between an image and the square that the model sees: letterboxing, and boxes back and forth.

Coordinates are those of `vlm.types.Box`: outer corners, so a box scales by the ratio of the sizes and no half pixel is
added. Worked example: a 200x100 (width x height) image put into a square of 50 is scaled by 0.25 to 50x25 and lies 12
pixels below the top; the box (40, 40, 80, 80) of the image is (10, 22, 20, 32) in the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies inside the model's square.

    Args:
        scale: model pixels per image pixel, before the sides are rounded to whole pixels.
        pad_x, pad_y: empty columns at the left and empty rows at the top.
        width, height: of the image, in its own pixels.
    """

    scale: float
    pad_x: int
    pad_y: int
    width: int
    height: int

    @property
    def inner(self) -> tuple[int, int]:
        """(width, height) of the image inside the square."""
        return max(1, round(self.width * self.scale)), max(1, round(self.height * self.scale))

    def _ratio(self) -> tuple[float, float]:
        width, height = self.inner
        return width / self.width, height / self.height

    def _offset(self) -> np.ndarray:
        return np.array([self.pad_x, self.pad_y] * 2, np.float32)

    def to_model(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Moves boxes (N, 4) from image pixels to the square's pixels."""
        rx, ry = self._ratio()
        boxes = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4)
        return boxes * np.array([rx, ry, rx, ry], np.float32) + self._offset()

    def to_image(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Moves boxes (N, 4) from the square's pixels to image pixels, clipped to the image."""
        rx, ry = self._ratio()
        boxes = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4)
        boxes = (boxes - self._offset()) / np.array([rx, ry, rx, ry], np.float32)
        return boxes.clip(0, np.array([self.width, self.height] * 2, np.float32))


def letterbox(
    pixels: np.ndarray, size: int, fill: float = 0.0, full_size: tuple[int, int] | None = None
) -> tuple[np.ndarray, Placement]:
    """Scales an image into a square without changing its proportions, centred, the rest filled with black.

    Args:
        pixels: (H, W) float32 in [0, 1].
        size: side of the square in pixels.
        fill: value outside the image.
        full_size: (width, height) that boxes count in, when the pixels were decoded at reduced resolution.

    Returns:
        (size, size) float32, and the placement that maps boxes.
    """
    width, height = full_size or pixels.shape[::-1]
    scale = size / max(height, width)
    placement = Placement(scale, 0, 0, width, height)
    inner_w, inner_h = placement.inner
    pad_x, pad_y = (size - inner_w) // 2, (size - inner_h) // 2
    placement = Placement(scale, pad_x, pad_y, width, height)
    # Area averaging when shrinking: linear interpolation would drop small calcifications between its samples.
    method = cv2.INTER_AREA if max(inner_w, inner_h) < max(pixels.shape) else cv2.INTER_LINEAR
    fits = pixels.shape == (inner_h, inner_w)
    inner = pixels if fits else cv2.resize(pixels, (inner_w, inner_h), interpolation=method)
    if (inner_w, inner_h) == (size, size):
        return np.ascontiguousarray(inner, dtype=np.float32), placement
    square = np.full((size, size), fill, dtype=np.float32)
    square[pad_y : pad_y + inner_h, pad_x : pad_x + inner_w] = inner
    return square, placement
