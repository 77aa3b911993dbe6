"""The chest in one axial slice, from skin to marrow, for any level between the lung apex (0) and its base (1).

Shapes come from hand-set key levels (`chest_patient`) that are interpolated and then varied per patient.
"""

from __future__ import annotations

import cv2
import numpy as np

from vlm.data.phantoms.chest_patient import FAT, LUNG, MUSCLE, Chest, mediastinum
from vlm.data.phantoms.draw import Canvas, blob, cloud, curve_between, ellipse, shrink, smooth, tube
from vlm.data.phantoms.mediastinum import draw_mediastinum


def draw_chest(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Draws everything but the lungs' inside.

    Returns:
        (H, W) float32 coverage of the lungs in [0, 1].
    """
    _body(canvas, chest, rng)
    cavity = _cavity(chest, rng)
    _wall_muscles(canvas, chest, rng, cavity)
    canvas.fill(cavity, FAT + 5)
    between = mediastinum(chest, rng)
    lungs = canvas.mask(cavity).astype(np.float32) * np.float32(1 / 255)
    lungs *= 1 - canvas.mask(between).astype(np.float32) * np.float32(1 / 255)
    for dome, value in _domes(chest, rng):
        canvas.fill(dome, value)
        lungs *= 1 - canvas.mask(dome).astype(np.float32) * np.float32(1 / 255)
    draw_mediastinum(canvas, chest, rng)
    _spine(canvas, chest, rng)
    _ribs(canvas, chest, rng, cavity)
    return lungs


def _body(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    t = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    cos, sin = np.cos(t), np.sin(t)
    power = rng.uniform(2.25, 2.6)
    radius = ((np.abs(cos) / chest.body_a) ** power + (np.abs(sin) / chest.body_b) ** power) ** (-1 / power)
    k = np.arange(2, 6)[:, None]
    radius *= 1 + 0.006 * (rng.normal(0, 1, (4, 1)) * np.cos(k * t + rng.uniform(0, 6.28, (4, 1)))).sum(0)
    x, y = radius * cos, radius * sin
    back = np.exp(-((x / 14) ** 2)) * (y > 0)
    y = np.where(y > 0, y * 0.96, y) - 5 * back  # lying on the table, a furrow over the spine
    outline = np.stack([x, y], 1)
    if chest.woman and chest.level > 0.3:
        size = rng.uniform(10, 38) * np.interp(chest.level, [0.3, 0.5, 0.85, 0.95], [0.2, 1, 1, 0.5])
        for side in (-1, 1):
            lift = np.exp(-(((x - side * 0.5 * chest.body_a) / (0.25 * chest.body_a)) ** 2)) * (y < 0)
            outline[:, 1] -= size * lift
            outline[:, 0] += side * 0.2 * size * lift
    _table(canvas, float(outline[:, 1].max()), rng)
    canvas.fill(outline, 15)
    canvas.fill(shrink(outline, rng.uniform(1.6, 2.4)), FAT)
    if chest.woman and 0.35 < chest.level < 0.85:
        for side in (-1, 1):
            for _ in range(rng.integers(3, 9)):
                gland = blob(
                    rng, side * rng.normal(0.5, 0.1) * chest.body_a, -chest.body_b + rng.uniform(-12, 16), 6, 4, 0.3
                )
                canvas.fill(gland, rng.uniform(0, 40), rng.uniform(0.4, 0.9))


def _table(canvas: Canvas, bottom: float, rng: np.random.Generator) -> None:
    depth = rng.uniform(25, 60)
    x = np.linspace(-240, 240, 60)
    for offset, value in ((3, -420), (18 + rng.uniform(0, 8), -620)):
        y = bottom + offset - depth * (x / 240) ** 2 * (1 if offset < 10 else 0.7)
        canvas.fill(tube(np.stack([x, y], 1), 1.0), value)
        canvas.fill(tube(np.stack([x, y + 6], 1), 5.0), -955)


def _cavity(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    cos, sin = np.cos(t), np.sin(t)
    power = rng.uniform(2.15, 2.45)
    radius = (np.abs(cos / chest.half_width) ** power + np.abs(sin / chest.half_depth) ** power) ** (-1 / power)
    wave = 0.008 * (rng.normal(0, 1, (4, 1)) * np.cos(np.arange(2, 6)[:, None] * t + rng.uniform(0, 6.28, (4, 1)))).sum(
        0
    )
    radius *= 1 + wave
    return np.stack([radius * cos, chest.middle + radius * sin], 1)


def _domes(chest: Chest, rng: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """Diaphragm domes: liver at the right, spleen and stomach at the left, near the base."""
    domes = []
    for side, start, value in ((-1, 0.80, 62.0), (1, 0.86, 52.0)):
        rise = (chest.level - start - rng.normal(0, 0.015)) / 0.15
        if rise > 0.06:
            grow = float(np.clip(rise, 0, 1) ** 0.5)
            x = side * (0.52 + rng.normal(0, 0.02)) * chest.half_width
            y = chest.middle + rng.normal(0.0, 0.05) * chest.half_depth
            shape = blob(rng, x, y, 0.44 * grow * chest.half_width, 0.66 * grow * chest.half_depth, 0.03)
            domes.append((shape, value + (45 if chest.contrast > 60 else 0)))
    return domes


def _wall_muscles(canvas: Canvas, chest: Chest, rng: np.random.Generator, cavity: np.ndarray) -> None:
    level = chest.level
    ring = shrink(cavity, -rng.uniform(9.5, 12))
    outer = 0.9 * chest.body_a - 0.55 * chest.fat
    thin = float(np.interp(level, [0.15, 0.5, 0.9], [1.0, 0.65, 0.4]))
    for side in (-1, 1):
        muscle = lambda: rng.normal(MUSCLE, 5)  # noqa: E731
        x_wall, y_mid = side * (chest.half_width + 9), chest.middle
        # latissimus and serratus along the flank, behind the axilla
        flank = curve_between(
            (x_wall + side * 3, y_mid - 5),
            (side * 0.62 * chest.half_width, y_mid + chest.half_depth + 17),
            -side * 0.22,
            16,
        )
        canvas.fill(tube(flank, 10 * thin + 4, pointed=True), muscle())
        if level < 0.6:  # scapula between its muscles, nearly reaching the flank's outline
            grow = float(np.interp(level, [0.1, 0.3, 0.6], [1.15, 1.0, 0.35]))
            a = np.array([side * min(outer, chest.half_width + 34), y_mid - 6])
            b = np.array([side * 0.55 * chest.half_width, y_mid + chest.half_depth + 14])
            path = curve_between(a, b, -side * 0.20, 24)
            canvas.fill(tube(path, 15 * grow, pointed=True), muscle())
            cut = path[4:20]
            width = np.interp(np.linspace(0, 1, len(cut)), [0, 0.15, 0.5, 1], [6.5 * grow, 3.2, 1.9, 3.0])
            canvas.shell(tube(cut, width, pointed=True), 1.2, 620 * chest.bone, 230)
        # pectoral muscles in front, in two sheets with fat between
        start = (side * 0.16 * chest.half_width, y_mid - chest.half_depth - 13)
        end = (side * (chest.half_width * 0.98 + 7), y_mid - 0.36 * chest.half_depth)
        canvas.fill(tube(curve_between(start, end, side * 0.17, 16), 3 + 9 * thin, pointed=True), muscle())
        if level < 0.45:
            second = (side * 0.45 * chest.half_width, y_mid - chest.half_depth - 7)
            canvas.fill(tube(curve_between(second, end, side * 0.1, 12), 6.5, pointed=True), FAT)
            canvas.fill(tube(curve_between(second, end, side * 0.1, 12), 4.5, pointed=True), muscle())
        # erector spinae beside the spinous process, under the trapezius
        back = chest.front + 46
        canvas.fill(blob(rng, side * 25, back + 3, 21, 15 + 4 * level, 0.05), muscle())
        canvas.fill(
            tube(curve_between((side * 3, back + 21), (side * 70, back + 10), side * 0.05, 12), 5 * thin + 1, True),
            muscle(),
        )
    canvas.fill(ring, MUSCLE - 4)


def _spine(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    w, h = rng.uniform(15.5, 18.5), rng.uniform(13, 15)
    y = chest.front + h
    cortex, marrow = 640 * chest.bone, rng.uniform(130, 220) * chest.bone
    canal = y + h + 8
    for side in (-1, 1):
        rib_head = tube(
            curve_between(np.array([side * w * 0.8, y + h * 0.5]), np.array([side * 44, y + h + 12]), -side * 0.1, 10),
            4.6,
            True,
        )
        if rng.random() < 0.7:
            canvas.shell(rib_head, 1.2, cortex, 240)
        transverse = tube(
            curve_between(np.array([side * 8, canal + 2]), np.array([side * 34, canal + 9]), 0.0, 10), 5.0, True
        )
        canvas.shell(transverse, 1.2, cortex, 230)
        lamina = tube(np.linspace((side * 12, canal - 4), (side * 1, canal + 13), 8), 3.6)
        canvas.shell(lamina, 1.1, cortex * 1.1, 330)
        canvas.shell(tube(np.linspace((side * 10, y + h - 3), (side * 11, canal + 2), 6), 3.6), 1.1, cortex, 300)
    canvas.shell(
        tube(np.linspace((0, canal + 9), (rng.normal(0, 1.5), canal + 9 + rng.uniform(12, 26)), 10), 3.4, True),
        1.1,
        cortex,
        260,
    )
    bean = smooth(
        [
            (-w, y),
            (-w * 0.75, y - h * 0.75),
            (0, y - h),
            (w * 0.75, y - h * 0.75),
            (w, y),
            (w * 0.8, y + h * 0.85),
            (0, y + h * 0.7),
            (-w * 0.8, y + h * 0.85),
        ],
        8,
    )
    if rng.random() < 0.25:
        canvas.fill(bean, 95)  # through the disc
    else:
        canvas.shell(bean, 1.5, cortex, marrow)
        for _ in range(14):
            canvas.fill(
                blob(rng, rng.normal(0, w * 0.4), y + rng.normal(0, h * 0.35), 2.5, 2.5, 0.2),
                marrow + rng.normal(0, 50),
                0.5,
            )
    canvas.fill(ellipse(0, canal, 9.5, 8), -20)
    canvas.fill(ellipse(0, canal, 8, 6.8), 18)
    canvas.fill(ellipse(0, canal, 4.6, 3.8), 42)


def _ribs(canvas: Canvas, chest: Chest, rng: np.random.Generator, cavity: np.ndarray) -> None:
    line = shrink(cavity, -5.5)
    angle = np.arctan2(line[:, 1] - chest.middle, line[:, 0] / chest.half_width * chest.half_depth)
    order = np.argsort(angle)
    angle, line = angle[order], line[order]
    cortex = 720 * chest.bone
    for side in (-1, 1):
        position = 1.28 + rng.uniform(-0.08, 0.08)  # radians from the flank toward the back; falls toward the front
        while position > -1.15:
            length = rng.uniform(0.10, 0.26) if position > 0.5 else rng.uniform(0.07, 0.16)
            along = np.linspace(position, position - length, 12)
            theta = along if side > 0 else np.pi - along
            theta = (theta + np.pi) % (2 * np.pi) - np.pi
            path = np.stack([np.interp(theta, angle, line[:, i], period=2 * np.pi) for i in (0, 1)], 1)
            path += (path - (0, chest.middle)) * rng.normal(0, 0.008)
            shape = tube(path, rng.uniform(3.3, 4.6), pointed=True)
            if position - length < -0.95:
                canvas.fill(shape, rng.uniform(80, 170))  # costal cartilage
            else:
                canvas.shell(shape, rng.uniform(1.0, 1.4), cortex, rng.uniform(130, 300))
            position -= length + rng.uniform(0.15, 0.3)
    _sternum(canvas, chest, rng)


def _sternum(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    if not 0.17 < chest.level < 0.8:
        return
    wide = float(np.interp(chest.level, [0.17, 0.27, 0.35, 0.7, 0.8], [28, 26, 17, 18, 9]))
    y = chest.middle - chest.half_depth - 7
    bean = smooth(
        [
            (-wide, y),
            (-wide * 0.6, y - 5),
            (0, y - 5.5),
            (wide * 0.6, y - 5),
            (wide, y),
            (wide * 0.6, y + 5),
            (0, y + 4.5),
            (-wide * 0.6, y + 5),
        ],
        6,
    )
    canvas.fill(shrink(bean, -6), MUSCLE - 10, 0.6)
    canvas.shell(bean, 1.1, 420 * chest.bone, 140)
    if chest.level < 0.24:
        for side in (-1, 1):
            head = blob(rng, side * (wide + 14), y - 2, 13, 8, 0.05)
            canvas.shell(head, 1.3, 600 * chest.bone, 210)


def lung_field(chest: Chest, rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """Parenchyma (H, W) float32 in HU without vessels: denser toward the back, uneven like a breathing lung."""
    size = canvas.size
    rows = (np.arange(size, dtype=np.float32) - canvas.centre[1]) * np.float32(canvas.spacing / chest.half_depth)
    field = np.repeat((rows * 22 + LUNG + rng.normal(0, 20))[:, None], size, axis=1)
    field += cloud(rng, size, 9) * np.float32(9)
    field += cloud(rng, size, 60) * np.float32(13)
    return field.astype(np.float32)


def finish(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Scanner: point spread, tissue texture, noise that is correlated and stronger in the middle, faint streaks.

    Returns:
        (H, W) int16 in HU, -1024 to 3071.
    """
    size = canvas.size
    hu = canvas.hu
    tissue = (hu > -200).astype(np.float32)
    hu += tissue * cloud(rng, size, 40) * np.float32(7)
    hu = cv2.GaussianBlur(hu, (0, 0), float(rng.uniform(0.6, 0.85))).astype(np.float32, copy=False)
    white = rng.standard_normal((size, size), dtype=np.float32)
    fine, coarse = cv2.GaussianBlur(white, (0, 0), 0.75), cv2.GaussianBlur(white, (0, 0), 2.2)
    noise = (fine - np.float32(0.6) * coarse) * np.float32(rng.uniform(20, 60))
    axis = (np.arange(size, dtype=np.float32) - size / 2) / (size / 2)
    noise *= np.float32(1.25) - np.float32(0.75) * np.clip(axis[:, None] ** 2 + axis[None, :] ** 2, 0, 1)
    streak = rng.standard_normal((size, 1), dtype=np.float32)
    strength = np.float32(np.interp(chest.level, [0.13, 0.3, 0.9], [9.0, 2.5, 1.0]))
    noise += cv2.GaussianBlur(streak, (0, 0), 0.8) * strength * (1 - axis[None, :] ** 2)
    hu += noise
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
