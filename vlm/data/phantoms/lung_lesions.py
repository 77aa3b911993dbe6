"""Lesions of the phantom: drawn into the lung layer, and measured from the very mask that was drawn.

A lesion's outline is scaled so that its longest diameter is exactly the size that its report states; its box is the
bounding box of the pixels that it covers by at least half; side and lobe follow from its centre and the fissure that
is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from vlm.data.phantoms.chest_patient import Chest
from vlm.data.phantoms.draw import Canvas, blob, cloud
from vlm.data.phantoms.lung import fissure_y

KINDS = ("nodule", "mass", "calcification", "infiltrate")
_SHARES = (0.32, 0.20, 0.22, 0.26)
_COUNTS = (0.25, 0.40, 0.22, 0.13)
_RANGE_MM = {"nodule": (6.0, 30.0), "mass": (31.0, 62.0), "calcification": (4.0, 10.0), "infiltrate": (26.0, 90.0)}


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion and everything a report can say of it.

    Args:
        kind: one of `KINDS`.
        side: the patient's side.
        lobe: "right upper lobe", ..., "lingula".
        size_mm: longest diameter.
        severity: from the size (nodule, mass, calcification) or the share of its lung (infiltrate).
        texture: "solid", "ground-glass", "dense", "calcified".
        margin: "smooth", "lobulated", "spiculated" or "ill-defined".
        xyxy: box in pixels.
        hu: value at its core.
    """

    kind: str
    side: Literal["left", "right"]
    lobe: str
    size_mm: float
    severity: Literal["mild", "moderate", "severe"]
    texture: str
    margin: str
    xyxy: tuple[float, float, float, float]
    hu: float


def plan_lesions(rng: np.random.Generator) -> list[str]:
    """How many lesions, and of which kinds: none in a quarter of the slices, three at most; the largest first."""
    count = rng.choice(len(_COUNTS), p=_COUNTS)
    kinds = [str(k) for k in rng.choice(KINDS, size=count, p=_SHARES)]
    return sorted(kinds, key=lambda k: -_RANGE_MM[k][1])


