"""Solids whose line integrals are known in closed form: ellipsoids, and stacks of ellipses.

Millimetres: x to the patient's left, y to the back, z to the feet. A ray of the frontal view runs along y, one of the
lateral view along x; a solid meets it in one interval [low, high], so lengths, unions and differences of solids along a
ray are differences of numbers. The same solids tell whether a voxel lies inside, so radiograph and volume agree.

Legend: `H W` pixels of a view, rows along z; u is the view's horizontal axis, v the one along the ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Axis = Literal["frontal", "lateral"]
Interval = tuple[np.ndarray, np.ndarray]
"""low and high (H, W) float32 in mm along the ray; low > high where the ray passes the solid by."""

_FAR = np.float32(1e4)


@dataclass(frozen=True, slots=True)
class Grid:
    """The pixels of a view.

    Args:
        axis: of the view. u, z: (W,) and (H,) float32 centres of columns and rows in mm.
    """

    axis: Axis
    u: np.ndarray
    z: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.z), len(self.u)

    def empty(self) -> Interval:
        """No solid at all."""
        return np.full(self.shape, _FAR, np.float32), np.full(self.shape, -_FAR, np.float32)

    def columns(self, points: np.ndarray) -> np.ndarray:
        """(P, 3) mm -> (P, 2) pixel coordinates (x, y), the image's outer corner at (0, 0)."""
        step = float(self.u[1] - self.u[0])
        across = points[:, 0 if self.axis == "frontal" else 1]
        return np.stack([(across - self.u[0]) / step + 0.5, (points[:, 2] - self.z[0]) / step + 0.5], 1)


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """An ellipsoid.

    Args:
        centre: x, y, z. radii: before the turn. turn: rotation in radians in the frontal plane (x towards z), and
            about x (y towards z).
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    turn: tuple[float, float] = (0.0, 0.0)

    def matrix(self) -> np.ndarray:
        """(3, 3) Q of (p - c)' Q (p - c) <= 1."""
        a, b = self.turn
        first = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
        second = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        basis = first @ second
        return basis @ np.diag(1 / np.square(self.radii)) @ basis.T

    def extent(self) -> np.ndarray:
        """(3,) half-lengths of the bounding box."""
        return np.sqrt(np.diag(np.linalg.inv(self.matrix())))

    def interval(self, grid: Grid) -> Interval:
        """Where each ray of a view meets the solid: the roots of a quadratic."""
        i, j = (0, 1) if grid.axis == "frontal" else (1, 0)
        q = self.matrix()
        rows, columns = _window(grid, self.centre[i], self.extent()[i], self.centre[2], self.extent()[2])
        low, high = grid.empty()
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return low, high
        du = (grid.u[columns] - np.float32(self.centre[i]))[None, :]
        dz = (grid.z[rows] - np.float32(self.centre[2]))[:, None]
        half_b = np.float32(q[i, j]) * du + np.float32(q[2, j]) * dz
        c = np.float32(q[i, i]) * du**2 + np.float32(2 * q[i, 2]) * du * dz + np.float32(q[2, 2]) * dz**2 - 1
        inner = half_b**2 - np.float32(q[j, j]) * c
        root = np.sqrt(np.maximum(inner, 0))
        middle = np.float32(self.centre[j]) - half_b / np.float32(q[j, j])
        reach = root / np.float32(q[j, j])
        hit = inner > 0
        low[rows, columns] = np.where(hit, middle - reach, _FAR)
        high[rows, columns] = np.where(hit, middle + reach, -_FAR)
        return low, high

    def inside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Squared radius, at most 1 inside, of points given by arrays that broadcast."""
        q = self.matrix()
        d = (x - self.centre[0], y - self.centre[1], z - self.centre[2])
        square = q[0, 0] * d[0] ** 2 + q[1, 1] * d[1] ** 2 + q[2, 2] * d[2] ** 2
        return square + 2 * (q[0, 1] * d[0] * d[1] + q[0, 2] * d[0] * d[2] + q[1, 2] * d[1] * d[2])


@dataclass(frozen=True, slots=True)
class Stack:
    """Ellipses stacked along z, each with its own centre and half-axes: lungs, trunk, aorta, spine.

    Args:
        z: (K,) levels, rising. a, b: (K,) half-axes along x and y. x, y: (K,) centres. power: 2 for ellipses, more for
            rounder rectangles.
    """

    z: np.ndarray
    a: np.ndarray
    b: np.ndarray
    x: np.ndarray
    y: np.ndarray
    power: float = 2.0

    def at(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """a, b, x, y at levels; a is 0 above and below the stack."""
        inside = (z >= self.z[0]) & (z <= self.z[-1])
        values = (np.interp(z, self.z, w).astype(np.float32) for w in (self.a, self.b, self.x, self.y))
        a, b, x, y = values
        return np.where(inside, a, 0).astype(np.float32), b, x, y

    def scaled(self, levels: np.ndarray, share: np.ndarray) -> Stack:
        """The stack with its half-axes multiplied by a share that depends on the level."""
        z = np.unique(np.concatenate([self.z, levels]))
        k = np.interp(z, levels, share)
        a, b, x, y = (np.interp(z, self.z, w) for w in (self.a, self.b, self.x, self.y))
        return Stack(z, a * k, b * k, x, y, self.power)

    def interval(self, grid: Grid) -> Interval:
        """Where each ray of a view meets the solid."""
        a, b, x, y = self.at(grid.z)
        across, along, cu, cv = (a, b, x, y) if grid.axis == "frontal" else (b, a, y, x)
        safe = np.maximum(across, np.float32(1e-3))
        share = np.abs((grid.u[None, :] - cu[:, None]) / safe[:, None])
        if self.power == 2.0:
            reach = np.sqrt(np.maximum(1 - share**2, 0))
        else:
            reach = np.maximum(1 - share ** np.float32(self.power), 0) ** np.float32(1 / self.power)
        reach *= along[:, None]
        hit = (reach > 0) & (a[:, None] > 0) & (b[:, None] > 0)
        return (
            np.where(hit, cv[:, None] - reach, _FAR).astype(np.float32),
            np.where(hit, cv[:, None] + reach, -_FAR).astype(np.float32),
        )

    def inside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Radius to the power, at most 1 inside."""
        a, b, cx, cy = self.at(np.asarray(z, np.float32))
        gone = (a <= 0) | (b <= 0)
        a, b = np.where(gone, 1e-3, a), np.where(gone, 1e-3, b)
        return np.abs((x - cx) / a) ** self.power + np.abs((y - cy) / b) ** self.power


def length(*intervals: Interval) -> np.ndarray:
    """(H, W) length of what the intervals have in common."""
    low, high = intervals[0]
    for other_low, other_high in intervals[1:]:
        low, high = np.maximum(low, other_low), np.minimum(high, other_high)
    return np.maximum(high - low, 0)


def hull(*intervals: Interval) -> Interval:
    """The shortest interval that holds all of them: their union where they touch."""
    low, high = intervals[0]
    for other_low, other_high in intervals[1:]:
        low, high = np.minimum(low, other_low), np.maximum(high, other_high)
    return low, high


def without(solid: Interval, first: Interval, second: Interval) -> np.ndarray:
    """(H, W) length of a solid that is left when two others are taken out of it."""
    return length(solid) - length(solid, first) - length(solid, second) + length(solid, first, second)


def _window(grid: Grid, u: float, half_u: float, z: float, half_z: float) -> tuple[slice, slice]:
    """Rows and columns that a box touches."""
    rows = slice(*np.searchsorted(grid.z, [z - half_z, z + half_z]).tolist())
    columns = slice(*np.searchsorted(grid.u, [u - half_u, u + half_u]).tolist())
    return rows, columns
