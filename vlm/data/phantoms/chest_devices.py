"""Tubes, lines and pacemakers of a drawn chest: curves of metal and plastic, with the place of their tips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm.data.phantoms.chest_body import ChestBody
from vlm.data.phantoms.chest_detail import Curve
from vlm.data.phantoms.chest_findings import Side


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Args:
        name: one of `DEVICES`. side: where it comes from, None in the midline. curves: what is drawn.
        tip_mm: distance that the report states: above the carina for an endotracheal tube; None for others.
    """

    name: str
    side: Side | None
    curves: tuple[Curve, ...]
    tip_mm: float | None = None

    @property
    def label(self) -> str:
        """Wires are no device in the graph: they tell of an operation."""
        return "sternal_wire" if self.name == "sternal wires" else "device"


def make_device(name: str, side: Side | None, body: ChestBody, rng: np.random.Generator) -> Device:
    """Places a device where it belongs.

    Args:
        name: one of `DEVICES`. side: where it comes from. body: the patient. rng: of small variations.
    """
    sign = -1 if side == "right" else 1
    h, d, carina = body.height, body.depth, body.carina
    track_x, track_y = float(body.trachea.x[1]), float(body.trachea.y[1])
    cava = [(-22.0, -12 * d, 0.16 * h), (-24.0, -12 * d, carina - 8)]
    if name == "endotracheal tube":
        above = float(rng.uniform(20, 65))
        x, y = (float(np.interp(carina - above, body.trachea.z, w)) for w in (body.trachea.x, body.trachea.y))
        path = _through((track_x, track_y - 6, -0.46 * h), (track_x, track_y, -0.1 * h), (x, y, carina - above))
        return Device(name, None, (Curve(path, np.full(len(path), 4.6), 0.9, 1.8), _wire(path, 0.9, 4.0)), above)
    if name == "enteric tube":
        gullet = float(np.interp(0.6 * h, body.spine.z, body.spine.y)) - 32
        path = _through(
            (track_x, track_y + 8, -0.46 * h), (4, gullet - 8, 0.1 * h), (6, gullet, 0.5 * h),
            (10, gullet - 4, body.tops[1] - 5),
            (34, 10, body.tops[1] + 28), (56 + rng.normal(0, 6), -6, body.tops[1] + 62),
        )  # fmt: skip
        return Device(name, None, (_wire(path, 1.3, 3.2),))
    if name == "central venous catheter":
        tip = (-22 + rng.normal(0, 2), -12 * d, carina + float(rng.uniform(5, 42)))
        if side == "right":
            path = _through((-48, -6, -0.34 * h), (-40, -14 * d, -0.08 * h), *cava, tip)
        else:
            path = _through((122, -70 * d, 0.03 * h), (70, -52 * d, 0.0), (18, -34 * d, 0.11 * h), cava[1], tip)
        return Device(name, side, (_wire(path, 0.9, 3.0),))
    if name == "chest tube":
        x, _, _ = (float(v) for v in body.wall(np.array(0.62 * h)))
        path = _through(
            (sign * (x + 55), 12, 0.70 * h), (sign * (x + 4), 10, 0.60 * h), (sign * 0.86 * x, 14, 0.42 * h),
            (sign * 0.62 * x, 18, 0.24 * h), (sign * 0.42 * x, 20, 0.11 * h),
        )  # fmt: skip
        return Device(name, side, (Curve(path, np.full(len(path), 3.8), 1.2, 1.6), _wire(path, 1.3, 4.5)))
    if name == "pacemaker":
        return Device(name, side, _pacemaker(sign, body, cava, rng))
    z = np.linspace(0.16, 0.62, 6) * h + rng.normal(0, 2, 6)
    return Device(name, None, tuple(_loop(body, float(level), rng) for level in z))


def _pacemaker(
    sign: int, body: ChestBody, cava: list[tuple[float, float, float]], rng: np.random.Generator
) -> tuple[Curve, ...]:
    h, d = body.height, body.depth
    x, y, z = sign * (104 + rng.normal(0, 5)) * body.scale, -96 * d, 0.20 * h + rng.normal(0, 6)
    angle = np.linspace(0, 2 * np.pi, 16)
    case = [
        Curve(
            np.stack([x + r * 22 * np.cos(angle), np.full(16, y), z + r * 19 * np.sin(angle)], 1), np.full(16, 5.0), 9.0
        )
        for r in (0.80, 0.45, 0.12)
    ]
    vein = [(sign * 112, -80 * d, 0.07 * h), (sign * 64, -54 * d, 0.01 * h), (sign * 20, -32 * d, 0.10 * h)]
    at, k = 0.66 * h, body.heart
    tips = [(30 * k, -52 * d, at + 34 * k)] + [(-16 * k, -34 * d, at - 22)] * int(rng.random() < 0.6)
    leads = []
    for tip in tips:
        bend = (-26 * k, -18 * d, at - 4 if tip[0] < 0 else at + 22)
        points = [(x, y, z - 16), *vein, *cava, bend, *([(2, -34 * d, at + 32)] if tip[0] > 0 else []), tip]
        leads.append(_wire(_through(*points), 0.9, 4.5))
    return (*case, *leads)


def _loop(body: ChestBody, z: float, rng: np.random.Generator) -> Curve:
    """A sternal wire: a small oval with a twist."""
    angle = np.linspace(0.2, 2 * np.pi - 0.2, 18)
    front = float(body.wall(np.array(z))[2] - body.wall(np.array(z))[1]) - 8
    turn = rng.normal(0, 0.2)
    x, u = 7.5 * np.cos(angle), 4.2 * np.sin(angle)
    points = np.stack([x * np.cos(turn) - u * np.sin(turn), front + 3 * np.sin(angle), z + x * np.sin(turn) + u], 1)
    return Curve(points, np.full(18, 0.6), 6.0)


def _through(*points: tuple[float, float, float]) -> np.ndarray:
    """(P, 3) smooth path through points: Catmull-Rom, its ends doubled."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, 9, endpoint=False)[None, :, None]
    before, a, b, after = (p[k : len(p) - 3 + k][:, None] for k in range(4))
    curve = 0.5 * (
        2 * a + (b - before) * t + (2 * before - 5 * a + 4 * b - after) * t**2 + (3 * a - before - 3 * b + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 3), p[-1:]])


def _wire(path: np.ndarray, radius: float, thick: float) -> Curve:
    return Curve(path, np.full(len(path), radius), thick)
