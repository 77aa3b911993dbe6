"""What lies between the phantom's lungs: great vessels, airway, oesophagus and heart.

The heart has its root and left atrium above, four chambers with a thick left wall below, and fat in the grooves.
"""

from __future__ import annotations

import numpy as np

from vlm.data.phantoms.chest_patient import Chest
from vlm.data.phantoms.draw import Canvas, blob, curve_between, ellipse, smooth, tube


def draw_mediastinum(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Draws vessels, heart, airway and oesophagus of this level into the fat between the lungs."""
    level = chest.level
    soft = 45.0 + (25 if chest.contrast > 60 else 0)

    def place(u: float, d: float) -> tuple[float, float]:
        return chest.at(u + rng.normal(0, 0.012), d + rng.normal(0, 0.015))

    for _ in range(rng.integers(2, 7)):  # small lymph nodes and strands in the fat
        canvas.fill(
            blob(
                rng,
                *place(rng.uniform(-0.2, 0.25), rng.uniform(0.15, 0.8)),
                rng.uniform(1, 3),
                rng.uniform(1, 2.5),
                0.2,
            ),
            20,
            0.7,
        )
    if level < 0.26:
        _supra_aortic(canvas, chest, rng)
    elif level < 0.34:
        arch = curve_between(place(-0.07, 0.58), place(0.22, 0.10), 0.10, 14)
        canvas.fill(tube(arch, rng.uniform(11, 13.5), pointed=True), chest.blood())
        canvas.fill(ellipse(*place(-0.22, 0.48), 8, 9), chest.blood(True))
    elif level < 0.52:
        _great_vessels(canvas, chest, rng)
    else:
        _heart(canvas, chest, rng)
    if level >= 0.34:
        canvas.fill(ellipse(*place(0.2, 0.04), rng.uniform(10.5, 13), rng.uniform(10.5, 13)), chest.blood())
    canvas.fill(ellipse(*place(-0.07, 0.05), 3.2, 3.2), chest.blood(True) * 0.8)  # azygos vein
    x, y = place(0.05, 0.09)
    canvas.fill(blob(rng, x, y, rng.uniform(6, 9), rng.uniform(4, 6), 0.08), soft)
    if rng.random() < 0.4:
        canvas.fill(ellipse(x, y, 2.2, 1.4), -700)
    _airway(canvas, chest, rng)


def _airway(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    level = chest.level
    at = chest.at
    if level < 0.385:
        x, y = at(-0.02 + rng.normal(0, 0.015), 0.24)
        shape = smooth([(x - 9, y + 3), (x - 8, y - 6), (x, y - 10), (x + 8, y - 6), (x + 9, y + 3), (x, y + 5.5)], 8)
        canvas.shell((shape - (x, y)) * rng.uniform(0.88, 1.15) + (x, y), 1.3, 40, -985)
    elif level < 0.44:
        spread = (level - 0.385) / 0.055
        for side in (-1, 1):
            x, y = at(side * (0.06 + 0.09 * spread), 0.22)
            canvas.shell(ellipse(x, y, 9, 7, side * 0.35), 1.2, 40, -985)
    elif level < 0.60:
        for side, u in ((-1, -0.21), (1, 0.23)):
            x, y = at(u + side * (level - 0.44) * 0.5, 0.2 - (level - 0.44) * 0.4)
            canvas.shell(ellipse(x, y, 6.5, 5.0, side * 0.5), 1.1, 30, -980)


def _supra_aortic(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    def vessel(u: float, d: float, radius: float, venous: bool = False) -> None:
        x, y = chest.at(u + rng.normal(0, 0.012), d + rng.normal(0, 0.015))
        canvas.fill(blob(rng, x, y, radius * rng.uniform(0.9, 1.15), radius, 0.04), chest.blood(venous))

    wide = 0.9 / max(0.6, chest.half_width / 125)
    vessel(-0.10 * wide, 0.44, 6.3)
    vessel(0.07 * wide, 0.42, 4.2)
    vessel(0.22 * wide, 0.26, 5.0)
    vessel(-0.25 * wide, 0.52, 8.0, True)
    a, b = chest.at(-0.2 * wide, 0.64), chest.at(0.24 * wide, 0.60)
    if chest.level > 0.18:
        canvas.fill(tube(curve_between(np.array(a), np.array(b), 0.06, 12), 5.5, True), chest.blood(True))
    else:
        vessel(0.27 * wide, 0.56, 7.0, True)


def _great_vessels(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    def spot(u: float, d: float) -> tuple[float, float]:
        return chest.at(u + rng.normal(0, 0.012), d + rng.normal(0, 0.015))

    venous = chest.blood(True)
    if chest.level > 0.40:
        trunk = spot(0.14, 0.58)
        canvas.fill(
            tube(curve_between(spot(0.10, 0.40), spot(-0.33, 0.30), 0.08, 14), rng.uniform(7, 9.5), True), venous
        )
        canvas.fill(tube(curve_between(trunk, spot(0.34, 0.22), -0.12, 14), rng.uniform(8, 10), True), venous)
        canvas.fill(ellipse(*trunk, rng.uniform(12, 15), rng.uniform(12, 15)), venous)
    else:
        canvas.fill(tube(curve_between(spot(0.1, 0.45), spot(0.33, 0.26), -0.1, 12), 8, True), venous)
    x, y = spot(-0.09, 0.54)
    canvas.fill(ellipse(x, y, rng.uniform(14, 17.5), rng.uniform(14, 17.5)), chest.blood())
    canvas.fill(ellipse(*spot(-0.25, 0.46), rng.uniform(7, 9), rng.uniform(8, 11)), venous)


def _heart(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Draws the heart of a level at or below the aortic root."""
    scale = chest.half_width / 126
    arterial, venous = chest.blood(), chest.blood(True)
    muscle = 105.0 if chest.contrast > 60 else 48.0

    def spot(u: float, d: float) -> tuple[float, float]:
        return chest.at(u + rng.normal(0, 0.01), d + rng.normal(0, 0.012))

    def chamber(
        u: float, d: float, rx: float, ry: float, turn: float, value: float, wall: float, rough: float = 0.035
    ) -> None:
        x, y = spot(u, d)
        shape = blob(rng, 0, 0, 1.0, 0.999, rough)
        cos, sin = np.cos(turn), np.sin(turn)
        for grow, hu in ((wall, muscle), (0.0, value)):
            p = shape * ((rx + grow) * scale, (ry + grow) * scale)
            canvas.fill(np.stack([x + p[:, 0] * cos - p[:, 1] * sin, y + p[:, 0] * sin + p[:, 1] * cos], 1), hu)

    for side, u in ((-1, 0.34), (1, 0.38)):  # pulmonary veins into the left atrium
        if chest.level < 0.72 and rng.random() < 0.8:
            path = curve_between(
                spot(side * 0.18, 0.2), spot(side * (u + 0.06), 0.10 + rng.uniform(0, 0.15)), 0.04 * side, 10
            )
            canvas.fill(tube(path, np.linspace(6, 4.5, 10), True), arterial)
    if chest.level < 0.62:
        chamber(0.03, 0.24, 32, 13, 0.05, arterial, 1.5)
        chamber(-0.29, 0.50, 11, 17, 0.2, venous, 2)
        chamber(0.16, 0.80, 22, 13, -0.35, venous, 3)
        chamber(0.33, 0.50, 9, 15, -0.5, arterial, 5)
        chamber(-0.02, 0.54, 14.5, 14.5, 0, arterial, 1.5)
        canvas.fill(ellipse(*spot(-0.29, 0.40), 8, 8), venous)
        return
    thick = float(rng.uniform(9, 12))
    grow = float(np.interp(chest.level, [0.62, 0.75, 0.95], [0.9, 1.0, 0.86]))
    if chest.level < 0.78:
        chamber(0.06, 0.20, 27, 12, 0.08, arterial, 1.5)
    chamber(-0.27, 0.46, 17 * grow, 24 * grow, 0.15, venous, 2.0)
    chamber(0.10, 0.72, 36 * grow, 17 * grow, 0.28, venous, 3.2)
    chamber(0.35, 0.46, 31 * grow, 17 * grow, 0.80, arterial, thick)
    for _ in range(2):  # papillary muscles
        x, y = spot(0.35 + rng.normal(0, 0.05), 0.46 + rng.normal(0, 0.06))
        canvas.fill(blob(rng, x, y, 4, 3, 0.2), muscle, 0.8)
    groove = curve_between(spot(0.08, 0.52), spot(0.38, 0.82), 0.05, 8)
    canvas.fill(tube(groove, np.linspace(1.5, 3.0, 8), True), -60, 0.5)
    if chest.level > 0.8:
        canvas.fill(ellipse(*spot(-0.2, 0.26), 12, 10), venous)
    if rng.random() < 0.2:  # coronary artery in its groove
        canvas.fill(ellipse(*spot(-0.07, 0.66), 1.6, 1.6), arterial)
