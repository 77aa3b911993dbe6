"""Studies of the chest radiograph phantom: one chest in three dimensions, projected to a frontal and a lateral view.

    seed, index -> patient, findings, devices -> lengths along rays -> film, boxes
                                              -> words of the report, labels

Both come from the same parameters: a larger effusion is a higher meniscus, a larger box and a stronger word. The same
pair of numbers gives the same pixels and the same words; a pair of studies shows one patient twice, with one change
that the later report states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from knowledge.ontology import Certainty
from vlm.data.phantoms.chest_body import ChestBody, make_body
from vlm.data.phantoms.chest_detail import skeleton, vessel_tree
from vlm.data.phantoms.chest_devices import Device, make_device
from vlm.data.phantoms.chest_findings import (
    Cardiomegaly,
    ChestFinding,
    Consolidation,
    Effusion,
    Nodule,
    Side,
    draw_devices,
    draw_findings,
)
from vlm.data.phantoms.chest_xray_dicom import write_film
from vlm.data.phantoms.chest_xray_report import Change, ChangeKind, indication, write_report
from vlm.data.phantoms.radiograph import BITS, Projector, Radiograph
from vlm.types import Box, Finding, Modality, Study, StudyImage, View

__all__ = ["chest_xray_pair", "chest_xray_study", "render", "study_of", "write_film"]

LABELS = ("cardiomegaly", "pleural_effusion", "pneumothorax", "pneumonia", "nodule", "mass", "calcification", "device")
"""What can be drawn, by the model's label list; every study says of each whether it is there."""

_HEALTHY = 0.27  # share of studies without any finding, beside those in which chance draws none
_PATIENT, _FINDINGS, _DEVICES, _BONES, _FILM, _WORDS, _CHANGE = range(7)


@dataclass(slots=True)
class Film:
    """A drawn study and the whole truth about it.

    Args:
        findings, devices: as drawn. ratio: cardiothoracic ratio of the drawn heart. views: frontal, lateral.
    """

    findings: list[ChestFinding]
    devices: list[Device]
    ratio: float
    views: tuple[Radiograph, Radiograph]


def render(
    seed: int, index: int, findings: list[ChestFinding] | None = None,
    devices: list[tuple[str, Side | None]] | None = None, visit: int = 0,
) -> Film:  # fmt: skip
    """Projects a patient.

    Args:
        seed, index: of the patient. findings, devices: what is drawn; None for what chance gives this patient.
        visit: another film of the same patient: other noise and exposure, the same bones and vessels.
    """
    if findings is None:
        findings = findings_of(seed, index)
    if devices is None:
        devices = draw_devices(findings, _stream(seed, index, _DEVICES))
    body = body_of(seed, index, findings)
    rng = _stream(seed, index, _BONES)
    bones, vessels = skeleton(body, rng), vessel_tree(body, rng)
    # A stream by name: a device stays where it is when another one comes or goes.
    placed = [make_device(name, side, body, _stream(seed, index, _DEVICES, *name.encode())) for name, side in devices]
    projector = Projector(body, findings, placed, bones, vessels)
    noise = _stream(seed, index, _FILM, visit)
    views = (projector.view("frontal", noise), projector.view("lateral", noise))
    return _seen(Film(findings, placed, body.ratio(), views))


def findings_of(seed: int, index: int) -> list[ChestFinding]:
    """What chance gives a patient; about half have nothing."""
    rng = _stream(seed, index, _FINDINGS)
    if rng.random() < _HEALTHY:
        return []
    return draw_findings(body_of(seed, index, []), rng)


def body_of(seed: int, index: int, findings: list[ChestFinding]) -> ChestBody:
    """The patient, the heart of the size that the findings ask for."""
    ratio = next((f.ratio for f in findings if isinstance(f, Cardiomegaly)), None)
    return make_body(_stream(seed, index, _PATIENT), ratio)


def chest_xray_study(seed: int, index: int) -> Study:
    """A study in memory, with the pixels that the DICOM reader gives for the written files."""
    return study_of(render(seed, index), study_id(seed, index), seed, index)


