"""A chest in three dimensions, as solids: trunk, lungs, heart, great vessels, diaphragm, spine, ribs.

Sizes are those of adults (cavity about 28 cm wide, lungs about 25 cm high, a heart of 42 to 48 % of the cavity's
width), varied per patient. z is 0 at the lungs' apex and grows to the feet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm.data.phantoms.solids import Ellipsoid, Stack

# Shares of the lungs' height, and at each the outer and inner border, half-depth and middle of a lung in mm.
_T = np.array([0.0, 0.012, 0.04, 0.08, 0.15, 0.25, 0.40, 0.55, 0.72, 0.90, 1.05, 1.25])
_OUTER = np.array([46, 60, 75, 88, 102, 114, 124, 130, 135, 138, 139, 137.0])
_INNER = np.array([46, 36, 26, 16, 9, 6, 5, 5, 5, 5, 5, 5.0])
_DEPTH = np.array([0, 15, 29, 42, 56, 68, 79, 86, 91, 94, 94, 91.0])
_MIDDLE = np.array([24, 23, 21, 17, 12, 7, 3, 0, -1, 0, 1, 2.0])


@dataclass(slots=True)
class ChestBody:
    """One patient.

    Args:
        height: of the lungs in mm. scale: of all widths. depth: of all depths. woman: has breasts.
        heart: scale of the heart. tops: z of the right and left dome. carina: z of the tracheal bifurcation.
        lungs: right, left; cavities with lung, fluid and air. domes: right, left.
        middle: what lies between the lungs, one solid each. aorta: descending. trunk, spine, trachea.
        breasts: none, or right and left. stomach: air under the left dome.
        bone: density of bones, 1 on average. kyphosis: depth of the spine's curve in mm.
    """

    height: float
    scale: float
    depth: float
    woman: bool
    heart: float
    tops: tuple[float, float]
    carina: float
    bone: float
    kyphosis: float
    lungs: tuple[Stack, Stack]
    domes: tuple[Ellipsoid, Ellipsoid]
    middle: dict[str, Ellipsoid | Stack]
    chambers: tuple[Ellipsoid, ...]
    aorta: Stack
    trunk: Stack
    spine: Stack
    trachea: Stack
    breasts: tuple[Ellipsoid, ...]
    stomach: Ellipsoid | None

    def wall(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half-width, half-depth and middle (y) of the rib cage at levels."""
        a, b, x, y = self.lungs[1].at(np.clip(z, 2, self.lungs[1].z[-1]))
        return a + x, b, y

    def ratio(self) -> float:
        """Cardiothoracic ratio: the heart's width over the cavity's greatest inner width."""
        left = max(c.centre[0] + c.extent()[0] for c in self.chambers)
        right = min(c.centre[0] - c.extent()[0] for c in self.chambers)
        z = np.linspace(0.3, 1.0, 30) * self.height
        return float((left - right) / (2 * self.wall(z)[0].max()))


def make_body(rng: np.random.Generator, ratio: float | None = None) -> ChestBody:
    """Draws a patient.

    Args:
        rng: of the patient. ratio: cardiothoracic ratio that the heart is scaled to; None for one between 0.40 and
            0.475.
    """
    woman = bool(rng.random() < 0.48)
    height = float(rng.normal(238 if woman else 258, 14))
    scale = float(rng.normal(0.93 if woman else 1.02, 0.045))
    depth = float(rng.normal(0.94 if woman else 1.03, 0.06))
    wanted = float(rng.uniform(0.40, 0.475))
    shift, lean = rng.normal(0, 2, 2)
    tops = (float(height * rng.normal(0.80, 0.02)), float(height * rng.normal(0.845, 0.02)))
    carina = float(height * rng.normal(0.285, 0.015))
    domes = (_dome(-1, tops[0], scale, depth, rng), _dome(1, tops[1], scale, depth, rng))
    lungs = (_lung(-1, height, scale, depth, domes[0], rng), _lung(1, height, scale, depth, domes[1], rng))
    chambers = _chambers(1.0, height, scale, depth, rng)
    kyphosis = float(rng.uniform(8, 26))
    spine = _spine(height, depth, kyphosis, float(lean))
    body = ChestBody(
        height=height, scale=scale, depth=depth, woman=woman, heart=1.0, tops=tops, carina=carina,
        bone=float(rng.uniform(0.8, 1.2)), kyphosis=kyphosis, lungs=lungs, domes=domes,
        middle={}, chambers=chambers, aorta=_aorta(height, carina, depth, spine, rng),
        trunk=_trunk(height, scale, depth, rng), spine=spine,
        trachea=_trachea(height, carina, depth, float(shift), rng),
        breasts=_breasts(height, scale, depth, rng) if woman else (), stomach=_stomach(tops[1], scale, rng),
    )  # fmt: skip
    enlarge(body, wanted if ratio is None else ratio)
    body.middle = _mediastinum(body, rng)
    return body


