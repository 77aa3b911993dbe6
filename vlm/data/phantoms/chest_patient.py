"""The phantom's patient: sizes, habitus, contrast medium and the level of the slice, and the key levels they come from.

Hounsfield values are textbook ones: fat -100, muscle 50, lung -860, blood 40 or, with contrast medium, 150 to 320,
marrow 150 to 250, cortex 600 to 900.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm.data.phantoms.draw import smooth

FAT, MUSCLE, LUNG = -103.0, 52.0, -865.0
LEVELS = np.array([0.10, 0.20, 0.30, 0.42, 0.55, 0.72, 0.95])
_CAVITY_A = np.array([0.60, 0.76, 0.88, 0.95, 0.99, 1.0, 1.0])
_CAVITY_B = np.array([0.74, 0.84, 0.91, 0.96, 1.0, 1.0, 0.98])
# Half-widths of the mediastinum as fractions of the cavity's half-width, at depths d: 1 = behind the sternum, 0 = in
# front of the vertebral body, below 0 = beside it. One row a level of LEVELS.
_DEPTHS = np.array([1.05, 0.8, 0.6, 0.4, 0.2, 0.0, -0.25, -0.8])
_RIGHT = np.array(
    [
        [0.10, 0.26, 0.36, 0.38, 0.34, 0.27, 0.27, 0.30],
        [0.04, 0.12, 0.27, 0.31, 0.27, 0.21, 0.22, 0.24],
        [0.02, 0.06, 0.21, 0.28, 0.23, 0.18, 0.19, 0.21],
        [0.02, 0.07, 0.22, 0.33, 0.33, 0.20, 0.19, 0.20],
        [0.03, 0.15, 0.31, 0.38, 0.31, 0.18, 0.19, 0.20],
        [0.12, 0.30, 0.42, 0.44, 0.31, 0.18, 0.19, 0.20],
        [0.28, 0.42, 0.47, 0.42, 0.28, 0.18, 0.19, 0.20],
    ]
)
_LEFT = np.array(
    [
        [0.10, 0.26, 0.36, 0.40, 0.38, 0.32, 0.27, 0.30],
        [0.04, 0.13, 0.26, 0.33, 0.34, 0.30, 0.23, 0.24],
        [0.03, 0.10, 0.22, 0.31, 0.35, 0.33, 0.24, 0.21],
        [0.03, 0.11, 0.29, 0.36, 0.37, 0.33, 0.25, 0.20],
        [0.05, 0.27, 0.43, 0.47, 0.38, 0.32, 0.25, 0.20],
        [0.20, 0.47, 0.61, 0.65, 0.50, 0.33, 0.25, 0.20],
        [0.34, 0.60, 0.70, 0.67, 0.47, 0.33, 0.25, 0.20],
    ]
)


@dataclass(slots=True)
class Chest:
    """One patient at one level.

    Args:
        level: 0 at the apex, 1 at the base.
        half_width, half_depth: of the thoracic cavity in mm; `middle` is the y of its centre.
        front, depth: y of the vertebral body's front, and mm from there to the sternum.
        contrast: HU of blood in the left heart; 40 without contrast medium.
        fissure: (right, left) y in mm of the oblique fissure at the lung's middle; lower lobe behind it.
    """

    level: float
    body_a: float
    body_b: float
    fat: float
    half_width: float
    half_depth: float
    middle: float
    front: float
    depth: float
    contrast: float
    bone: float
    woman: bool
    fissure: tuple[float, float]

    def at(self, u: float, d: float) -> tuple[float, float]:
        """(x, y) in mm of a place u half-widths to the patient's left and d depths in front of the spine."""
        return u * self.half_width, self.front - d * self.depth

    def blood(self, venous: bool = False) -> float:
        """HU of blood; with contrast medium the right side of the heart is a little brighter."""
        return self.contrast * (1.12 if venous and self.contrast > 60 else 1.0)


def make_chest(rng: np.random.Generator) -> Chest:
    """Draws a patient and a level."""
    level = float(rng.uniform(0.13, 0.93))
    body_a, body_b = rng.normal(163, 11), rng.normal(113, 9)
    fat = float(rng.gamma(5, 2.4) + 4)
    a = (body_a - fat - 23) * np.interp(level, LEVELS, _CAVITY_A) * rng.normal(1, 0.02)
    b = (body_b - 0.7 * fat - 15) * np.interp(level, LEVELS, _CAVITY_B) * rng.normal(1, 0.02)
    middle = -0.08 * body_b + rng.normal(0, 2)
    front = middle + 0.50 * b
    with_contrast = rng.random() < 0.6
    run = np.interp(level, [0.2, 0.95], [0.82, -0.75])
    return Chest(
        level=level,
        body_a=float(body_a),
        body_b=float(body_b),
        fat=fat,
        half_width=float(a),
        half_depth=float(b),
        middle=float(middle),
        front=float(front),
        depth=float(front - (middle - b)),
        contrast=float(rng.uniform(140, 320)) if with_contrast else float(rng.uniform(34, 48)),
        bone=float(rng.uniform(0.75, 1.2)),
        woman=bool(rng.random() < 0.45),
        fissure=(float(middle + b * (run + rng.normal(0, 0.05))), float(middle + b * (run + rng.normal(0, 0.05)))),
    )


def mediastinum(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Outline (P, 2) in mm of everything between the lungs at this level."""
    ys = chest.front - _DEPTHS * chest.depth

    def half(rows: np.ndarray) -> np.ndarray:
        width = np.array([np.interp(chest.level, LEVELS, rows[:, i]) for i in range(len(_DEPTHS))])
        return width * rng.normal(1, 0.06) * (1 + rng.normal(0, 0.04, len(_DEPTHS))) * chest.half_width

    right, left = half(_RIGHT), half(_LEFT)
    side_r = np.stack([-right, ys], 1)
    side_l = np.stack([left, ys], 1)[::-1]
    return smooth(np.concatenate([side_r, side_l]), 6)
