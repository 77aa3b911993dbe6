"""Drawing with soft edges on a slice in Hounsfield units: the phantom's pencil.

Millimetre coordinates: the origin is the middle of the body, x grows to the viewer's right (the patient's left), y
grows down (the patient's back). Legend: `P` points of an outline, `H W` pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

_SHIFT = 4  # OpenCV takes fixed-point coordinates: 1/16 pixel
_HALO = 2  # pixels around a shape that its antialiased edge may touch


class Canvas:
    """A slice under construction.

    Args:
        size: side in pixels.
        spacing: mm per pixel.
        centre: (x, y) in pixels of the body's middle.
        angle: rotation of the body in radians.
    """

    def __init__(self, size: int, spacing: float, centre: tuple[float, float], angle: float = 0.0) -> None:
        self.size = size
        self.spacing = spacing
        self.centre = np.array(centre)
        cos, sin = np.cos(angle), np.sin(angle)
        self._turn = np.array([[cos, -sin], [sin, cos]])
        self.hu = np.full((size, size), -1000.0, np.float32)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Millimetres (P, 2) -> pixels (P, 2) in the convention of `vlm.types`: the image's outer corner is (0, 0)."""
        return np.asarray(points, float) @ self._turn.T / self.spacing + self.centre

    def mask(self, points: np.ndarray, scale: int = 1) -> np.ndarray:
        """Coverage (H, W) uint8 of a closed outline, 255 inside, soft at the edge."""
        canvas = np.zeros((self.size * scale, self.size * scale), np.uint8)
        cv2.fillPoly(canvas, [self._fixed(points, scale=scale)], 255, cv2.LINE_AA, _SHIFT)
        return canvas

    def patch(self, points: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray] | None:
        """The rows and columns that an outline touches, and its coverage (h, w) float32 there; None when outside."""
        return self.patch_pixels(self.to_pixels(points))

    def to_mm(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (P, 2) -> millimetres (P, 2)."""
        return (np.asarray(pixels, float) - self.centre) @ self._turn * self.spacing

    def patch_pixels(self, pixels: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray] | None:
        """As `patch`, for an outline in pixels."""
        low = np.maximum(np.floor(pixels.min(0)).astype(int) - _HALO, 0)
        high = np.minimum(np.ceil(pixels.max(0)).astype(int) + _HALO, self.size)
        width, height = high - low
        if width <= 0 or height <= 0:
            return None
        canvas = np.zeros((height, width), np.uint8)
        fixed = np.round((pixels - low - 0.5) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_AA, _SHIFT)
        return (slice(low[1], high[1]), slice(low[0], high[0])), canvas.astype(np.float32) / 255

    def fill(self, points: np.ndarray, value: float, opacity: float = 1.0) -> None:
        """Paints the inside of an outline (P, 2) in mm with a value in HU."""
        drawn = self.patch(points)
        if drawn is not None:
            where, alpha = drawn
            target = self.hu[where]
            target += (alpha * np.float32(opacity)) * (np.float32(value) - target)

    def shell(self, points: np.ndarray, thickness: float, outer: float, inner: float) -> None:
        """Paints an outline with a rim: cortical bone around marrow, or a wall around a lumen."""
        self.fill(points, outer)
        self.fill(shrink(points, thickness), inner)

    def _fixed(self, points: np.ndarray, scale: int = 1) -> np.ndarray:
        pixels = self.to_pixels(points) * scale
        return np.round((pixels - 0.5) * (1 << _SHIFT)).astype(np.int32)


def smooth(points: list[tuple[float, float]] | np.ndarray, steps: int = 8) -> np.ndarray:
    """A closed Catmull-Rom curve (P * steps, 2) through the points."""
    p = np.asarray(points, float)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    before, a, b, after = (np.roll(p, k, axis=0)[:, None] for k in (1, 0, -1, -2))
    curve = 0.5 * (
        2 * a + (b - before) * t + (2 * before - 5 * a + 4 * b - after) * t**2 + (3 * a - before - 3 * b + after) * t**3
    )
    return curve.reshape(-1, 2)


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, steps: int = 40) -> np.ndarray:
    """Outline (steps, 2) of an ellipse; `turn` in radians, clockwise on the screen."""
    t = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    u, v = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], 1)


def blob(
    rng: np.random.Generator, x: float, y: float, rx: float, ry: float, rough: float, steps: int = 48
) -> np.ndarray:
    """Outline of an irregular ellipse: its radius varies by about `rough` (a fraction) in the first five harmonics."""
    t = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    k = np.arange(2, 7)[:, None]
    wave = (rng.normal(0, 1, (5, 1)) / k**0.7 * np.cos(k * t + rng.uniform(0, 2 * np.pi, (5, 1)))).sum(0)
    radius = 1 + rough * wave
    turn = rng.uniform(0, np.pi) if rx == ry else 0.0
    return np.stack([x + rx * radius * np.cos(t + turn), y + ry * radius * np.sin(t + turn)], 1)


def tube(path: np.ndarray, radius: float | np.ndarray, pointed: bool = False) -> np.ndarray:
    """Outline of a band along a path (P, 2) with a radius in mm (one, or one a point); `pointed` rounds both ends."""
    path = np.asarray(path, float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    width = np.broadcast_to(np.asarray(radius, float), (len(path),))
    if pointed:
        s = np.linspace(-1, 1, len(path))
        width = width * np.sqrt(np.clip(1 - np.abs(s) ** 4, 0, 1))
    return np.concatenate([path + normal * width[:, None], (path - normal * width[:, None])[::-1]])


def curve_between(
    a: np.ndarray | tuple[float, float], b: np.ndarray | tuple[float, float], bend: float, steps: int = 10
) -> np.ndarray:
    """A bent path (steps, 2) from a to b; `bend` is the height of its bow as a fraction of its length."""
    t = np.linspace(0, 1, steps)[:, None]
    start, end = np.asarray(a, float), np.asarray(b, float)
    along = end - start
    across = np.array([-along[1], along[0]])
    return start + along * t + across * (bend * 4 * t * (1 - t))


def shrink(points: np.ndarray, by: float | np.ndarray) -> np.ndarray:
    """Moves every point of a closed outline `by` mm inward along its normal (outward when negative)."""
    along = np.roll(points, -1, 0) - np.roll(points, 1, 0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    x, y = points[:, 0], points[:, 1]
    clockwise = np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) > 0
    return points + normal * (np.reshape(by, (-1, 1)) * (1 if clockwise else -1))


def cloud(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (size, size) float32 with about `cells` features a side, mean 0 and deviation near 1."""
    grid = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    big = cv2.resize(grid, (size * (cells + 3) // cells + 1,) * 2, interpolation=cv2.INTER_CUBIC)
    return big[:size, :size] * np.float32(1.3)
