"""The abdomen that the kidney phantom draws: ellipsoids with Hounsfield values, so that every level of one patient is a
section of the same body.

Millimetre coordinates: x to the viewer's right (the patient's left), y to the patient's back, z towards the head, 0 in
the middle between both kidneys. Textbook values: fat -100, muscle 50, liver 55, kidney 32 (200 with contrast medium),
urine 5, cyst 5, stone 400 to 1400, blood 40 (160 with contrast medium).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Kind = Literal["kidney_cyst", "kidney_stone", "kidney_tumour", "hydronephrosis"]
Side = Literal["right", "left"]
KINDS: tuple[Kind, ...] = ("kidney_cyst", "kidney_stone", "kidney_tumour", "hydronephrosis")

FAT, MUSCLE = -102.0, 52.0
SIZES_MM: dict[Kind, tuple[float, float]] = {
    "kidney_cyst": (8.0, 65.0), "kidney_stone": (3.0, 16.0), "kidney_tumour": (14.0, 75.0),
    "hydronephrosis": (13.0, 42.0),
}  # fmt: skip
"""Least and largest diameter; of a hydronephrosis that of the renal pelvis from front to back."""


@dataclass(frozen=True, slots=True)
class Solid:
    """An ellipsoid whose sections are irregular ellipses.

    Args:
        centre: (x, y, z) mm. radii: (x, y, z) mm. value: HU. turn: of every section, radians.
        waves: (5, 2) amplitude (a fraction of the radius) and phase of the outline's harmonics 2 to 6.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    value: float
    turn: float = 0.0
    waves: tuple[tuple[float, float], ...] = ()

    def section(self, z: float, grow: float = 0.0) -> np.ndarray | None:
        """Outline (48, 2) in mm at a level, `grow` mm wider; None where the solid does not reach."""
        depth = 1 - ((z - self.centre[2]) / (self.radii[2] + grow)) ** 2
        if depth <= 0:
            return None
        scale = np.sqrt(depth)
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radius = 1.0 + sum(a * np.cos(k * t + p) for k, (a, p) in enumerate(self.waves, 2))
        u = (self.radii[0] + grow) * scale * radius * np.cos(t)
        v = (self.radii[1] + grow) * scale * radius * np.sin(t)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.stack([self.centre[0] + u * cos - v * sin, self.centre[1] + u * sin + v * cos], 1)


@dataclass(frozen=True, slots=True)
class KidneyLesion:
    """One lesion; `size_mm` draws it and is what the report says.

    Args:
        pole: "upper pole", "mid portion" or "lower pole". direction: (x, y) unit vector from the kidney's axis towards
            the lesion; x is lateral. depth: 0 at the kidney's axis, 1 at its surface. seed: of its texture.
    """

    kind: Kind
    side: Side
    size_mm: float
    pole: str
    height: float
    direction: tuple[float, float]
    depth: float
    value: float
    seed: int

    @property
    def severity(self) -> str:
        """Of a hydronephrosis, by the diameter of the renal pelvis."""
        return "mild" if self.size_mm < 20 else "moderate" if self.size_mm < 30 else "severe"

    def sized(self, size_mm: float) -> KidneyLesion:
        """The same lesion at another time."""
        low, high = SIZES_MM[self.kind]
        return replace(self, size_mm=float(np.clip(round(size_mm), low, high)))


@dataclass(frozen=True, slots=True)
class Abdomen:
    """One patient.

    Args:
        body: half-width and half-depth of the body, mm. fat: thickness under the skin, mm. contrast: medium was given.
        kidneys: by side. organs: drawn in order. lesions: what is wrong.
    """

    body: tuple[float, float]
    fat: float
    contrast: bool
    kidneys: dict[Side, Solid]
    organs: tuple[Solid, ...]
    lesions: tuple[KidneyLesion, ...]

    @property
    def parenchyma(self) -> float:
        """HU of the kidneys."""
        return next(iter(self.kidneys.values())).value


def make_abdomen(rng: np.random.Generator) -> Abdomen:
    """Draws a patient and what is wrong with him or her."""
    half, deep = rng.uniform(145, 190), rng.uniform(98, 135)
    fat = float(rng.uniform(8, 34))
    contrast = bool(rng.random() < 0.5)
    parenchyma = float(rng.normal(195, 18)) if contrast else float(rng.normal(33, 2))
    kidneys: dict[Side, Solid] = {}
    for side, sign in (("right", -1.0), ("left", 1.0)):
        centre = (
            sign * rng.uniform(64, 76),
            0.26 * deep + rng.normal(0, 4),
            (-8 if sign < 0 else 8) + rng.normal(0, 5),
        )
        radii = (rng.uniform(25, 31), rng.uniform(27, 33), rng.uniform(50, 60))
        kidneys[side] = Solid(centre, radii, parenchyma, sign * rng.uniform(0.3, 0.8), _waves(rng, 0.025))  # type: ignore[index]
    lesions = _lesions(rng, contrast)
    return Abdomen((half, deep), fat, contrast, kidneys, _organs(rng, half - fat, deep - fat, contrast), lesions)


