"""What a drawn chest can have, each as the parameters that draw it; severity is read from the very same numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlm.data.phantoms.chest_body import ChestBody
from vlm.data.phantoms.solids import Ellipsoid, Stack

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("right", "left")

# Lobe -> (low, high) share of the lungs' height, (front, back) share of the half-depth, (inner, outer) share across.
LOBES = {
    "right upper lobe": ((0.14, 0.36), (-0.45, 0.35), (0.30, 0.75)),
    "right middle lobe": ((0.56, 0.70), (-0.60, -0.25), (0.35, 0.70)),
    "right lower lobe": ((0.50, 0.74), (0.25, 0.65), (0.35, 0.75)),
    "left upper lobe": ((0.14, 0.36), (-0.45, 0.35), (0.35, 0.75)),
    "lingula": ((0.54, 0.68), (-0.60, -0.25), (0.55, 0.80)),
    "left lower lobe": ((0.50, 0.76), (0.25, 0.65), (0.45, 0.80)),
}


@dataclass(frozen=True, slots=True)
class Effusion:
    """Fluid in the pleural space.

    Args:
        side: the patient's. amount: 0 none, 1 to the apex; share of the lungs' height up to which the fluid stands.
        rise: mm by which it climbs the wall.
    """

    side: Side
    amount: float
    rise: float

    label = "pleural_effusion"

    @property
    def severity(self) -> str:
        """Small: the costophrenic angle is blunted; moderate: below the middle of the lung; large: above."""
        return "small" if self.amount < 0.27 else "moderate" if self.amount < 0.5 else "large"

    def grown(self, factor: float) -> Effusion:
        """The same fluid, more or less of it."""
        return replace(self, amount=float(np.clip(self.amount * factor, 0.17, 0.8)))

    def aerated(self, lung: Stack, height: float) -> Stack:
        """The lung that is left: it ends at the meniscus, which climbs at the wall."""
        flat = height * (1.1 - self.amount)
        wall = flat - self.rise
        levels = np.linspace(wall, flat, 12)
        share = np.sqrt(np.clip((flat - levels) / (flat - wall), 0, 1))
        return lung.scaled(np.array([lung.z[0], *levels, flat + 0.5]), np.array([1.0, *share, 0.0]))


@dataclass(frozen=True, slots=True)
class Pneumothorax:
    """Air in the pleural space.

    Args:
        side: the patient's. gap: mm between the apex of the cavity and that of the lung.
    """

    side: Side
    gap: float

    label = "pneumothorax"

    @property
    def severity(self) -> str:
        """By the distance from apex to cupola: small below 30 mm, large from 70."""
        return "small" if self.gap < 30 else "moderate" if self.gap < 70 else "large"

    def grown(self, factor: float) -> Pneumothorax:
        """The same, more or less air."""
        return replace(self, gap=float(np.clip(self.gap * factor, 14, 120)))

    def aerated(self, lung: Stack, height: float) -> Stack:
        """The lung that is left: it falls from the apex and from the wall, its inner border stays."""
        z = np.unique(np.concatenate([lung.z, np.linspace(self.gap, lung.z[-1], 24)]))
        a, b, x, y = (np.interp(z, lung.z, w) for w in (lung.a, lung.b, lung.x, lung.y))
        low = np.clip((z - self.gap) / (height - self.gap), 0, 1)
        keep = (1 - np.clip(0.55 * self.gap / 60, 0.10, 0.75) * (1 - low) ** 1.3) * (z >= self.gap)
        keep *= np.clip(np.sqrt(np.clip((z - self.gap) / 22, 0, 1)), 0, 1)
        side = 1 if self.side == "left" else -1
        return Stack(z, a * keep, b * np.sqrt(keep), x - side * a * (1 - keep), y, lung.power)


@dataclass(frozen=True, slots=True)
class Consolidation:
    """A lobe's part without air.

    Args:
        side, lobe: where. centre: x, y, z in mm. radii: half-axes in mm. density: 0 lung, 1 soft tissue.
    """

    side: Side
    lobe: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    density: float

    label = "pneumonia"

    @property
    def severity(self) -> str:
        """By the longest diameter: mild below 60 mm, severe from 95."""
        size = 2 * max(self.radii)
        return "mild" if size < 60 else "moderate" if size < 95 else "severe"

    def grown(self, factor: float) -> Consolidation:
        """The same, larger or smaller."""
        k = float(np.clip(factor, 20 / max(self.radii), 58 / max(self.radii)))
        return replace(self, radii=tuple(r * k for r in self.radii))  # type: ignore[arg-type]

    def solid(self) -> Ellipsoid:
        """Its outline."""
        return Ellipsoid(self.centre, self.radii)


@dataclass(frozen=True, slots=True)
class Nodule:
    """A round, solid lesion of the lung; a mass above 30 mm.

    Args:
        side, lobe: where. centre: x, y, z in mm. size: diameter in mm. calcified: denser than soft tissue.
    """

    side: Side
    lobe: str
    centre: tuple[float, float, float]
    size: float
    calcified: bool

    @property
    def label(self) -> str:
        """By the size alone."""
        return "mass" if self.size > 30 else "nodule"

    @property
    def severity(self) -> str:
        """By the size within its kind."""
        return "mild" if self.size < 15 else "moderate" if self.size < 45 else "severe"

    def grown(self, factor: float) -> Nodule:
        """The same, larger or smaller; a calcified one never changes."""
        size = float(np.clip(self.size * factor, 8, 30 if self.size <= 30 else 70))
        return self if self.calcified else replace(self, size=size)

    def solid(self) -> Ellipsoid:
        """Its outline."""
        return Ellipsoid(self.centre, (self.size / 2,) * 3)


@dataclass(frozen=True, slots=True)
class Cardiomegaly:
    """An enlarged heart.

    Args:
        ratio: cardiothoracic ratio, above 0.5.
    """

    ratio: float

    label = "cardiomegaly"

    @property
    def severity(self) -> str:
        """Mild to 0.55, severe from 0.62."""
        return "mild" if self.ratio < 0.55 else "moderate" if self.ratio < 0.62 else "severe"

    def grown(self, factor: float) -> Cardiomegaly:
        """The same heart, larger or smaller."""
        return replace(self, ratio=float(np.clip(0.5 + (self.ratio - 0.5) * factor, 0.515, 0.70)))


ChestFinding = Effusion | Pneumothorax | Consolidation | Nodule | Cardiomegaly
DEVICES = ("pacemaker", "endotracheal tube", "enteric tube", "central venous catheter", "chest tube", "sternal wires")


def draw_findings(body: ChestBody, rng: np.random.Generator) -> list[ChestFinding]:
    """What this patient has: nothing in a third, else one to three findings; never fluid and free air on one side."""
    if rng.random() < 0.33:
        return []
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.33, 0.17]))
    kinds = rng.choice(5, size=count, replace=False, p=[0.25, 0.17, 0.23, 0.20, 0.15])
    out: list[ChestFinding] = []
    free: list[Side] = [SIDES[i] for i in rng.permutation(2)]
    for kind in sorted(kinds.tolist()):
        if kind == 0:
            both = rng.random() < 0.25 and 1 not in kinds
            out += [_effusion(side, rng) for side in (free if both else free[:1])]
        elif kind == 1:
            out.append(Pneumothorax(free[1], float(rng.gamma(3, 14) + 16)).grown(1))
        elif kind == 2:
            out.append(_consolidation(body, rng, out))
        elif kind == 3:
            out += [_nodule(body, rng, out) for _ in range(1 + int(rng.random() < 0.25))]
        else:
            out.append(Cardiomegaly(float(rng.uniform(0.525, 0.68))))
    return out


def draw_devices(findings: list[ChestFinding], rng: np.random.Generator) -> list[tuple[str, Side | None]]:
    """Devices with the side that they come from; a chest tube only where air or fluid is."""
    if rng.random() < 0.68:
        return []
    wanted = [str(d) for d in rng.choice(DEVICES, size=int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])), replace=False)]
    drained = [f.side for f in findings if isinstance(f, Effusion | Pneumothorax)]
    out: list[tuple[str, Side | None]] = []
    for name in sorted(wanted):
        if name == "chest tube":
            if drained:
                out.append((name, drained[0]))
        elif name == "pacemaker":
            out.append((name, "left" if rng.random() < 0.85 else "right"))
        elif name == "central venous catheter":
            out.append((name, "right" if rng.random() < 0.75 else "left"))
        else:
            out.append((name, None))
    return out


def place(body: ChestBody, lobe: str, radius: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """A place in a lobe for something of this radius, inside the lung and above the diaphragm where there is room."""
    (low, high), (front, back), (inner, outer) = LOBES[lobe]
    side = 0 if lobe.startswith("right") else 1
    z = float(rng.uniform(low, high)) * body.height
    if front < -0.2 and back < 0:  # in front the dome stands higher than at the back
        z = min(z, body.tops[side] - 0.6 * radius)
    lung = body.lungs[side]
    a, b, x, y = (float(v) for v in lung.at(np.array(z)))
    border = abs(x) - a
    u = border + float(rng.uniform(inner, outer)) * 2 * a
    u = float(np.clip(u, border + min(radius, a), max(border + min(radius, a), abs(x) + a - 0.85 * radius - 4)))
    v = y + float(rng.uniform(front, back)) * max(0.0, b - radius)
    return (-u if side == 0 else u), v, z


def _lobe_side(lobe: str) -> Side:
    return "right" if lobe.startswith("right") else "left"


def _effusion(side: Side, rng: np.random.Generator) -> Effusion:
    return Effusion(side, float(np.clip(rng.gamma(3.2, 0.10) + 0.10, 0.17, 0.75)), float(rng.uniform(22, 48)))


def _free_lobe(taken: list[ChestFinding], rng: np.random.Generator) -> str:
    """A lobe that nothing else is in, on a side without fluid or free air, as far as there is one."""
    used = {getattr(f, "lobe", None) for f in taken}
    shut = {f.side for f in taken if isinstance(f, Effusion | Pneumothorax)}
    names = [n for n in LOBES if n not in used and _lobe_side(n) not in shut]
    return str(rng.choice(names or [n for n in LOBES if n not in used and "upper" in n] or list(LOBES)))


def _consolidation(body: ChestBody, rng: np.random.Generator, taken: list[ChestFinding]) -> Consolidation:
    lobe = _free_lobe(taken, rng)
    size = float(rng.uniform(22, 56))
    radii = (size * float(rng.uniform(0.65, 0.95)), size * float(rng.uniform(0.7, 1.0)), size)
    centre = place(body, lobe, 0.75 * size, rng)
    return Consolidation(_lobe_side(lobe), lobe, centre, radii, float(rng.uniform(0.55, 0.95)))


def _nodule(body: ChestBody, rng: np.random.Generator, taken: list[ChestFinding]) -> Nodule:
    lobe = _free_lobe(taken, rng)
    size = float(rng.uniform(10, 30) if rng.random() < 0.7 else rng.uniform(31, 62))
    calcified = bool(size < 16 and rng.random() < 0.3)
    return Nodule(_lobe_side(lobe), lobe, place(body, lobe, size / 2, rng), size, calcified)
