"""Augmentation that keeps text and boxes true: small rotations, shifts, crops, zooms, contrast, noise, cut-out, mixing.

Nothing is flipped here, because the report says left and right; `vlm.data.mirror` flips a study with its words. A
variation that would push a box out of the picture is drawn again, weaker. Cut-out hides at most a fifth of a box and
never more than a twentieth of the picture, so that nothing which the report names vanishes. Mixing blends in a faint
picture of somebody healthy in the same view: it adds no finding and takes none away.

Shapes: H W pixels, C channels (windows of one CT), n boxes.
"""

from __future__ import annotations

import cv2
import numpy as np

WEAKER = (1.0, 0.7, 0.4, 0.2)
"""Strengths that are tried in turn, until every box keeps `KEPT` of its area."""
KEPT = 0.75
CUTS, CUT_SIDE, CUT_OF_BOX = 3, 0.125, 0.2
LEAST_OWN = 0.7


def augment(
    pixels: np.ndarray, boxes_xyxy: np.ndarray, rng: np.random.Generator, strength: float = 1.0, cuts: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """One random variation of an image and its boxes.

    Args:
        pixels: (H, W) or (C, H, W) uint8. boxes_xyxy: (n, 4) pixels. rng: source of randomness.
        strength: 1 is up to 8 degrees, 6% shift, 12% zoom. cuts: share of images with cut-out.

    Returns:
        uint8 of the same shape and (n, 4): each box is the hull of its rotated ellipse, cut to the image.
    """
    height, width = pixels.shape[-2:]
    matrix, boxes = np.eye(2, 3), boxes_xyxy.reshape(-1, 4).astype(np.float32)
    for weaker in WEAKER:
        tried = _matrix(width, height, len(boxes_xyxy) > 0, strength * weaker, rng)
        moved, left = _warp_boxes(boxes_xyxy, tried, width, height)
        if (left >= KEPT).all():
            matrix, boxes = tried, moved
            break
    planes = pixels if pixels.ndim == 3 else pixels[None]
    out = [cv2.warpAffine(p, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0) for p in planes]
    shown = _tone(np.stack(out), rng, strength)
    if cuts and rng.random() < cuts:
        shown = cut_out(shown, boxes, rng)
    return shown.reshape(pixels.shape), boxes


def cut_out(pixels: np.ndarray, boxes_xyxy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blackens up to three small squares; one that would hide more than a fifth of a box is left out.

    Args:
        pixels: (..., H, W) uint8. boxes_xyxy: (n, 4).
    """
    height, width = pixels.shape[-2:]
    out = pixels.copy()
    hidden = np.zeros(len(boxes_xyxy))
    area = np.maximum((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1]), 1e-6)
    for _ in range(int(rng.integers(1, CUTS + 1))):
        side = max(1, int(rng.uniform(0.3, 1) * CUT_SIDE * min(height, width)))
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        across = np.minimum(boxes_xyxy[:, 2], x + side) - np.maximum(boxes_xyxy[:, 0], x)
        down = np.minimum(boxes_xyxy[:, 3], y + side) - np.maximum(boxes_xyxy[:, 1], y)
        now = hidden + across.clip(0) * down.clip(0) / area
        if (now <= CUT_OF_BOX).all():
            out[..., y : y + side, x : x + side] = 0
            hidden = now
    return out


def mix(pixels: np.ndarray, healthy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blends in up to 30% of a picture without any finding, of the same view and size."""
    own = rng.uniform(LEAST_OWN, 1.0)
    return np.rint(own * pixels + (1 - own) * healthy).astype(np.uint8)


def _matrix(width: int, height: int, boxed: bool, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A random (2, 3) affine map. A picture with boxes is turned less: the hull of a turned box is looser than the
    lesion."""
    angle = rng.uniform(-8, 8) * strength * (0.4 if boxed else 1.0)
    zoom = 1 + rng.uniform(-0.12, 0.12) * strength
    shift = rng.uniform(-0.06, 0.06, 2) * strength * np.array([width, height])
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, zoom)
    return matrix + np.array([[0, 0, shift[0]], [0, 0, shift[1]]])


def _tone(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Gamma, contrast and brightness through one table of 256 levels, then noise."""
    level = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.25, 0.25) * strength)
    level = (level - 0.5) * (1 + rng.uniform(-0.2, 0.2) * strength) + 0.5 + rng.uniform(-0.08, 0.08) * strength
    table = np.clip(level * 255, 0, 255).astype(np.uint8)
    out = cv2.LUT(pixels.reshape(-1, pixels.shape[-1]), table).reshape(pixels.shape)
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(1, 5) * strength, pixels.shape).astype(np.int16)
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    return out  # type: ignore[no-any-return]


def _warp_boxes(boxes: np.ndarray, matrix: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """(Hull of the ellipse inscribed in each box after an affine map, share of it that is inside the picture): lesions
    are round, so the hull of the corners would be too wide. The share is that of what was inside before."""
    if not len(boxes):
        return boxes.reshape(0, 4).astype(np.float32), np.ones(0)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    linear = matrix[:, :2]
    centre = centre @ linear.T + matrix[:, 2]
    extent = np.sqrt((half**2) @ (linear**2).T)
    whole = np.concatenate([centre - extent, centre + extent], axis=1)
    out = whole.copy()
    out[:, 0::2] = out[:, 0::2].clip(0, width)
    out[:, 1::2] = out[:, 1::2].clip(0, height)
    return out.astype(np.float32), _area(out) / np.maximum(_area(whole), 1e-6)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])  # type: ignore[no-any-return]