def _organs(rng: np.random.Generator, a: float, b: float, contrast: bool) -> tuple[Solid, ...]:
    """Liver, spleen, vessels, pancreas, bowel, within a cavity of half-width a and half-depth b."""
    blood = float(rng.normal(160, 15)) if contrast else float(rng.normal(42, 3))
    liver, spleen = (float(rng.normal(108, 8)), float(rng.normal(118, 8))) if contrast else (57.0, 48.0)
    out = [
        Solid((-0.52 * a, -0.10 * b, 62), (0.42 * a, 0.62 * b, rng.uniform(62, 92)), liver, 0.3, _waves(rng, 0.04)),
        Solid((0.68 * a, 0.16 * b, 70), (0.20 * a, 0.38 * b, rng.uniform(45, 62)), spleen, -0.2, _waves(rng, 0.05)),
        Solid((10, 0.20 * b, 0), (rng.uniform(8, 11), rng.uniform(8, 11), 400), blood),
        Solid((-17, 0.22 * b, 0), (rng.uniform(9, 13), rng.uniform(6, 10), 400), blood - 5),
        Solid((6, -0.06 * b, 30), (0.30 * a, 10, 22), 42 if not contrast else 95, 0.1, _waves(rng, 0.05)),
    ]
    for _ in range(int(rng.integers(7, 12))):  # small bowel
        x, y = rng.uniform(-0.55, 0.6) * a, rng.uniform(-0.75, -0.20) * b
        r = rng.uniform(9, 16)
        radii = (r * rng.uniform(1, 1.7), r, rng.uniform(18, 40))
        wall = Solid((x, y, rng.uniform(-70, 20)), radii, 38, rng.uniform(0, 3))
        inner = (0.72 * radii[0], 0.72 * radii[1], 0.72 * radii[2])
        out += [wall, replace(wall, radii=inner, value=float(rng.choice([15, 25, 120])))]
    for sign in (-1.0, 1.0):  # colon, with air on top
        x, y = sign * rng.uniform(0.72, 0.80) * a, rng.uniform(-0.25, 0.05) * b
        r = rng.uniform(15, 21)
        wall = Solid((x, y, -35), (r, r * 1.1, 75), 40, 0.0, _waves(rng, 0.06))
        lumen = tuple(0.84 * v for v in wall.radii)
        out += [wall, replace(wall, radii=lumen, value=10.0)]  # type: ignore[arg-type]
        out.append(Solid((x, y - 0.35 * r, -35), (0.66 * r, 0.42 * r, 70), -960))
    return tuple(out)


def _lesions(rng: np.random.Generator, contrast: bool) -> tuple[KidneyLesion, ...]:
    """None in a third of patients, one in most others, at most one of a kind a side."""
    count = int(rng.choice([0, 1, 2, 3], p=[0.33, 0.42, 0.19, 0.06]))
    taken: set[tuple[Kind, Side]] = set()
    out: list[KidneyLesion] = []
    while len(out) < count:
        kind = KINDS[int(rng.integers(4))]
        side: Side = ("right", "left")[int(rng.integers(2))]  # type: ignore[assignment]
        if (kind, side) in taken:
            continue
        taken.add((kind, side))
        out.append(make_lesion(kind, side, rng, contrast))
    return tuple(out)


def make_lesion(kind: Kind, side: Side, rng: np.random.Generator, contrast: bool) -> KidneyLesion:
    """One lesion of a kind and a side; sizes are spread evenly in the logarithm."""
    low, high = SIZES_MM[kind]
    size = float(round(np.exp(rng.uniform(np.log(low), np.log(high)))))
    inside = kind in ("kidney_stone", "hydronephrosis")
    height = float(rng.uniform(-0.25, 0.25) if inside else rng.uniform(-0.7, 0.7))
    pole = "upper pole" if height > 0.22 else "lower pole" if height < -0.22 else "mid portion"
    angle = rng.uniform(-1.2, 1.2)
    direction = (float(np.cos(angle)), float(np.sin(angle)))
    depth = float(rng.uniform(0.05, 0.35) if inside else rng.uniform(0.55, 0.9))
    value = {
        "kidney_cyst": rng.uniform(0, 14), "kidney_stone": rng.uniform(450, 1300),
        "kidney_tumour": rng.uniform(85, 130) if contrast else rng.uniform(36, 44), "hydronephrosis": rng.uniform(2, 9),
    }[kind]  # fmt: skip
    return KidneyLesion(kind, side, size, pole, height, direction, depth, float(value), int(rng.integers(2**31)))


def _waves(rng: np.random.Generator, rough: float) -> tuple[tuple[float, float], ...]:
    return tuple((float(rng.normal(0, rough / k**0.7)), float(rng.uniform(0, 2 * np.pi))) for k in range(2, 7))
