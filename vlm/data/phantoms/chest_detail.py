"""The fine structures of a projected chest: ribs, clavicles, shoulder blades, lung vessels, devices.

They are curves in three dimensions, drawn as bands whose brightness is the length that a ray runs in them. One set of
curves gives both views.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from vlm.data.phantoms.chest_body import ChestBody
from vlm.data.phantoms.solids import Grid

_SHIFT = 4
UNIT = 6.0
"""Grey levels of a layer a millimetre that a ray runs in the structure."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A band in space.

    Args:
        points: (P, 3) mm. radius: (P,) mm. thick: mm that a ray runs in it where it crosses it square.
        rim: how much denser the rim is than the middle, 1 for a solid band.
    """

    points: np.ndarray
    radius: np.ndarray
    thick: float
    rim: float = 1.0


@dataclass(slots=True)
class Details:
    """Curves by the layer that they are drawn in; curves of one layer hide one another, layers add up."""

    bones: dict[str, list[Curve]] = field(default_factory=dict)
    vessels: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    airways: list[Curve] = field(default_factory=list)


def draw_curves(curves: list[Curve], grid: Grid, spread: bool = True) -> np.ndarray:
    """(H, W) float32 mm along the ray.

    Args:
        curves: to draw. grid: of the view, in full resolution. spread: a ray that runs along a curve gathers more.
    """
    layer = np.zeros(grid.shape, np.uint8)
    step = float(grid.u[1] - grid.u[0])
    for curve in curves:
        pixels = np.round((grid.columns(curve.points) - 0.5) * (1 << _SHIFT)).astype(np.int32)
        along = np.diff(curve.points, axis=0)
        ray = 1 if grid.axis == "frontal" else 0
        flat = np.linalg.norm(np.delete(along, ray, axis=1), axis=1)
        gain = (
            np.clip(np.linalg.norm(along, axis=1) / np.maximum(flat, 1e-3), 1, 2.6) if spread else np.ones(len(along))
        )
        for share, value in ((1.0, curve.rim), (0.62, 1.0)) if curve.rim != 1.0 else ((1.0, 1.0),):
            widths = np.maximum(1, np.rint(2 * curve.radius[1:] * share / step)).astype(int).tolist()
            shades = np.clip(gain * curve.thick * value * UNIT, 1, 255).astype(int).tolist()
            for p, q, width, shade in zip(pixels[:-1].tolist(), pixels[1:].tolist(), widths, shades, strict=True):
                cv2.line(layer, p, q, shade, width, cv2.LINE_8, _SHIFT)
    return cv2.GaussianBlur(layer, (0, 0), 0.9).astype(np.float32) * np.float32(1 / UNIT)


def skeleton(body: ChestBody, rng: np.random.Generator) -> dict[str, list[Curve]]:
    """Ribs in layers by side and half, clavicles, shoulder blades, sternum."""
    first = -0.045 * body.height + rng.normal(0, 2)
    pitch = body.height * 0.0905 * rng.normal(1, 0.015)
    out: dict[str, list[Curve]] = {f"{half} {side}": [] for half in ("back", "front") for side in ("right", "left")}
    for side, name in ((-1, "right"), (1, "left")):
        for i in range(11):
            drop = float(np.interp(i, [0, 2, 7, 10], [24, 52, 92, 78])) + rng.normal(0, 2)
            points = _rib(body, side, first + i * pitch, drop, float(np.interp(i, [0, 1, 7, 10], [2.2, 2.5, 2.5, 1.7])))
            radius = np.full(len(points), float(np.interp(i, [0, 3, 10], [4.0, 5.6, 4.8])))
            half = int(len(points) * min(1.0, 1.62 / float(np.interp(i, [0, 1, 7, 10], [2.2, 2.5, 2.5, 1.7]))))
            thick = 4.2 * body.bone
            out[f"back {name}"].append(Curve(points[: half + 1], radius[: half + 1], thick, 1.45))
            if half < len(points) - 2:
                out[f"front {name}"].append(Curve(points[half:], radius[half:] * 1.1, 0.8 * thick, 1.35))
    out["clavicles"] = [_clavicle(body, side, rng) for side in (-1, 1)]
    out["blades"] = [_blade(body, side) for side in (-1, 1)]
    z = np.linspace(0.10, 0.72, 8) * body.height
    front = np.interp(z, z, body.wall(z)[2] - body.wall(z)[1]) - 6
    out["sternum"] = [Curve(np.stack([np.zeros(8), front, z], 1), np.full(8, 6.0), 5.0 * body.bone, 1.3)]
    return out


def _rib(body: ChestBody, side: int, z0: float, drop: float, end: float) -> np.ndarray:
    """From the spine round the wall to the front: angle 0 at the back, pi / 2 at the flank."""
    angle = np.linspace(0.12, end, 15)
    z = z0 + drop * (1 - np.cos(angle)) / 2 - 7 * np.exp(-(((angle - 0.4) / 0.35) ** 2))
    a, b, y = body.wall(z)
    low = np.clip(z0 / 30, 0, 1)  # the first ribs run round the apex, not over it
    a, b = np.maximum(a, 52 + 14 * low), np.maximum(b, 34)
    return np.stack([side * (a + 3) * np.sin(angle) ** 0.85, y + (b + 3) * np.cos(angle), z], 1)


def _clavicle(body: ChestBody, side: int, rng: np.random.Generator) -> Curve:
    t = np.linspace(0, 1, 10)
    high = 0.045 * body.height + rng.normal(0, 3)
    x = side * (16 + 138 * body.scale * t)
    y = -62 * body.depth + 62 * t - 12 * np.sin(2 * np.pi * t)
    z = high - 34 * t + 7 * np.sin(2 * np.pi * t)
    return Curve(np.stack([x, y, z], 1), np.interp(t, [0, 0.2, 0.6, 1], [8, 5.2, 5.0, 6.5]), 5.4 * body.bone, 1.5)


def _blade(body: ChestBody, side: int) -> Curve:
    """The inner border of the shoulder blade, as far as it is seen."""
    t = np.linspace(0, 1, 8)
    x = side * (148 - 16 * np.sin(np.pi * t) + 6 * t) * body.scale
    return Curve(
        np.stack([x, 70 * body.depth + 12 * t, (0.02 + 0.50 * t) * body.height], 1), np.full(8, 3.2), 2.6 * body.bone
    )


def vessel_tree(body: ChestBody, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lung vessels: starts (N, 3), ends (N, 3) in mm and radii (N,) in mm; whole generations grow at once."""
    position, heading, radius = [], [], []
    for side in (-1, 1):
        count = 15
        hilum = np.array([side * 30.0, 4.0, body.carina + (24 if side < 0 else 14)])
        angle = np.linspace(-1.35, 1.5, count) + rng.normal(0, 0.1, count)
        back = rng.normal(0, 0.55, count)
        way = np.stack([side * np.cos(angle) * np.cos(back), np.sin(back), np.sin(angle) * np.cos(back)], 1)
        heading.append(way)
        position.append(np.repeat(hilum[None], count, 0) + rng.normal(0, 5, (count, 3)))
        radius.append(rng.uniform(2.0, 4.6, count) * np.where(np.sin(angle) > 0.2, 1.15, 0.85))
    p, d, r = np.concatenate(position), np.concatenate(heading), np.concatenate(radius)
    starts, ends, radii = [], [], []
    for _ in range(22):
        step = rng.uniform(6, 10, len(p))[:, None]
        d = d + rng.normal(0, 0.14, d.shape)
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        q = p + d * step
        starts.append(p)
        ends.append(q)
        radii.append(r)
        p, r = q, r * rng.uniform(0.84, 0.93, len(p))
        alive = r > 0.42
        p, d, r = p[alive], d[alive], r[alive]
        if not len(p):
            break
        fork = rng.random(len(p)) < 0.34
        if fork.any() and len(p) < 500:
            turn = d[fork] + rng.normal(0, 0.55, (int(fork.sum()), 3))
            p, d = np.concatenate([p, p[fork]]), np.concatenate([d, turn])
            r = np.concatenate([r, r[fork] * rng.uniform(0.6, 0.9, int(fork.sum()))])
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(radii)


