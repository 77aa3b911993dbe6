"""The lungs' inside: a tree of tapering vessels from each hilum, small airways beside them, the faint fissure."""

from __future__ import annotations

import cv2
import numpy as np

from vlm.data.phantoms.chest_patient import Chest
from vlm.data.phantoms.draw import Canvas

_FINE = 2  # vessels are drawn on a grid twice as fine, for sub-pixel widths


def draw_vessels(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Coverage (H, W) float32 of the lung vessels in this slice."""
    layer = np.zeros((canvas.size * _FINE, canvas.size * _FINE), np.uint8)
    starts, ends, radii = _tree(chest, rng)
    dots, dot_radii = _crossings(chest, rng)
    starts, ends = np.concatenate([starts, dots]), np.concatenate([ends, dots + rng.normal(0, 0.8, dots.shape)])
    radii = np.concatenate([radii, dot_radii])
    order = np.argsort(radii)
    a = np.round((canvas.to_pixels(starts[order]) * _FINE - 0.5) * 16).astype(np.int32)
    b = np.round((canvas.to_pixels(ends[order]) * _FINE - 0.5) * 16).astype(np.int32)
    radii = radii[order]
    widths = np.maximum(1, np.rint(2 * radii / canvas.spacing * _FINE)).astype(int).tolist()
    shades = np.clip(255 * np.minimum(1.0, 0.25 + radii / 1.1), 40, 255).astype(int).tolist()
    for p, q, width, shade in zip(a.tolist(), b.tolist(), widths, shades, strict=True):
        cv2.line(layer, p, q, shade, width, cv2.LINE_AA, 4)
    small = cv2.resize(layer, (canvas.size, canvas.size), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) * np.float32(1 / 255)


def _hilum(chest: Chest, side: int) -> np.ndarray:
    low = float(np.clip((chest.level - 0.45) / 0.5, -0.5, 1))
    return np.array(chest.at(side * (0.34 - 0.04 * low), 0.26 - 0.14 * max(0.0, low)))


def _tree(chest: Chest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments of both vessel trees: starts (N, 2), ends (N, 2), radii (N,) in mm.

    Whole generations grow at once. A branch leaves the slice with a probability that falls with its radius, which gives
    the broken lines and dots of a thin section.
    """
    central = float(np.exp(-(((chest.level - 0.48) / 0.25) ** 2)))
    position, angle, radius = [], [], []
    for side in (-1, 1):
        count = int(5 + 4 * central)
        fan = np.linspace(-1.25, 1.25, count) + rng.normal(0, 0.12, count)
        angle.append(fan if side > 0 else np.pi - fan)
        position.append(np.repeat(_hilum(chest, side)[None], count, 0))
        radius.append(rng.uniform(1.0, 1.7 + 1.3 * central, count))
    p, heading, r = np.concatenate(position), np.concatenate(angle), np.concatenate(radius)
    within = rng.random(len(p)) < 0.75
    starts, ends, radii = [], [], []
    for _ in range(26):
        step = rng.uniform(3.0, 6.0, len(p))
        heading = heading + rng.normal(0, 0.16, len(p))
        q = p + np.stack([np.cos(heading), np.sin(heading)], 1) * step[:, None]
        # A thick vessel stays in the slice for longer than a thin one, which crosses it within a few millimetres.
        turn_over = rng.random(len(p)) < np.clip(0.5 - 0.16 * r, 0.12, 0.5)
        within = np.where(turn_over, rng.random(len(p)) < 0.42, within)
        starts.append(p[within])
        ends.append(q[within])
        radii.append(r[within])
        p, r = q, r * rng.uniform(0.89, 0.97, len(p))
        alive = (r > 0.32) & (np.abs(p[:, 0]) < chest.half_width * 1.02)
        p, heading, r, within = p[alive], heading[alive], r[alive], within[alive]
        fork = rng.random(len(p)) < 0.27
        if fork.any() and len(p) < 260:
            turn = rng.uniform(0.35, 0.9, int(fork.sum())) * rng.choice([-1, 1], int(fork.sum()))
            within = np.concatenate([within, rng.random(int(fork.sum())) < 0.5])
            p = np.concatenate([p, p[fork]])
            heading = np.concatenate([heading, heading[fork] + turn])
            r = np.concatenate([r, r[fork] * rng.uniform(0.55, 0.85, int(fork.sum()))])
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(radii)


def _crossings(chest: Chest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vessels cut across: dots (N, 2) with radii that fall with the distance from the hilum."""
    count = int(rng.integers(90, 160))
    points = np.stack(
        [
            rng.uniform(-chest.half_width, chest.half_width, count),
            chest.middle + rng.uniform(-chest.half_depth, chest.half_depth, count),
        ],
        1,
    )
    near = np.minimum(*(np.linalg.norm(points - _hilum(chest, s), axis=1) for s in (-1, 1)))
    radii = np.clip(2.6 * np.exp(-near / 38) * rng.uniform(0.5, 1.3, count) + rng.uniform(0.2, 0.6, count), 0.25, 3.2)
    return points, radii


def draw_airways(canvas: Canvas, chest: Chest, rng: np.random.Generator, lung: np.ndarray) -> None:
    """Cuts a few bronchi (dark lumen, thin wall) into the lung layer (H, W) near the hila."""
    if not 0.25 < chest.level < 0.85:
        return
    for side in (-1, 1):
        for _ in range(int(rng.integers(2, 6))):
            reach, turn = rng.uniform(8, 42), rng.uniform(-1.2, 1.2)
            x, y = _hilum(chest, side) + reach * np.array([side * np.cos(turn), np.sin(turn)])
            px, py = canvas.to_pixels(np.array([[x, y]]))[0]
            radius = float(np.clip(3.4 * np.exp(-reach / 40) * rng.uniform(0.7, 1.2), 1.0, 3.2)) / canvas.spacing
            axes = (radius * rng.uniform(1.0, 1.6), radius)
            angle = float(rng.uniform(0, 180))
            at = (round((px - 0.5) * 16), round((py - 0.5) * 16))
            for grow, value in ((1.0, -250.0), (0.0, -975.0)):
                size = (round((axes[0] + grow) * 16), round((axes[1] + grow) * 16))
                cv2.ellipse(lung, at, size, angle, 0, 360, value, -1, cv2.LINE_8, 4)


def draw_fissures(canvas: Canvas, chest: Chest, rng: np.random.Generator, lung: np.ndarray) -> None:
    """Adds the oblique fissures as a hair line of about 60 HU above the parenchyma."""
    if not 0.28 < chest.level < 0.9:
        return
    layer = np.zeros(lung.shape, np.uint8)
    for side, y in zip((-1, 1), chest.fissure, strict=True):
        x = np.linspace(0.25, 1.05, 14) * chest.half_width * side
        path = np.stack([x, fissure_y(chest, np.abs(x), y)], 1)
        pixels = np.round((canvas.to_pixels(path) - 0.5) * 16).astype(np.int32)
        cv2.polylines(layer, [pixels], False, 255, 1, cv2.LINE_AA, 4)
    lung += layer.astype(np.float32) * np.float32(rng.uniform(40, 110) / 255)


def fissure_y(chest: Chest, distance: np.ndarray | float, middle: float) -> np.ndarray | float:
    """y in mm of the oblique fissure at a distance from the midline: it bows forward between hilum and wall."""
    u = (np.asarray(distance) / chest.half_width - 0.6) / 0.4
    return middle + 0.10 * chest.half_depth * (u**2 - 0.5)
