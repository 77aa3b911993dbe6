"""The chest radiograph phantom's report: written from the parameters that drew the findings and the devices.

Wording varies with its own random stream, so a seed fixes the text as well. Nothing is said that was not drawn, and
what was not drawn is denied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlm.data.phantoms.chest_devices import Device
from vlm.data.phantoms.chest_findings import (
    Cardiomegaly,
    ChestFinding,
    Consolidation,
    Effusion,
    Nodule,
    Pneumothorax,
)

ChangeKind = Literal["new", "larger", "smaller", "resolved", "unchanged"]
_INDICATIONS = {
    "pleural_effusion": ("Shortness of breath.", "Dyspnea and leg swelling.", "Decreased breath sounds at the base."),
    "pneumothorax": ("Sudden chest pain.", "Chest pain and dyspnea.", "Trauma."),
    "pneumonia": ("Cough and fever.", "Productive cough for five days.", "Fever, elevated white count."),
    "nodule": ("Smoker with weight loss.", "Hemoptysis.", "Cough for two months."),
    "mass": ("Smoker with weight loss.", "Hemoptysis.", "Weight loss and fatigue."),
    "cardiomegaly": ("Dyspnea on exertion.", "Orthopnea.", "History of hypertension, dyspnea."),
}
_ROUTINE = ("Cough.", "Chest pain.", "Preoperative evaluation.", "Shortness of breath.", "Positive PPD.", "Fever.")


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of one finding since the prior study.

    Args:
        kind: of change. before, after: the finding as it was drawn then and now; None where it was or is not there.
    """

    kind: ChangeKind
    before: ChestFinding | None
    after: ChestFinding | None


def write_report(
    findings: list[ChestFinding],
    devices: list[Device],
    ratio: float,
    change: Change | None,
    rng: np.random.Generator,
) -> dict[str, str]:
    """Findings and impression.

    Args:
        findings, devices: what is seen. ratio: cardiothoracic ratio. change: since the prior study; None without one.
        rng: of the wording.
    """
    lines = [_device(d, rng) for d in devices]
    lines += _heart(findings, ratio, change, rng)
    lines += [_lung(f, change, rng) for f in findings if isinstance(f, Consolidation | Nodule)]
    lines += _clear(findings, rng)
    lines += _pleura(findings, change, rng)
    if change is not None and change.kind == "resolved" and change.before is not None:
        name = _name(change.before)
        lines.append(_pick(rng, f"The previously seen {name} has resolved.", f"Interval resolution of the {name}."))
    if rng.random() < 0.4:
        lines.append(_pick(rng, "The bones are intact.", "No acute bony abnormality.", "The bony thorax is intact."))
    return {"findings": " ".join(lines), "impression": _impression(findings, devices, change, rng)}


def indication(findings: list[ChestFinding], prior: bool, rng: np.random.Generator) -> str:
    """Why the study was asked for; with a prior, half of the time a follow-up."""
    if prior and rng.random() < 0.5:
        return "Follow-up."
    words = _INDICATIONS[str(findings[0].label)] if findings and rng.random() < 0.7 else _ROUTINE
    return _pick(rng, *words)


def _heart(findings: list[ChestFinding], ratio: float, change: Change | None, rng: np.random.Generator) -> list[str]:
    large = next((f for f in findings if isinstance(f, Cardiomegaly)), None)
    if large is None:
        return [
            _pick(
                rng, "The heart size is normal.", "The cardiac silhouette is normal in size.",
                f"Heart size is within normal limits, the cardiothoracic ratio is {ratio:.2f}.",
            )
        ]  # fmt: skip
    size = f"cardiothoracic ratio {ratio:.2f}"
    text = _pick(
        rng, f"{large.severity.capitalize()} cardiomegaly, {size}",
        f"There is {large.severity} enlargement of the heart, {size}",
        f"The cardiac silhouette is {large.severity}ly enlarged, {size}",
    )  # fmt: skip
    return [text + _since(large, change, rng) + "."]


def _lung(finding: Consolidation | Nodule, change: Change | None, rng: np.random.Generator) -> str:
    since = _since(finding, change, rng)
    lobe = finding.lobe if finding.lobe != "lingula" else "left lingula"
    if isinstance(finding, Consolidation):
        return _pick(
            rng, f"There is a {finding.severity} consolidation in the {lobe}{since}.",
            f"{finding.severity.capitalize()} consolidation of the {lobe}{since}.",
            f"The {lobe} shows a {finding.severity} patchy consolidation{since}.",
        )  # fmt: skip
    size, name = f"{finding.size:.0f} mm", ("calcified " if finding.calcified else "") + finding.label
    article = "An" if size[0] == "8" or size[:2] in ("11", "18") else "A"
    return _pick(
        rng, f"{article} {size} {name} is seen in the {lobe}{since}.",
        f"There is a {name} in the {lobe} measuring {size}{since}.",
        f"{name.capitalize()} in the {lobe}, {size}{since}.",
    )  # fmt: skip


