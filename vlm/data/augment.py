"""Augmentation that keeps text and boxes true: small rotations, shifts, zooms, contrast, noise and cut-out. Nothing is
ever flipped, because the report says left and right.

Shapes: H W pixels, n boxes.
"""

from __future__ import annotations

import cv2
import numpy as np


def augment(
    pixels: np.ndarray, boxes_xyxy: np.ndarray, rng: np.random.Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """One random variation of an image and its boxes.

    Args:
        pixels: (H, W) uint8. boxes_xyxy: (n, 4) pixels. rng: source of randomness. strength: 1 is up to 8 degrees, 6%
            shift, 12% zoom.

    Returns:
        (H, W) uint8 and (n, 4): each box is the hull of its rotated ellipse, cut to the image.
    """
    height, width = pixels.shape
    angle = rng.uniform(-8, 8) * strength
    # A study with boxes is turned less: the hull of a turned box is looser than the lesion.
    if len(boxes_xyxy):
        angle *= 0.4
    zoom = 1 + rng.uniform(-0.12, 0.12) * strength
    shift = rng.uniform(-0.06, 0.06, 2) * strength * np.array([width, height])
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, zoom)
    matrix = matrix + np.array([[0, 0, shift[0]], [0, 0, shift[1]]])
    out = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
    out = _tone(out, rng, strength)
    return out, _warp_boxes(boxes_xyxy, matrix, width, height)


def _tone(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Gamma, contrast and brightness through one table of 256 levels, then noise."""
    level = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.25, 0.25) * strength)
    level = (level - 0.5) * (1 + rng.uniform(-0.2, 0.2) * strength) + 0.5 + rng.uniform(-0.08, 0.08) * strength
    table = np.clip(level * 255, 0, 255).astype(np.uint8)
    out = cv2.LUT(pixels, table)
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(1, 5) * strength, pixels.shape).astype(np.int16)
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    return out


def _warp_boxes(boxes: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Hull of the ellipse inscribed in each box after an affine map: lesions are round, so the hull of the corners
    would be too wide."""
    if not len(boxes):
        return boxes.reshape(0, 4).astype(np.float32)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    linear = matrix[:, :2]
    centre = centre @ linear.T + matrix[:, 2]
    extent = np.sqrt((half**2) @ (linear**2).T)
    out = np.concatenate([centre - extent, centre + extent], axis=1)
    out[:, 0::2] = out[:, 0::2].clip(0, width)
    out[:, 1::2] = out[:, 1::2].clip(0, height)
    return out.astype(np.float32)