class LesionPainter:
    """Places lesions so that they don't touch one another.

    Args:
        canvas, chest: of the slice.
        lungs: (H, W) coverage of the lungs.
        layer: (H, W) the lungs' inside in HU, changed in place.
    """

    def __init__(self, canvas: Canvas, chest: Chest, lungs: np.ndarray, layer: np.ndarray) -> None:
        self.canvas, self.chest, self.lungs, self.layer = canvas, chest, lungs, layer
        self.free = (lungs > 0.98).astype(np.uint8)
        self.lung_area = {s: float(self._half(s).sum()) for s in ("left", "right")}

    def _half(self, side: str) -> np.ndarray:
        middle = round(self.canvas.centre[0])
        return self.lungs[:, :middle] if side == "right" else self.lungs[:, middle:]

    def paint(self, kind: str, rng: np.random.Generator) -> Lesion | None:
        """Draws one lesion; None when no place is left for it."""
        low, high = _RANGE_MM[kind]
        size = float(rng.uniform(low, high))
        clearance = {"nodule": 0.56, "mass": 0.36, "calcification": 0.7, "infiltrate": 0.12}[kind]
        distance = cv2.distanceTransform(self.free, cv2.DIST_L2, 3) * np.float32(self.canvas.spacing)
        for _ in range(4):
            rows, columns = np.nonzero(distance[::2, ::2] > clearance * size + 1.5)
            if len(rows):
                pick = int(rng.integers(len(rows)))
                pixel = np.array([columns[pick] * 2 + 0.5, rows[pick] * 2 + 0.5])
                lesion = (
                    self._infiltrate(pixel, size, rng) if kind == "infiltrate" else self._focal(kind, pixel, size, rng)
                )
                if lesion is not None:
                    return lesion
            size = max(low, size * 0.75)
        return None

    def _focal(self, kind: str, pixel: np.ndarray, size: float, rng: np.random.Generator) -> Lesion | None:
        margin = "smooth" if kind == "calcification" else str(rng.choice(["smooth", "lobulated", "spiculated"]))
        rough = {"smooth": 0.04, "lobulated": 0.10, "spiculated": 0.07}[margin]
        outline = blob(rng, 0, 0, 1.0, 1.0 if kind != "mass" else float(rng.uniform(0.72, 1.0)), rough)
        outline *= size / _diameter(outline) / self.canvas.spacing
        drawn = self.canvas.patch_pixels(outline + pixel)
        if drawn is None:
            return None
        if margin == "spiculated":
            drawn = self._spicules(drawn, pixel, outline, rng)
        where, alpha = drawn
        soft = 0.9 if kind == "calcification" else float(rng.uniform(0.6, 1.1))
        alpha = cv2.GaussianBlur(alpha, (0, 0), soft) if size > 6 else alpha
        hu = float(rng.uniform(300, 900)) if kind == "calcification" else float(rng.uniform(15, 75))
        value = np.full(alpha.shape, hu, np.float32)
        if kind == "mass":
            value += cloud(rng, max(alpha.shape), 6)[: alpha.shape[0], : alpha.shape[1]] * np.float32(12)
            if rng.random() < 0.25:  # necrotic centre
                value -= np.float32(35) * cv2.GaussianBlur((alpha > 0.9).astype(np.float32), (0, 0), max(2.0, size / 8))
        target = self.layer[where]
        target += alpha * (value - target)
        texture = "calcified" if kind == "calcification" else "solid"
        return self._measure(kind, where, alpha, pixel, size, texture, margin, hu)

    def _spicules(
        self,
        drawn: tuple[tuple[slice, slice], np.ndarray],
        pixel: np.ndarray,
        outline: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Thin strands that radiate from the rim; fainter than half, so that they don't stretch the box."""
        reach = float(np.linalg.norm(outline, axis=1).max()) * 1.5 + 4
        whole = self.canvas.patch_pixels(pixel + reach * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]))
        if whole is None:
            return drawn
        where, _ = whole
        origin = pixel - (where[1].start, where[0].start) - 0.5
        strands = np.zeros((where[0].stop - where[0].start, where[1].stop - where[1].start), np.uint8)
        for i in rng.choice(len(outline), int(rng.integers(7, 14)), replace=False):
            tip = origin + outline[i] * rng.uniform(1.25, 1.55) + rng.normal(0, 1, 2)
            ends = [tuple(np.round(p * 16).astype(int).tolist()) for p in (origin + outline[i] * 0.7, tip)]
            cv2.line(strands, ends[0], ends[1], 150, 1, cv2.LINE_AA, 4)
        alpha: np.ndarray = np.zeros(strands.shape, np.float32)
        inner, core = drawn
        y, x = inner[0].start - where[0].start, inner[1].start - where[1].start
        if y < 0 or x < 0 or y + core.shape[0] > alpha.shape[0] or x + core.shape[1] > alpha.shape[1]:
            return drawn
        alpha[y : y + core.shape[0], x : x + core.shape[1]] = core
        return where, np.maximum(alpha, cv2.GaussianBlur(strands, (0, 0), 0.6).astype(np.float32) / 255)

    def _infiltrate(self, pixel: np.ndarray, size: float, rng: np.random.Generator) -> Lesion | None:
        radius = size / 2 / self.canvas.spacing
        flat = float(rng.uniform(0.55, 0.95))
        reach = int(radius * 1.5) + 6
        x0, y0 = max(0, int(pixel[0]) - reach), max(0, int(pixel[1]) - reach)
        x1, y1 = min(self.canvas.size, int(pixel[0]) + reach), min(self.canvas.size, int(pixel[1]) + reach)
        where = (slice(y0, y1), slice(x0, x1))
        turn = rng.uniform(0, np.pi)
        v, u = np.mgrid[y0:y1, x0:x1].astype(np.float32) + np.float32(0.5)
        u, v = u - np.float32(pixel[0]), v - np.float32(pixel[1])
        along, across = u * np.cos(turn) + v * np.sin(turn), (v * np.cos(turn) - u * np.sin(turn)) / flat
        side = max(y1 - y0, x1 - x0)
        rough = cloud(rng, side, 7)[: y1 - y0, : x1 - x0] * np.float32(0.24)
        rough += cloud(rng, side, 18)[: y1 - y0, : x1 - x0] * np.float32(0.12)
        field = (1.0 - np.sqrt(along**2 + across**2) / np.float32(radius) + rough).astype(np.float32)
        open_lung = (self.lungs[where] > 0.5) & (self.free[where] > 0)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            ((field > 0.12) & open_lung).astype(np.uint8), connectivity=4
        )
        if count < 2:
            return None
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[largest, cv2.CC_STAT_AREA] * self.canvas.spacing**2 < 120:
            return None
        keep = cv2.GaussianBlur(
            cv2.dilate((parts == largest).astype(np.float32), np.ones((5, 5), np.uint8)), (0, 0), 1.5
        )
        dense = bool(rng.random() < 0.45)
        peak = float(rng.uniform(0.72, 0.98)) if dense else float(rng.uniform(0.34, 0.55))
        shape = np.clip(0.5 + (field - 0.12) * np.float32(2.2 if dense else 1.6), 0, 1) * keep
        opacity = shape * np.float32(peak)
        if dense:
            opacity *= 1 - self._bronchograms(where, pixel, radius, rng)
        target = self.layer[where]
        target += opacity * (np.maximum(target, np.float32(45)) - target)
        return self._measure(
            "infiltrate",
            where,
            shape,
            pixel,
            None,
            "dense" if dense else "ground-glass",
            "ill-defined",
            peak * 900 - 860,
        )

    def _bronchograms(
        self, where: tuple[slice, slice], pixel: np.ndarray, radius: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Air-filled bronchi that stay dark inside a dense infiltrate: coverage (h, w) float32."""
        layer = np.zeros(self.layer[where].shape, np.uint8)
        middle = pixel - (where[1].start, where[0].start)
        inward = np.arctan2(self.canvas.centre[1] - pixel[1], self.canvas.centre[0] - pixel[0])
        stack = [(middle + radius * 0.8 * np.array([np.cos(inward), np.sin(inward)]), inward + np.pi, 3.0)]
        for _ in range(16):
            if not stack:
                break
            start, heading, width = stack.pop(0)
            end = start + radius * rng.uniform(0.3, 0.5) * np.array([np.cos(heading), np.sin(heading)])
            cv2.line(
                layer,
                np.rint(start).astype(int).tolist(),
                np.rint(end).astype(int).tolist(),
                230,
                max(1, round(width)),
                cv2.LINE_AA,
            )
            if width > 1.2:
                stack += [(end, heading + turn, width * 0.72) for turn in rng.normal((-0.5, 0.5), 0.12)]
        return cv2.GaussianBlur(layer, (0, 0), 0.6).astype(np.float32) / 255

    def _measure(
        self, kind: str, where: tuple[slice, slice], alpha: np.ndarray, pixel: np.ndarray, size: float | None,
        texture: str, margin: str, hu: float,
    ) -> Lesion | None:  # fmt: skip
        """The lesion as rendered: its mask is where it covers at least half of a pixel of lung."""
        mask = (alpha * np.minimum(1, self.lungs[where] * 2) >= 0.5) & (self.lungs[where] > 0.5)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return None
        top, left = where[0].start, where[1].start
        xyxy = (
            float(left + columns[0]),
            float(top + rows[0]),
            float(left + columns[-1] + 1),
            float(top + rows[-1] + 1),
        )
        if size is None:
            contour = np.argwhere(mask ^ cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool))
            size = _diameter(contour[:: max(1, len(contour) // 200)]) * self.canvas.spacing
        lobe = lobe_of(self.chest, *self.canvas.to_mm(pixel[None])[0])
        side: Literal["left", "right"] = "right" if lobe.startswith("right") else "left"
        share = float(mask.sum()) / max(1.0, self.lung_area[side])
        grade = (
            share / 0.25
            if kind == "infiltrate"
            else (size - _RANGE_MM[kind][0]) / (_RANGE_MM[kind][1] - _RANGE_MM[kind][0])
        )
        severity: Literal["mild", "moderate", "severe"] = (
            "mild" if grade < 0.33 else "moderate" if grade < 0.8 else "severe"
        )
        gap = 8
        self.free[max(0, int(xyxy[1]) - gap) : int(xyxy[3]) + gap, max(0, int(xyxy[0]) - gap) : int(xyxy[2]) + gap] = 0
        return Lesion(kind, side, lobe, round(float(size), 1), severity, texture, margin, xyxy, round(hu, 0))


def lobe_of(chest: Chest, x: float, y: float) -> str:
    """The lobe at a place in mm: behind the fissure the lower one; in front, upper, middle or lingula by the level."""
    side = "right" if x < 0 else "left"
    behind = chest.level > 0.28 and y > fissure_y(chest, abs(x), chest.fissure[0 if x < 0 else 1])
    if behind:
        return f"{side} lower lobe"
    if chest.level < 0.55:
        return f"{side} upper lobe"
    return "right middle lobe" if side == "right" else "lingula"


def _diameter(points: np.ndarray) -> float:
    """The longest distance between two points (P, 2)."""
    gaps = points[:, None].astype(np.float32) - points[None].astype(np.float32)
    return float(np.sqrt((gaps**2).sum(-1).max()))