def _clear(findings: list[ChestFinding], rng: np.random.Generator) -> list[str]:
    """What the lungs don't have."""
    labels = {f.label for f in findings}
    if not labels & {"pneumonia", "nodule", "mass"}:
        if labels & {"pleural_effusion", "pneumothorax"}:
            return [_pick(rng, "No focal consolidation.", "There is no consolidation or nodule.")]
        return [_pick(rng, "The lungs are clear.", "The lungs are clear without consolidation.", "Lungs are clear.")]
    if "pneumonia" not in labels:
        return [_pick(rng, "No focal consolidation.", "There is no consolidation.")]
    return [] if labels & {"nodule", "mass"} or rng.random() < 0.5 else ["No pulmonary nodule is seen."]


def _pleura(findings: list[ChestFinding], change: Change | None, rng: np.random.Generator) -> list[str]:
    fluid = [f for f in findings if isinstance(f, Effusion)]
    air = [f for f in findings if isinstance(f, Pneumothorax)]
    out = []
    for f in fluid:
        since = _since(f, change, rng)
        out.append(
            _pick(
                rng, f"There is a {f.severity} {f.side} pleural effusion{since}.",
                f"{f.severity.capitalize()} {f.side} pleural effusion with a meniscus{since}.",
                f"{f.severity.capitalize()} pleural effusion on the {f.side}{since}.",
            )
        )  # fmt: skip
    for p in air:
        since = _since(p, change, rng)
        out.append(
            _pick(
                rng, f"There is a {p.severity} {p.side} pneumothorax{since}.",
                f"{p.severity.capitalize()} {p.side} apical pneumothorax measuring {p.gap:.0f} mm{since}.",
                f"{p.severity.capitalize()} pneumothorax on the {p.side}{since}.",
            )
        )  # fmt: skip
    denied = [name for name, found in (("pleural effusion", fluid), ("pneumothorax", air)) if not found]
    if denied:
        out.append(_pick(rng, f"No {' or '.join(denied)}.", f"There is no {' or '.join(denied)}."))
    return out


def _device(device: Device, rng: np.random.Generator) -> str:
    side = f"{device.side} " if device.side else ""
    if device.name == "endotracheal tube":
        return _pick(
            rng, f"The endotracheal tube tip is {device.tip_mm or 0:.0f} mm above the carina.",
            f"An endotracheal tube ends {(device.tip_mm or 0) / 10:.1f} cm above the carina.",
        )  # fmt: skip
    texts = {
        "enteric tube": ("An enteric tube extends into the stomach.", "The enteric tube tip is in the stomach."),
        "central venous catheter": (
            f"A {side}central venous catheter ends in the superior vena cava.",
            f"The tip of a {side}central venous catheter is in the SVC.",
        ),
        "chest tube": (f"A {side}chest tube is in place.", f"A {side}chest tube points to the apex."),
        "pacemaker": (
            f"A {side}chest wall pacemaker is in place.", f"A {device.side}-sided pacemaker is noted.",
        ),
        "sternal wires": ("Median sternotomy wires are present.", "Sternal wires are intact."),
    }  # fmt: skip
    return _pick(rng, *texts[device.name])


def _since(finding: ChestFinding, change: Change | None, rng: np.random.Generator) -> str:
    """How a finding compares with the prior; whatever the change does not name is as it was."""
    if change is None:
        return ""
    if change.after != finding:
        return _pick(rng, "", ", unchanged since the prior study")
    if change.kind == "new":
        return ", new since the prior study"
    if change.kind == "unchanged":
        return _pick(rng, ", unchanged since the prior study", ", stable compared with the prior study")
    word = "increased" if change.kind == "larger" else "decreased"
    then = ""
    if isinstance(change.before, Nodule):
        then = f", previously {change.before.size:.0f} mm"
    elif isinstance(change.before, Cardiomegaly):
        then = f", previously {change.before.ratio:.2f}"
    elif change.before is not None and change.before.severity != finding.severity:
        then = f", previously {change.before.severity}"
    return f", {word} since the prior study{then}"


def _name(finding: ChestFinding) -> str:
    """A finding without its severity."""
    if isinstance(finding, Effusion):
        return f"{finding.side} pleural effusion"
    if isinstance(finding, Pneumothorax):
        return f"{finding.side} pneumothorax"
    if isinstance(finding, Cardiomegaly):
        return "cardiomegaly"
    kind = "consolidation" if isinstance(finding, Consolidation) else finding.label
    return f"{finding.lobe if finding.lobe != 'lingula' else 'lingular'} {kind}"


def _impression(
    findings: list[ChestFinding], devices: list[Device], change: Change | None, rng: np.random.Generator
) -> str:
    parts = []
    for f in findings:
        adverb = {"new": "new ", "larger": "increased ", "smaller": "decreased ", "unchanged": "unchanged "}
        how = adverb[change.kind] if change is not None and change.after == f and change.kind in adverb else ""
        size = f"{f.size:.0f} mm " if isinstance(f, Nodule) else f"{f.severity} "
        parts.append(f"{how}{size}{_name(f)}")
    if change is not None and change.kind == "resolved" and change.before is not None:
        parts.append(f"resolved {_name(change.before)}")
    if devices and not parts:
        return _pick(
            rng, "Lines, tubes and devices as above. No acute abnormality.", "No acute cardiopulmonary abnormality."
        )
    if not parts:
        return _pick(
            rng, "No acute cardiopulmonary abnormality.", "Normal chest.", "No acute disease.", "Normal radiograph.",
        )  # fmt: skip
    return ". ".join(p[0].upper() + p[1:] for p in parts) + "."


def _pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]