def enlarge(body: ChestBody, ratio: float) -> None:
    """Scales the heart about its middle to a cardiothoracic ratio: mostly to the left and down, as hearts grow."""
    k = ratio / body.ratio()
    body.heart *= k
    out = []
    for number, chamber in enumerate(body.chambers):
        x, y, z = chamber.centre
        grow = (k, 1 + 0.8 * (k - 1), 1 + 0.55 * (k - 1))
        out.append(
            Ellipsoid(
                (x * k, y, z + (6 if number == 0 else 0) * (k - 1)),
                tuple(r * g for r, g in zip(chamber.radii, grow, strict=True)),  # type: ignore[arg-type]
                chamber.turn,
            )
        )
    body.chambers = tuple(out)
    if abs(body.ratio() - ratio) > 1e-3 and k != 1.0:
        enlarge(body, ratio)


def _lung(side: int, height: float, scale: float, depth: float, dome: Ellipsoid, rng: np.random.Generator) -> Stack:
    """A lung's cavity, down to where its dome is widest: below there is no lung."""
    t = _T * height
    outer = _OUTER * scale * rng.normal(1, 0.012)
    inner = np.minimum(_INNER, outer)
    b = _DEPTH * depth * rng.normal(1, 0.015)
    z = np.concatenate([np.linspace(0, 0.1 * height, 12), np.linspace(0.12 * height, dome.centre[2], 24)])
    a, b, x, y = (np.interp(z, t, w) for w in ((outer - inner) / 2, b, side * (outer + inner) / 2, _MIDDLE * depth))
    return Stack(z, _soft(a), _soft(b), x, y, 2.15)


def _soft(values: np.ndarray) -> np.ndarray:
    """Takes the corners out of a profile; its ends stay."""
    out = values.copy()
    for _ in range(3):
        out[1:-1] = (out[:-2] + 2 * out[1:-1] + out[2:]) / 4
    return out


def _dome(side: int, top: float, scale: float, depth: float, rng: np.random.Generator) -> Ellipsoid:
    high = float(rng.normal(74, 5))
    radii = (76 * scale * float(rng.normal(1, 0.02)), 108 * depth, high)
    return Ellipsoid((side * 70 * scale, -8.0, top + high), radii, (side * 0.05, -0.06))


def _chambers(k: float, height: float, scale: float, depth: float, rng: np.random.Generator) -> tuple[Ellipsoid, ...]:
    """Left ventricle, right atrium, right ventricle, left atrium, outflow."""
    at = height * 0.66
    tilt = float(rng.normal(0.50, 0.09))
    return (
        Ellipsoid((27 * scale, -20 * depth, at + 10), (66 * k, 47 * k, 42 * k), (tilt, 0.1)),
        Ellipsoid((-20 * scale, -12 * depth, at - 4), (27 * k, 36 * k, 44 * k), (0.08, 0.0)),
        Ellipsoid((8 * scale, -38 * depth, at + 12), (50 * k, 34 * k, 44 * k), (0.32, 0.15)),
        Ellipsoid((8 * scale, 14 * depth, at - 18), (40 * k, 25 * k, 32 * k), (0.15, 0.0)),
        Ellipsoid((27 * scale, -16 * depth, at - 24), (27 * k, 26 * k, 34 * k), (-0.25, 0.0)),
    )