def draw_vessels(tree: tuple[np.ndarray, np.ndarray, np.ndarray], grid: Grid) -> np.ndarray:
    """(H, W) float32 mm of vessel along the ray."""
    starts, ends, radii = tree
    order = np.argsort(radii)
    a = np.round((grid.columns(starts[order]) - 0.5) * 16).astype(np.int32).tolist()
    b = np.round((grid.columns(ends[order]) - 0.5) * 16).astype(np.int32).tolist()
    step = float(grid.u[1] - grid.u[0])
    ray = 1 if grid.axis == "frontal" else 0
    along = (ends - starts)[order]
    flat = np.linalg.norm(np.delete(along, ray, axis=1), axis=1)
    gain = np.clip(np.linalg.norm(along, axis=1) / np.maximum(flat, 1e-3), 1, 2.5)
    widths = np.maximum(1, np.rint(2 * radii[order] / step)).astype(int).tolist()
    shades = np.clip(2 * radii[order] * gain * 14, 14, 255).astype(int).tolist()
    layer = np.zeros(grid.shape, np.uint8)
    for p, q, width, shade in zip(a, b, widths, shades, strict=True):
        cv2.line(layer, p, q, shade, width, cv2.LINE_8, 4)
    return cv2.GaussianBlur(layer, (0, 0), 0.8).astype(np.float32) * np.float32(1 / 14)


def bronchi(body: ChestBody) -> list[Curve]:
    """The main bronchi, full of air."""
    start = np.array([float(body.trachea.x[-1]), float(body.trachea.y[-1]), body.carina])
    out = []
    for side, ends in ((-1, ((-14, 0, 20), (-31, 4, 36), (-38, 6, 62))), (1, ((20, 2, 15), (44, 6, 27), (50, 10, 52)))):
        points = np.stack([start, *(start + np.array(e) for e in ends)])
        t = np.linspace(0, len(points) - 1, 10)
        path = np.stack([np.interp(t, np.arange(len(points)), points[:, k]) for k in range(3)], 1)
        out.append(Curve(path, np.linspace(7.5, 4.0, 10), 10.0 if side < 0 else 9.0))
    return out
