"""The kidney phantom: abdominal CT with cysts, stones, tumours and hydronephrosis, as slices or as whole volumes.

A volume is the stack of its patient's sections, so a lesion of the volume is the lesion of the slice. A second study of
the same patient can be had in which what is wrong has changed in a stated way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from knowledge.ontology import Certainty
from vlm.data.phantoms.draw import Canvas, blob, cloud, ellipse, shrink, tube
from vlm.data.phantoms.kidney_patient import FAT, KINDS, MUSCLE, Abdomen, KidneyLesion, Solid, make_abdomen, make_lesion
from vlm.data.phantoms.kidney_report import Change, write_report
from vlm.data.windows import MODEL_CT_WINDOW, apply_window
from vlm.types import Box, Finding, Modality, Study, StudyImage, View

SIZE = 512
STEP_MM = 4.0
"""Distance of the slices of a volume."""


@dataclass(frozen=True, slots=True)
class KidneySlice:
    """One slice and what is seen on it.

    Args:
        hu: (H, W) int16, the patient's right at the viewer's left. lesions, boxes: of this slice, in the same order.
        spacing_mm: (row, column). z: level in mm.
    """

    hu: np.ndarray
    lesions: tuple[KidneyLesion, ...]
    boxes: tuple[Box, ...]
    spacing_mm: tuple[float, float]
    z: float


def patient_of(seed: int, index: int) -> Abdomen:
    """The patient that a seed and an index name."""
    return make_abdomen(np.random.default_rng([seed, index, 11]))


def section(patient: Abdomen, z: float, seed: int, index: int, size: int = SIZE) -> KidneySlice:
    """Draws one level of a patient.

    Args:
        z: mm, 0 between the kidneys. seed, index: of noise and texture. size: pixels of a side.
    """
    rng = np.random.default_rng([seed, index, 12, round(z * 10) + 100_000])
    spacing = 2.16 * max(patient.body) / size
    canvas = Canvas(size, spacing, (size / 2, size / 2 - 4 * size / 512))
    _body(canvas, patient)
    for organ in patient.organs:
        outline = organ.section(z)
        if outline is not None:
            canvas.fill(outline, organ.value)
    for kidney in patient.kidneys.values():  # over the organs: fat keeps them apart
        _kidney(canvas, kidney, patient.contrast, z)
    lesions, boxes = [], []
    for lesion in sorted(patient.lesions, key=lambda x: KINDS.index(x.kind) != 3):
        outline = _lesion(canvas, patient, lesion, z)
        if outline is None:
            continue
        pixels = canvas.to_pixels(outline)
        (x1, y1), (x2, y2) = pixels.min(0).clip(0, size), pixels.max(0).clip(0, size)
        lesions.append(lesion)
        boxes.append(Box((float(x1), float(y1), float(x2), float(y2)), lesion.kind))
    noise = 0.55 * cloud(rng, size, size // 5) + 0.6 * cloud(rng, size, size // 2)
    grain = rng.uniform(7, 14) * (512 / size) ** -0.5
    inside = canvas.hu > -700
    hu = canvas.hu + np.float32(grain) * noise * np.where(inside, 1.0, 0.4).astype(np.float32)
    hu += inside * 5 * cloud(rng, size, 12)
    return KidneySlice(
        np.round(hu).clip(-1024, 3000).astype(np.int16), tuple(lesions), tuple(boxes), (spacing, spacing), z
    )


def _body(canvas: Canvas, patient: Abdomen) -> None:
    """Skin, fat, muscles, spine."""
    a, b = patient.body
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    squared = (np.abs(np.cos(t)) ** 2.4 + np.abs(np.sin(t)) ** 2.4) ** (-1 / 2.4)
    skin = np.stack([a * squared * np.cos(t), b * squared * np.sin(t) * np.where(np.sin(t) > 0, 0.92, 1.0)], 1)
    canvas.fill(skin, 10)
    canvas.fill(shrink(skin, 2.2), FAT)
    wall = shrink(skin, patient.fat)
    canvas.fill(wall, MUSCLE)
    canvas.fill(shrink(wall, 11.0), FAT + 6)
    back = b * 0.92 - patient.fat
    for sign in (-1, 1):
        canvas.fill(ellipse(sign * 36, back - 20, 31, 21, sign * 0.25), MUSCLE)  # erector of the spine
        canvas.fill(ellipse(sign * 36, back - 54, 13, 18, sign * 0.3), MUSCLE)  # psoas
        canvas.fill(ellipse(sign * 70, back - 24, 19, 9, sign * 0.5), MUSCLE)  # quadratus lumborum
        canvas.fill(
            tube(np.array([[sign * 14, back - 42], [sign * 38, back - 38]]), np.linspace(4.5, 2.0, 2)), 420
        )  # transverse process
    canvas.shell(ellipse(0, back - 64, 23, 17), 2.0, 620, 190)  # vertebral body
    canvas.fill(tube(np.array([[0, back - 34], [0, back - 6]]), 4.0), 520)  # spinous process
    canvas.shell(ellipse(0, back - 40, 16, 13), 4.0, 560, 30)  # arch and canal


def _kidney(canvas: Canvas, kidney: Solid, contrast: bool, z: float) -> None:
    """Parenchyma with medullary pyramids and the fat of its sinus, open towards the middle."""
    outline = kidney.section(z)
    if outline is None:
        return
    sign = float(np.sign(kidney.centre[0]))
    around = kidney.section(z, 8.0)
    if around is not None:
        canvas.fill(around, FAT)
    canvas.fill(outline, kidney.value)
    axis = 1 - ((z - kidney.centre[2]) / kidney.radii[2]) ** 2
    if contrast:
        for angle in np.linspace(-1.9, 1.9, 5):
            x = kidney.centre[0] + sign * 0.52 * kidney.radii[0] * np.cos(angle)
            y = kidney.centre[1] + 0.52 * kidney.radii[1] * np.sin(angle)
            canvas.fill(ellipse(x, y, 5.5 * axis, 6.5 * axis), kidney.value - 45)
    depth = 1 - ((z - kidney.centre[2]) / (0.55 * kidney.radii[2])) ** 2
    if depth > 0:
        scale = float(np.sqrt(depth))
        x = kidney.centre[0] - sign * 0.42 * kidney.radii[0]
        canvas.fill(
            ellipse(x, kidney.centre[1], 0.50 * kidney.radii[0] * scale, 0.34 * kidney.radii[1] * scale), FAT + 18
        )
        canvas.fill(ellipse(x, kidney.centre[1] + 2, 5 * scale, 4 * scale), 12)
        vein = np.array([[x, kidney.centre[1] - 3], [sign * 14, kidney.centre[1] - 14]])
        canvas.fill(tube(vein, 3.6 * scale), 150 if contrast else 40)


def place(patient: Abdomen, lesion: KidneyLesion) -> tuple[float, float, float]:
    """Centre of a lesion in mm."""
    kidney = patient.kidneys[lesion.side]
    sign = float(np.sign(kidney.centre[0]))
    z = kidney.centre[2] + lesion.height * kidney.radii[2]
    if lesion.kind == "hydronephrosis":
        return kidney.centre[0] - sign * 0.30 * kidney.radii[0], kidney.centre[1], kidney.centre[2]
    wide = float(np.sqrt(1 - lesion.height**2))
    out = lesion.depth * wide if lesion.kind != "kidney_stone" else 0.0
    if lesion.kind == "kidney_stone":
        return (
            kidney.centre[0] - sign * (0.30 - 0.5 * lesion.depth) * kidney.radii[0],
            kidney.centre[1] + 0.3 * lesion.direction[1] * kidney.radii[1], z,
        )  # fmt: skip
    return (
        kidney.centre[0] + sign * out * kidney.radii[0] * lesion.direction[0],
        kidney.centre[1] + out * kidney.radii[1] * lesion.direction[1], z,
    )  # fmt: skip


def _lesion(canvas: Canvas, patient: Abdomen, lesion: KidneyLesion, z: float) -> np.ndarray | None:
    """Draws a lesion's section and returns its outline (P, 2) in mm; None where it does not reach this level."""
    x, y, level = place(patient, lesion)
    radius = lesion.size_mm / 2
    long = radius if lesion.kind != "hydronephrosis" else 0.62 * patient.kidneys[lesion.side].radii[2]
    depth = 1 - ((z - level) / long) ** 2
    if depth <= 0.02:
        return None
    scale = float(np.sqrt(depth))
    rng = np.random.default_rng(lesion.seed)  # the same at every level
    if lesion.kind == "hydronephrosis":
        return _hydronephrosis(canvas, patient, lesion, (x, y), scale, rng)
    if lesion.kind == "kidney_stone":
        outline = blob(rng, x, y, radius * scale, radius * scale * rng.uniform(0.7, 1.0), 0.05)
        canvas.fill(outline, lesion.value)
        return outline
    if lesion.kind == "kidney_cyst":
        outline = ellipse(x, y, radius * scale, radius * scale * rng.uniform(0.92, 1.0))
        canvas.fill(outline, lesion.value)
        return outline
    outline = blob(rng, x, y, radius * scale, radius * scale * rng.uniform(0.85, 1.0), 0.045)
    canvas.fill(outline, lesion.value)
    if lesion.size_mm > 30:  # necrosis
        core = blob(rng, x + 0.1 * radius, y, 0.5 * radius * scale, 0.42 * radius * scale, 0.12)
        canvas.fill(core, 22, 0.85)
    for _ in range(6):
        u, v = (float(x) for x in rng.uniform(-0.6, 0.6, 2))
        r = float(rng.uniform(0.12, 0.3))
        spot = ellipse(x + u * radius * scale, y + v * radius * scale, r * radius * scale, r * radius * scale)
        canvas.fill(spot, lesion.value + rng.normal(0, 22), 0.6)
    return outline