def chest_xray_pair(seed: int, index: int, change: ChangeKind | None = None) -> tuple[Study, Study]:
    """A study and the one after it, of the same patient, in which one finding has changed or none.

    Args:
        seed, index: of the patient. change: what happens to the finding; None for chance.

    Returns:
        The prior and the later study; the later one's `clinical["prior"]` is the prior's report.
    """
    rng = _stream(seed, index, _CHANGE)
    kinds: tuple[ChangeKind, ...] = get_args(ChangeKind)
    chosen = change or kinds[int(rng.integers(len(kinds)))]
    whole = render(seed, index)
    findings = list(whole.findings) or [Cardiomegaly(float(rng.uniform(0.53, 0.62)))]
    at = int(rng.integers(len(findings)))
    step = change_of(chosen, findings[at])
    before = [step.before if i == at else f for i, f in enumerate(findings)]
    after = [step.after if i == at else f for i, f in enumerate(findings)]
    # The chest tube of a finding that has yet to come is not there on the prior film.
    devices = [(d.name, d.side) for d in whole.devices]
    earlier_devices = [d for d in devices if d[0] != "chest tube" or step.kind != "new"]
    name = study_id(seed, index)
    old = render(seed, index, [f for f in before if f is not None], earlier_devices, visit=1)
    new = render(seed, index, [f for f in after if f is not None], devices, visit=2)
    # What one of the films cannot show at its size was not there, or is gone.
    then = step.before if step.before in old.findings else None
    now = step.after if step.after in new.findings else None
    if (then is None, now is None) != (step.before is None, step.after is None):
        step = Change("resolved" if now is None else "new", then, now)
    first = study_of(old, f"{name}-prior", seed, index)
    later = study_of(new, name, seed, index, step)
    text = " ".join((first.report or {}).values())
    later.clinical |= {"comparison": "Prior chest radiographs.", "prior": text}
    return first, later


def change_of(kind: ChangeKind, finding: ChestFinding) -> Change:
    """A change of this kind; "unchanged" where the finding is at the edge of what sizes there are."""
    if kind == "new":
        return Change(kind, None, finding)
    if kind == "resolved":
        return Change(kind, finding, None)
    less = finding.grown(0.6)
    if kind == "unchanged" or amount_of(less) > 0.92 * amount_of(finding):
        return Change("unchanged", finding, finding)
    return Change(kind, less, finding) if kind == "larger" else Change(kind, finding, less)


def amount_of(finding: ChestFinding) -> float:
    """The one number that draws it and that its severity is read from."""
    if isinstance(finding, Cardiomegaly):
        return finding.ratio - 0.5
    if isinstance(finding, Consolidation):
        return max(finding.radii)
    if isinstance(finding, Nodule):
        return finding.size
    return finding.amount if isinstance(finding, Effusion) else finding.gap


def study_of(film: Film, name: str, seed: int, index: int, change: Change | None = None) -> Study:
    """A drawn film as a study: pixels, boxes, labels and words."""
    images = [
        StudyImage(
            pixels=view.pixels * np.float32(1 / (2**BITS - 1)),
            view=kind,
            modality=Modality.XRAY,
            spacing_mm=(view.spacing, view.spacing),
        )
        for view, kind in zip(film.views, (View.FRONTAL, View.LATERAL), strict=True)
    ]
    boxes = _boxes(film)
    rng = _stream(seed, index, _WORDS, int(change is not None))
    report = write_report(film.findings, film.devices, film.ratio, change, rng)
    return Study(
        id=name, images=images, clinical={"indication": indication(film.findings, change is not None, rng)},
        findings=_truth(film, boxes), boxes=boxes, report=report, patient=study_id(seed, index), source="phantom",
    )  # fmt: skip


def study_id(seed: int, index: int) -> str:
    """Name of a study and its patient; unique over seeds."""
    return f"xray-{seed}-{index:05d}"


def _seen(film: Film) -> Film:
    """The film without findings that neither view shows, such as a nodule that lies outside the lung."""
    keep = [i for i in range(len(film.findings)) if any(v.boxes[i] is not None for v in film.views)]
    frontal, lateral = (replace(v, boxes=[v.boxes[i] for i in keep]) for v in film.views)
    return replace(film, findings=[film.findings[i] for i in keep], views=(frontal, lateral))


def _boxes(film: Film) -> tuple[Box, ...]:
    """All boxes of the label list, the frontal view's first; sternal wires are none of it."""
    labels = [f.label for f in film.findings] + [d.label for d in film.devices]
    return tuple(
        Box(xyxy, label, number)
        for number, view in enumerate(film.views)
        for label, xyxy in zip(labels, [*view.boxes, *view.device_boxes], strict=True)
        if xyxy is not None and label in LABELS
    )


def _truth(film: Film, boxes: tuple[Box, ...]) -> tuple[Finding, ...]:
    """Every label, present or absent, with side and boxes, and "normal"."""
    sides: dict[str, set[Side | None]] = {label: set() for label in LABELS}
    for f in film.findings:
        sides[f.label].add(None if isinstance(f, Cardiomegaly) else f.side)
        if isinstance(f, Nodule) and f.calcified:
            sides["calcification"].add(f.side)
    for d in film.devices:
        if d.label in sides:
            sides[d.label].add(d.side)
    out = []
    for label, found in sides.items():
        own = tuple(i for i, box in enumerate(boxes) if box.label == label)
        side = None if None in found or not found else "bilateral" if len(found) == 2 else next(iter(found))
        out.append(Finding(label, Certainty.PRESENT if found else Certainty.ABSENT, None, side, own))
    out.append(Finding("normal", Certainty.ABSENT if any(sides.values()) else Certainty.PRESENT))
    return tuple(out)


def _stream(seed: int, index: int, *part: int) -> np.random.Generator:
    """Random numbers of one part of one patient: another part may draw more or fewer without moving them."""
    return np.random.default_rng([seed, index, 21, *part])
