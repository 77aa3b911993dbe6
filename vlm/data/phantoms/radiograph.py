"""Radiographs of a drawn chest: lengths along rays -> attenuation -> film.

    trunk, lungs, heart, ...  (solids)  --lengths-->  attenuation at half resolution, enlarged
    ribs, vessels, tubes, ... (curves)  --lengths-->  added at full resolution
    attenuation --scatter, noise, film curve-->  12 bits

Beams are parallel. Attenuation per centimetre is that of about 70 keV: soft tissue 0.19, aerated lung a quarter of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vlm.data.phantoms.chest_body import ChestBody
from vlm.data.phantoms.chest_detail import Curve, bronchi, draw_curves, draw_vessels
from vlm.data.phantoms.chest_devices import Device
from vlm.data.phantoms.chest_findings import (
    Cardiomegaly,
    ChestFinding,
    Consolidation,
    Effusion,
    Nodule,
    Pneumothorax,
)
from vlm.data.phantoms.draw import cloud
from vlm.data.phantoms.solids import Axis, Ellipsoid, Grid, Interval, Stack, hull, length, without

SIZE = 512
SOFT, LUNG, BONE, METAL = 0.019, 0.0050, 0.034, 0.30  # per mm, bone and metal beyond soft tissue
BITS = 12


@dataclass(slots=True)
class Radiograph:
    """One view.

    Args:
        pixels: (512, 512) uint16 of 12 bits, bright where little passes, in radiological display.
        boxes: one for each finding and each device, None where this view does not show it.
        spacing: mm a pixel.
    """

    pixels: np.ndarray
    boxes: list[tuple[float, float, float, float] | None]
    device_boxes: list[tuple[float, float, float, float] | None]
    spacing: float


def grids(axis: Axis, body: ChestBody) -> tuple[Grid, Grid]:
    """The view's pixels at full and at half resolution."""
    width = 1.30 * max(body.height, 262 * body.scale)
    step = width / SIZE
    top = -0.135 * body.height
    out = []
    for size in (SIZE, SIZE // 2):
        own = width / size
        centres = ((np.arange(size) + 0.5) * own).astype(np.float32)
        shift = 0.0 if axis == "frontal" else 6.0
        out.append(Grid(axis, centres - np.float32(width / 2 - shift), centres + np.float32(top)))
    assert abs(float(out[0].u[1] - out[0].u[0]) - step) < 1e-3
    return out[0], out[1]


class Projector:
    """Projects one patient with all findings.

    Args:
        body: the patient. findings, devices: what is drawn. bones: layers of curves. vessels: the tree.
    """

    def __init__(
        self,
        body: ChestBody,
        findings: list[ChestFinding],
        devices: list[Device],
        bones: dict[str, list[Curve]],
        vessels: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        self.body, self.findings, self.devices, self.bones, self.vessels = body, findings, devices, bones, vessels

    def view(self, axis: Axis, rng: np.random.Generator) -> Radiograph:
        """One radiograph; `rng` of noise, exposure and texture."""
        full, half = grids(axis, self.body)
        self.masks: list[np.ndarray | None] = [None] * len(self.findings)
        smooth, share = self._smooth(half, rng)
        attenuation: Any = cv2.resize(smooth, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        open_lung = cv2.resize(share, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        trunk = attenuation > 0.4
        attenuation += draw_vessels(self.vessels, full) * open_lung * np.float32(3.0 * SOFT)
        attenuation -= draw_curves(bronchi(self.body), full, False) * np.float32(0.5 * SOFT)
        for curves in self.bones.values():
            attenuation += draw_curves(curves, full) * np.float32(BONE * (1.0 if axis == "frontal" else 0.5))
        device_boxes = []
        for device in self.devices:
            layer = draw_curves(list(device.curves), full, False)
            attenuation += layer * np.float32(METAL if device.name in ("pacemaker", "sternal wires") else 0.14)
            device_boxes.append(_box(layer > 0.35 * float(layer.max()), 1))
        boxes = [None if mask is None else _box(mask, 2) for mask in self.masks]
        pixels = _film(attenuation, trunk, axis, rng)
        return Radiograph(pixels, boxes, device_boxes, float(full.u[1] - full.u[0]))

    def _smooth(self, grid: Grid, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(h, w) attenuation of the solids, and the share of the lungs along each ray that holds air and vessels."""
        body = self.body
        between = hull(*(solid.interval(grid) for solid in body.middle.values()))
        aorta = body.aorta.interval(grid)
        trunk = body.trunk.interval(grid)
        total = length(trunk)
        for breast in body.breasts:
            own = breast.interval(grid)
            outside = length(own) - length(own, trunk)
            total += np.float32(0.8) * cv2.GaussianBlur(outside, (0, 0), 2.5)
        attenuation = total * np.float32(SOFT)
        shares = np.zeros(grid.shape, np.float32)
        texture = 1 + 0.06 * cloud(rng, grid.shape[0], 24) + 0.05 * cloud(rng, grid.shape[0], 60)
        for number, lung in enumerate(body.lungs):
            cavity, dome = lung.interval(grid), body.domes[number].interval(grid)
            behind = np.maximum(length(cavity, aorta) - length(cavity, aorta, between), 0) * 0.9
            whole = np.maximum(without(cavity, between, dome) - behind, 0)
            aerated, left, fill = lung, whole, 0.0
            side = "right" if number == 0 else "left"
            for at, finding in enumerate(self.findings):
                if isinstance(finding, Effusion | Pneumothorax) and finding.side == side:
                    aerated = finding.aerated(lung, body.height)
                    left = np.maximum(without(aerated.interval(grid), between, dome) - behind, 0)
                    left = np.minimum(left, whole)
                    fill = SOFT if isinstance(finding, Effusion) else 0.0
                    self._mark_pleura(at, finding, whole - left, grid)
                    if isinstance(finding, Pneumothorax):
                        attenuation += _edge(left, whole) * np.float32(SOFT * 2.4)
            lesions = self._lesions(side, aerated, between, dome, grid, rng)
            attenuation -= whole * np.float32(SOFT) - left * texture * np.float32(LUNG)
            attenuation += (whole - left) * np.float32(fill) + lesions
            shares += np.where(whole > 1, left / np.maximum(whole, 1), 0) * np.minimum(left / 25, 1)
        self._mark_heart(grid)
        attenuation -= length(body.trachea.interval(grid), trunk) * np.float32(0.9 * SOFT)
        if body.stomach is not None:
            attenuation -= length(body.stomach.interval(grid)) * np.float32(0.85 * SOFT)
        attenuation += (
            length(body.spine.interval(grid))
            * self._vertebrae(grid)
            * np.float32((0.17 if grid.axis == "frontal" else 0.24) * BONE * body.bone)
        )
        return attenuation, np.minimum(shares, 1)

    def _lesions(
        self, side: str, aerated: Stack, between: Interval, dome: Interval, grid: Grid, rng: np.random.Generator
    ) -> np.ndarray:
        """Attenuation of nodules and consolidations of one lung, beyond that of the lung that they replace."""
        out: np.ndarray = np.zeros(grid.shape, np.float32)
        lung = aerated.interval(grid)
        for at, finding in enumerate(self.findings):
            if not isinstance(finding, Nodule | Consolidation) or finding.side != side:
                continue
            low, high = finding.solid().interval(grid)
            low, high = np.maximum(low, lung[0]), np.minimum(high, lung[1])
            inside = np.maximum(without((low, high), between, dome), 0)
            if isinstance(finding, Nodule):
                gain = (SOFT - LUNG) + (0.035 if finding.calcified else 0.004)
                out += inside * np.float32(gain)
                self.masks[at] = inside > 0.30 * finding.size
            else:
                rough = 1 + 0.30 * cloud(rng, grid.shape[0], 26) + 0.20 * cloud(rng, grid.shape[0], 60)
                soft = cv2.GaussianBlur(inside * np.clip(rough, 0.2, 1.6), (0, 0), 2.2)
                out += soft * np.float32((SOFT - LUNG) * finding.density)
                self.masks[at] = inside > 0.25 * float(inside.max(initial=1e-3))
            if not (inside > 1).any():
                self.masks[at] = None
        return out

    def _mark_pleura(self, at: int, finding: ChestFinding, gap: np.ndarray, grid: Grid) -> None:
        """Where fluid or air is seen: at least 8 mm of fluid, or a third of the most air, along the ray."""
        most = float(gap.max())
        if isinstance(finding, Pneumothorax):
            seen = grid.axis == "frontal"
            self.masks[at] = (gap > max(6.0, 0.22 * most)) if seen else None
        else:
            self.masks[at] = gap > max(8.0, 0.22 * most)

    def _mark_heart(self, grid: Grid) -> None:
        for at, finding in enumerate(self.findings):
            if isinstance(finding, Cardiomegaly):
                self.masks[at] = length(hull(*(c.interval(grid) for c in self.body.chambers))) > 0

    def _vertebrae(self, grid: Grid) -> np.ndarray:
        """(h, 1) density along the spine: bodies, and discs between them."""
        pitch = 0.094 * self.body.height
        phase = (grid.z / pitch) % 1.0
        disc = np.exp(-(((phase - 0.5) / 0.10) ** 2))
        ends = np.exp(-(((np.abs(phase - 0.5) - 0.19) / 0.05) ** 2))
        return (1 - 0.75 * disc + 0.35 * ends).astype(np.float32)[:, None]


def _edge(lung: np.ndarray, cavity: np.ndarray) -> np.ndarray:
    """The visceral pleura: a line in mm where the lung's shadow ends and that of free air goes on."""
    mask = (lung > 3).astype(np.uint8)
    line = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)).astype(np.float32)
    line *= cavity > lung + 8
    return cv2.GaussianBlur(line, (0, 0), 0.6) * 6


def _film(attenuation: np.ndarray, trunk: np.ndarray, axis: Axis, rng: np.random.Generator) -> np.ndarray:
    """Attenuation -> 12 bits: scatter flattens, quanta make noise, the curve holds lung and mediastinum apart."""
    attenuation = np.maximum(attenuation, 0)
    small = cv2.resize(attenuation, (64, 64), interpolation=cv2.INTER_AREA)
    scatter = cv2.resize(cv2.GaussianBlur(small, (0, 0), 5), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    value = attenuation - 0.42 * scatter
    rows = slice(SIZE // 6, -SIZE // 6, 4)
    low, high = np.percentile(value[rows, ::4][trunk[rows, ::4]], (4, 96))
    dark, bright = float(rng.uniform(0.14, 0.24)), float(rng.uniform(0.86, 0.95))
    shown = dark + (value - low) * np.float32((bright - dark) / max(1e-3, high - low))
    np.maximum(shown, 0, out=shown)
    noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    noise *= np.float32(rng.uniform(0.006, 0.012))
    shown += noise * (shown + np.float32(0.5))
    over = np.maximum(shown - np.float32(0.88), 0)  # the shoulder of the film curve
    shown -= over * over / (over + np.float32(0.10))
    _marker(shown, axis, rng)
    return np.round(np.clip(shown, 0, 1) * (2**BITS - 1)).astype(np.uint16)


def _marker(shown: np.ndarray, axis: Axis, rng: np.random.Generator) -> None:
    """A lead letter: "L" at the patient's left, which is the viewer's right, or "R" at the other side."""
    if rng.random() < 0.25:
        return
    left = axis == "lateral" or rng.random() < 0.6
    letter = "L" if left else "R"
    x = int(rng.uniform(0.90, 0.93) * SIZE) if left else int(rng.uniform(0.03, 0.05) * SIZE)
    layer = np.zeros(shown.shape, np.uint8)
    where = (x, int(rng.uniform(0.06, 0.12) * SIZE))
    cv2.putText(layer, letter, where, cv2.FONT_HERSHEY_SIMPLEX, 0.9, 255, 2, cv2.LINE_AA)
    np.maximum(shown, layer.astype(np.float32) * np.float32(0.98 / 255), out=shown)


def _box(mask: np.ndarray, scale: int) -> tuple[float, float, float, float] | None:
    """Bounding box of a mask in pixels of the full image; None for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    return (
        float(columns[0] * scale), float(rows[0] * scale),
        float((columns[-1] + 1) * scale), float((rows[-1] + 1) * scale),
    )  # fmt: skip


def solids_of(body: ChestBody) -> list[Ellipsoid | Stack]:
    """All that lies between the lungs."""
    return list(body.middle.values())