def _mediastinum(body: ChestBody, rng: np.random.Generator) -> dict[str, Ellipsoid | Stack]:
    h, d, wide = body.height, body.depth, float(rng.normal(1, 0.06))
    t = np.array([-0.45, -0.08, 0.05, 0.18, 0.30, 0.45, 0.60, 0.85, 1.3]) * h
    right = np.array([24, 27, 25, 25, 27, 24, 20, 18, 18.0]) * wide
    left = np.array([24, 27, 27, 26, 25, 23, 20, 22, 22.0]) * wide
    b = np.array([40, 46, 52, 56, 58, 58, 55, 52, 50.0]) * d
    y = np.array([22, 18, 12, 6, 2, 2, 6, 12, 14.0])
    knob = float(rng.normal(1, 0.13))
    arch = body.carina - 22
    return {
        "core": Stack(t, (right + left) / 2, b, (left - right) / 2, y),
        "cava": Ellipsoid((-22, -12 * d, 0.34 * h), (11, 13, 0.20 * h)),
        "ascending aorta": Ellipsoid((-16, -28 * d, 0.40 * h), (18 * knob, 18, 0.14 * h), (-0.10, 0.0)),
        "arch": Ellipsoid((17, 2, arch), (19 * knob, 34 * d, 15 * knob), (0.2, 0.0)),
        "pulmonary trunk": Ellipsoid((21, -24 * d, 0.45 * h), (23, 20, 25), (0.5, 0.0)),
        **{f"chamber {i}": chamber for i, chamber in enumerate(body.chambers)},
    }


def _aorta(height: float, carina: float, depth: float, spine: Stack, rng: np.random.Generator) -> Stack:
    t = np.array([carina - 24, carina - 10, carina + 40, 0.75 * height, 1.3 * height])
    y = np.interp(t, spine.z, spine.y) - np.array([30, 30, 29, 30, 32.0])
    x = np.array([26, 27, 24, 15, 8.0]) + rng.normal(0, 2)
    return Stack(t, np.full(5, 11.5), np.full(5, 11.5), x, y)


def _trunk(height: float, scale: float, depth: float, rng: np.random.Generator) -> Stack:
    fat = float(rng.gamma(4, 3.0))
    t = np.array([-0.6, -0.36, -0.27, -0.21, -0.15, -0.05, 0.12, 0.35, 0.7, 1.05, 2.2]) * height
    a = np.array([56, 57, 66, 112, 172, 206, 204, 172, 160, 156, 158.0]) * scale + fat
    b = np.array([60, 58, 60, 66, 76, 88, 100, 110, 116, 118, 118.0]) * depth + 0.7 * fat
    y = np.array([18, 20, 22, 22, 20, 15, 10, 4, 1, 0, 0.0])
    z = np.linspace(t[0], t[-1], 90)
    a, b, y = (_soft(_soft(np.interp(z, t, w))) for w in (a, b, y))
    return Stack(z, a, b, np.zeros(90), y, 2.3)


def _spine(height: float, depth: float, kyphosis: float, lean: float) -> Stack:
    t = np.linspace(-0.5, 2.0, 18) * height
    share = np.clip(t / height, -0.3, 1.3)
    y = 62 * depth + kyphosis * np.sin(np.pi * np.clip((share + 0.1) / 1.15, 0, 1)) - 14 - 10 * np.clip(-share, 0, 1)
    a = np.interp(share, [-0.3, 0, 0.5, 1.3], [12, 14.5, 16.5, 22])
    b = np.interp(share, [-0.3, 0, 0.5, 1.3], [9, 11.5, 15, 18])
    return Stack(t, a, b, lean * np.sin(np.pi * share), y, 3.2)


def _trachea(height: float, carina: float, depth: float, shift: float, rng: np.random.Generator) -> Stack:
    t = np.array([-0.5 * height, 0.0, carina - 12, carina])
    wide = float(rng.normal(8.6, 0.8))
    return Stack(
        t, np.array([wide, wide, wide, wide + 4]), np.array([9, 9, 8.5, 7]),
        np.array([0, 0.5, -3, -3.5]) + shift, np.array([8, 14, 22, 24.0]) * depth,
    )  # fmt: skip


def _breasts(height: float, scale: float, depth: float, rng: np.random.Generator) -> tuple[Ellipsoid, ...]:
    size, low = float(rng.uniform(0.6, 1.15)), float(rng.normal(0.72, 0.03)) * height
    return tuple(
        Ellipsoid(
            (side * 76 * scale, -88 * depth, low + float(rng.normal(0, 3))),
            (62 * size, 52 * size, 66 * size), (0.0, 0.25),
        )
        for side in (-1, 1)
    )  # fmt: skip


def _stomach(top: float, scale: float, rng: np.random.Generator) -> Ellipsoid | None:
    if rng.random() < 0.25:
        return None
    size = float(rng.uniform(0.6, 1.2))
    return Ellipsoid((62 * scale, 0.0, top + 12 + 20 * size), (30 * size, 26 * size, 17 * size), (-0.15, 0.0))
