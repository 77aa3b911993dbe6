"""The kidney phantom's report: written from the sizes that drew the lesions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlm.data.phantoms.kidney_patient import KINDS, KidneyLesion, Kind

NAMES: dict[Kind, tuple[str, ...]] = {
    "kidney_cyst": ("renal cyst", "simple renal cyst", "cortical cyst"),
    "kidney_stone": ("renal calculus", "renal stone"),
    "kidney_tumour": ("renal mass",), "hydronephrosis": ("hydronephrosis",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of a lesion since the prior study; sizes in mm, None where it was or is not there."""

    kind: Literal["new", "larger", "smaller", "resolved", "unchanged"]
    lesion: KidneyLesion
    before: float | None
    after: float | None


def write_report(
    lesions: tuple[KidneyLesion, ...], contrast: bool, changes: tuple[Change, ...], rng: np.random.Generator
) -> dict[str, str]:
    """Findings and impression.

    Args:
        lesions: what is seen. contrast: medium was given. changes: since the prior study. rng: of the wording.
    """
    ordered = sorted(lesions, key=lambda x: (-KINDS.index(x.kind), -x.size_mm))
    enhanced = "contrast-enhanced" if contrast else "non-contrast"
    opening = f"Axial {enhanced} CT of the abdomen at the level of the kidneys."
    sentences = [_pick(rng, opening, f"{enhanced.capitalize()} abdominal CT.")]
    sentences += [_sentence(x, rng) for x in ordered]
    sentences += [_change(c) for c in changes]
    absent = [k for k in KINDS if all(x.kind != k for x in lesions)]
    if not lesions:
        sentences.append(_pick(rng, "Both kidneys are normal in size and position.", "The kidneys are unremarkable."))
    denied = [NAMES[k][0] for k in absent]
    if denied:
        listed = denied[0] if len(denied) == 1 else f"{', '.join(denied[:-1])} or {denied[-1]}"
        sentences.append(_pick(rng, f"No {listed}.", f"There is no {listed}."))
    return {"findings": " ".join(sentences), "impression": _impression(ordered, changes, rng)}


def _sentence(lesion: KidneyLesion, rng: np.random.Generator) -> str:
    side, size, name = lesion.side, f"{lesion.size_mm:.0f} mm", _pick(rng, *NAMES[lesion.kind])
    if lesion.kind == "hydronephrosis":
        return _pick(
            rng, f"{lesion.severity.capitalize()} {side} hydronephrosis, the renal pelvis measures {size}.",
            f"There is {lesion.severity} {side} hydronephrosis with a renal pelvis of {size}.",
        )  # fmt: skip
    where = "in the renal pelvis" if lesion.kind == "kidney_stone" else f"in the {lesion.pole}"
    texture = "heterogeneous " if lesion.kind == "kidney_tumour" and lesion.size_mm > 30 else ""
    return _pick(
        rng, f"There is a {size} {texture}{side} {name} {where}.",
        f"{side.capitalize()} {texture}{name} {where} measuring {size}.",
        f"A {texture}{side} {name} of {size} is seen {where}.",
    )  # fmt: skip


def _change(change: Change) -> str:
    side, name = change.lesion.side, NAMES[change.lesion.kind][0]
    if change.kind == "new":
        return f"The {side} {name} is new since the prior study."
    if change.kind == "resolved":
        return f"The previously seen {side} {name} has resolved."
    if change.kind == "unchanged":
        return f"The {side} {name} is unchanged since the prior study."
    verb = "increased" if change.kind == "larger" else "decreased"
    return f"The {side} {name} has {verb} from {change.before:.0f} to {change.after:.0f} mm since the prior study."


def _impression(ordered: list[KidneyLesion], changes: tuple[Change, ...], rng: np.random.Generator) -> str:
    news = {c.lesion.kind: c.kind for c in changes}
    if not ordered:
        return _pick(rng, "Normal kidneys.", "No acute abnormality of the kidneys.")
    parts = []
    for x in ordered:
        name = f"{x.severity} {x.side} hydronephrosis" if x.kind == "hydronephrosis" else f"{x.side} {NAMES[x.kind][0]}"
        state = news.get(x.kind)
        told = {"new": "New ", "larger": "Enlarging ", "smaller": "Smaller ", "unchanged": "Stable "}.get(
            state or "", ""
        )
        text = f"{told}{name}"
        parts.append(text[0].upper() + text[1:])
    return ". ".join(parts) + "."


def _pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]
