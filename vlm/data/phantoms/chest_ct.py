"""The phantom: axial chest CT slices with lesions whose place, size and box are known exactly, and reports of the same
facts.

Everything follows from (seed, index): the same pair gives the same pixels, the same words and the same DICOM bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from knowledge.ontology import Certainty
from vlm.data.phantoms.chest_anatomy import draw_chest, finish, lung_field
from vlm.data.phantoms.chest_patient import make_chest
from vlm.data.phantoms.chest_report import Section, write_report
from vlm.data.phantoms.draw import Canvas
from vlm.data.phantoms.lung import draw_airways, draw_fissures, draw_vessels
from vlm.data.phantoms.lung_lesions import KINDS, Lesion, LesionPainter, plan_lesions
from vlm.data.windows import MODEL_CT_WINDOW, apply_window
from vlm.types import Box, Finding, Modality, Study, StudyImage, View

SIZE = 512


@dataclass(frozen=True, slots=True)
class PhantomSlice:
    """One slice and the whole truth about it.

    Args:
        hu: (512, 512) int16 Hounsfield units in radiological display: the patient's right at the viewer's left.
        boxes, lesions: one box a lesion, in the same order.
        spacing_mm: (row, column). level: 0 at the apex, 1 at the base. report: sections written from the lesions.
    """

    hu: np.ndarray
    boxes: tuple[Box, ...]
    lesions: tuple[Lesion, ...]
    spacing_mm: tuple[float, float]
    level: float
    report: dict[Section, str]


def render(seed: int, index: int) -> PhantomSlice:
    """Draws slice `index` of the series that `seed` names."""
    rng = np.random.default_rng([seed, index])
    chest = make_chest(rng)
    widest = max(chest.body_a, chest.body_b) * 2.22
    spacing = float(rng.uniform(widest, widest * 1.14) / SIZE)
    centre = (SIZE / 2 + rng.normal(0, 5), SIZE / 2 - 8 + rng.normal(0, 6))
    canvas = Canvas(SIZE, spacing, centre, float(np.clip(rng.normal(0, 0.035), -0.1, 0.1)))
    lungs = draw_chest(canvas, chest, rng)
    layer = lung_field(chest, rng, canvas)
    draw_fissures(canvas, chest, rng, layer)
    painter = LesionPainter(canvas, chest, lungs, layer)
    kinds = plan_lesions(rng)
    lesions = [painter.paint(kind, rng) for kind in kinds if kind == "infiltrate"]
    vessels = draw_vessels(canvas, chest, rng)
    layer += vessels * np.maximum(np.float32(chest.blood() * 0.8) - layer, 0)
    draw_airways(canvas, chest, rng, layer)
    lesions += [painter.paint(kind, rng) for kind in kinds if kind != "infiltrate"]
    canvas.hu += lungs * (layer - canvas.hu)
    hu = finish(canvas, chest, rng)
    found = tuple(x for x in lesions if x is not None)
    boxes = tuple(Box(x.xyxy, x.kind) for x in found)
    report = write_report(found, chest.level, chest.contrast, np.random.default_rng([seed, index, 1]))
    return PhantomSlice(hu, boxes, found, (spacing, spacing), chest.level, report)


def truth(rendered: PhantomSlice) -> tuple[Finding, ...]:
    """All four kinds, present or absent, with side and boxes, and "normal"."""
    out = []
    for kind in KINDS:
        own = tuple(i for i, lesion in enumerate(rendered.lesions) if lesion.kind == kind)
        sides = {rendered.lesions[i].side for i in own}
        side = "bilateral" if len(sides) == 2 else next(iter(sides), None)
        out.append(Finding(str(kind), Certainty.PRESENT if own else Certainty.ABSENT, None, side, own))  # type: ignore[arg-type]
    out.append(Finding("normal", Certainty.ABSENT if rendered.lesions else Certainty.PRESENT))
    return tuple(out)


def study_id(seed: int, index: int) -> str:
    """Name of a phantom study; unique over seeds."""
    return f"phantom-{seed}-{index:05d}"


def phantom_study(seed: int, index: int) -> Study:
    """A phantom study in memory, with the pixels that the DICOM reader gives for the written file."""
    rendered = render(seed, index)
    image = StudyImage(
        pixels=apply_window(rendered.hu, *MODEL_CT_WINDOW),
        view=View.AXIAL,
        modality=Modality.CT,
        spacing_mm=rendered.spacing_mm,
    )
    return _study(rendered, study_id(seed, index), image)


def _study(rendered: PhantomSlice, name: str, image: StudyImage) -> Study:
    return Study(
        id=name, images=[image], findings=truth(rendered), boxes=rendered.boxes,
        report={str(k): v for k, v in rendered.report.items()}, patient=name, source="phantom",
    )  # fmt: skip


def write_phantom(out: Path, n: int, seed: int, show: bool = False) -> list[Study]:
    """Writes `n` studies as DICOM files and their truth as `studies.jsonl`.

    Args:
        out: folder, made when absent. n: how many. seed: the same seed gives the same bytes. show: a progress bar.

    Returns:
        The studies, their images named by path.
    """
    from vlm.data.layouts.tabular import write_studies
    from vlm.data.phantoms.dicom_files import write_slice

    out.mkdir(parents=True, exist_ok=True)
    studies = []
    for index in track(range(n), description="phantom", disable=not show, transient=True):
        rendered = render(seed, index)
        name = study_id(seed, index)
        path = out / f"{name}.dcm"
        write_slice(path, rendered.hu, rendered.spacing_mm, seed, index)
        image = StudyImage(path=path, view=View.AXIAL, modality=Modality.CT, spacing_mm=rendered.spacing_mm)
        studies.append(_study(rendered, name, image))
    write_studies(out / "studies.jsonl", studies)
    return studies