def _hydronephrosis(
    canvas: Canvas,
    patient: Abdomen,
    lesion: KidneyLesion,
    centre: tuple[float, float],
    scale: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """A wide renal pelvis and calyces around it; its front-to-back diameter is the lesion's size."""
    kidney = patient.kidneys[lesion.side]
    sign = float(np.sign(kidney.centre[0]))
    x, y = centre
    half = lesion.size_mm / 2
    pelvis = ellipse(x - sign * 0.25 * half, y, 0.95 * half * scale, half * scale)
    parts = [pelvis]
    for angle in np.linspace(-1.15, 1.15, 4):
        far = 0.62 * kidney.radii[0]
        cx, cy = x + sign * far * np.cos(angle) * 0.9, y + 0.62 * kidney.radii[1] * np.sin(angle)
        r = max(2.5, 0.34 * half) * scale * rng.uniform(0.8, 1.1)
        parts.append(ellipse(cx, cy, r, r * 0.9))
        canvas.fill(tube(np.array([[x, y], [cx, cy]]), 0.45 * r), lesion.value)
    for part in parts:
        canvas.fill(part, lesion.value)
    return np.concatenate(parts)


def level_of(patient: Abdomen, rng: np.random.Generator) -> float:
    """The level that a single slice shows: through one of the lesions, or anywhere through both kidneys."""
    if not patient.lesions:
        return float(rng.uniform(-22, 22))
    chosen = patient.lesions[int(rng.integers(len(patient.lesions)))]
    return place(patient, chosen)[2] + float(rng.uniform(-0.2, 0.2)) * chosen.size_mm / 2


def truth(lesions: tuple[KidneyLesion, ...]) -> tuple[Finding, ...]:
    """All four kinds, present or absent, with side and boxes, and "normal"."""
    out = []
    for kind in KINDS:
        own = tuple(i for i, lesion in enumerate(lesions) if lesion.kind == kind)
        sides = {lesions[i].side for i in own}
        side = "bilateral" if len(sides) == 2 else next(iter(sides), None)
        out.append(Finding(kind, Certainty.PRESENT if own else Certainty.ABSENT, None, side, own))  # type: ignore[arg-type]
    out.append(Finding("normal", Certainty.ABSENT if lesions else Certainty.PRESENT))
    return tuple(out)


def render(seed: int, index: int) -> tuple[Abdomen, KidneySlice]:
    """The patient and the slice of a single-slice study."""
    patient = patient_of(seed, index)
    z = level_of(patient, np.random.default_rng([seed, index, 13]))
    return patient, section(patient, z, seed, index)


def kidney_study(seed: int, index: int) -> Study:
    """A study of one slice, in memory."""
    return kidney_study_slice(seed, index)[0]


def kidney_study_slice(seed: int, index: int) -> tuple[Study, KidneySlice]:
    """A study of one slice, and the slice in Hounsfield units."""
    patient, drawn = render(seed, index)
    return study_of(patient, drawn, f"kidney-{seed}-{index:05d}", seed, index), drawn


def study_of(
    patient: Abdomen,
    drawn: KidneySlice,
    name: str,
    seed: int,
    index: int,
    changes: tuple[Change, ...] = (),
    prior: str | None = None,
) -> Study:
    """A study of a drawn slice, with its truth and its report."""
    image = StudyImage(
        pixels=apply_window(drawn.hu, *MODEL_CT_WINDOW), view=View.AXIAL, modality=Modality.CT,
        spacing_mm=drawn.spacing_mm,
    )  # fmt: skip
    report = write_report(drawn.lesions, patient.contrast, changes, np.random.default_rng([seed, index, 14]))
    clinical = {"indication": "Flank pain."} | ({"prior": prior} if prior else {})
    return Study(
        id=name, images=[image], clinical=clinical, findings=truth(drawn.lesions), boxes=drawn.boxes, report=report,
        patient=f"kidney-{seed}-{index:05d}", source="phantom",
    )  # fmt: skip


def kidney_pair(seed: int, index: int) -> tuple[Study, Study]:
    """A study and the one after it, in memory."""
    (first, _), (second, _) = kidney_pair_slices(seed, index)
    return first, second


def kidney_pair_slices(seed: int, index: int) -> tuple[tuple[Study, KidneySlice], tuple[Study, KidneySlice]]:
    """A study and the one after it, of the same patient at the same level, in which something has changed or nothing.

    The change is drawn by the size that is written: what is new is not drawn before, what has resolved not after.
    """
    rng = np.random.default_rng([seed, index, 15])
    later = patient_of(seed, index)
    if not later.lesions:
        later = replace(later, lesions=(make_lesion(KINDS[int(rng.integers(3))], "left", rng, later.contrast),))
    target = later.lesions[int(rng.integers(len(later.lesions)))]
    kind = ("new", "larger", "smaller", "resolved", "unchanged")[int(rng.integers(5))]
    before, after = {
        "new": (None, target), "larger": (target.sized(0.6 * target.size_mm), target),
        "smaller": (target, target.sized(0.6 * target.size_mm)), "resolved": (target, None),
        "unchanged": (target, target),
    }[kind]  # fmt: skip
    if before is not None and after is not None and before.size_mm == after.size_mm:
        kind = "unchanged"  # at the edge of what sizes there are
    z = place(later, target)[2]
    rest = tuple(x for x in later.lesions if x is not target)
    first = replace(later, lesions=rest + ((before,) if before else ()))
    second = replace(later, lesions=rest + ((after,) if after else ()))
    name = f"kidney-{seed}-{index:05d}"
    old = section(first, z, seed, index)
    earlier = study_of(first, old, f"{name}-prior", seed, index)
    change = Change(kind, target, before.size_mm if before else None, after.size_mm if after else None)  # type: ignore[arg-type]
    text = (earlier.report or {}).get("findings")
    drawn = section(second, z, seed, index + 1_000_000)
    return (earlier, old), (study_of(second, drawn, name, seed, index, (change,), text), drawn)


def kidney_volume(seed: int, index: int, size: int = 256) -> tuple[np.ndarray, tuple[float, float, float], Study]:
    """A whole volume.

    Returns:
        (Z, H, W) int16 HU from the feet to the head, (slice, row, column) spacing in mm, and the study without images,
        whose boxes name their slice by `Box.image`.
    """
    patient = patient_of(seed, index)
    reach = max(abs(k.centre[2]) + k.radii[2] for k in patient.kidneys.values()) + 8
    levels = np.arange(-reach, reach + 1e-6, STEP_MM)
    slices = [section(patient, float(z), seed, index, size) for z in levels]
    seen = [x for x in patient.lesions if any(x in s.lesions for s in slices)]
    boxes, owners = [], []
    for number, drawn in enumerate(slices):
        for lesion, box in zip(drawn.lesions, drawn.boxes, strict=True):
            boxes.append(replace(box, image=number))
            owners.append(lesion)
    findings = tuple(
        replace(f, boxes=tuple(i for i, x in enumerate(owners) if x.kind == f.label)) for f in truth(tuple(seen))
    )
    report = write_report(tuple(seen), patient.contrast, (), np.random.default_rng([seed, index, 14]))
    name = f"kidney-{seed}-{index:05d}"
    study = Study(name, [], {"indication": "Flank pain."}, findings, tuple(boxes), report, name, None, "phantom")
    spacing = slices[0].spacing_mm[0]
    return np.stack([s.hu for s in slices]), (STEP_MM, spacing, spacing), study
