"""The phantom's report: written from the facts that drew the lesions, in the words that radiologists use for them.

Wording varies with the same random stream as the picture, so a seed fixes the text as well. Nothing is said that the
facts do not hold.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from vlm.data.phantoms.lung_lesions import Lesion

Section = Literal["findings", "impression"]
_ORDER = {"mass": 0, "infiltrate": 1, "nodule": 2, "calcification": 3}


def write_report(
    lesions: tuple[Lesion, ...], level: float, contrast: float, rng: np.random.Generator
) -> dict[Section, str]:
    """Findings and impression of one slice.

    Args:
        lesions: what was drawn. level: 0 at the apex, 1 at the base. contrast: HU of blood in the left heart. rng: of
            the wording.
    """
    ordered = sorted(lesions, key=lambda x: (_ORDER[x.kind], -x.size_mm))
    enhanced = "contrast-enhanced" if contrast > 100 else "non-contrast"
    sentences = [
        _pick(
            rng,
            f"Axial {enhanced} CT of the chest at the level of the {_landmark(level)}.",
            f"Axial {enhanced} chest CT, {_landmark(level)} level.",
        )
    ]
    sentences += [_sentence(lesion, rng) for lesion in ordered]
    if not ordered:
        sentences.append(
            _pick(
                rng,
                "The lungs are clear.",
                "No focal lung lesion is seen.",
                "The lungs are clear without nodule, mass or infiltrate.",
            )
        )
    else:
        other = [s for s in ("right", "left") if all(x.side != s for x in ordered)]
        sentences += [_pick(rng, f"The {s} lung is clear.", f"No lesion is seen in the {s} lung.") for s in other]
    sentences.append(
        _pick(
            rng,
            "No pleural effusion or pneumothorax.",
            "There is no pleural effusion or pneumothorax.",
            "No pleural effusion.",
        )
    )
    if level > 0.5:
        sentences.append(_pick(rng, "The heart is normal in size.", "Heart size is normal."))
    return {"findings": " ".join(sentences), "impression": _impression(ordered, rng)}


def _sentence(lesion: Lesion, rng: np.random.Generator) -> str:
    size, place = f"{lesion.size_mm:.0f} mm", f"in the {lesion.lobe if lesion.lobe != 'lingula' else 'left lingula'}"
    if lesion.kind == "infiltrate":
        kind = (
            "ground-glass infiltrate" if lesion.texture == "ground-glass" else "dense infiltrate with air bronchograms"
        )
        return _pick(
            rng, f"There is a {lesion.severity} {kind} {place}.", f"{lesion.severity.capitalize()} {kind} {place}."
        )
    if lesion.kind == "calcification":
        return _pick(rng, f"There is a {size} calcification {place}.", f"Dense calcification {place} measuring {size}.")
    margin = f"{lesion.margin} " if lesion.margin else ""
    article = "an" if margin.startswith(("a", "e", "i", "o", "u")) else "a"
    return _pick(
        rng, f"There is {article} {margin}{lesion.kind} {place} measuring {size}.",
        f"{margin.capitalize()}{lesion.kind} {place}, {size}.",
        f"A {size} {margin}{lesion.kind} is seen {place}.",
    )  # fmt: skip


def _impression(ordered: list[Lesion], rng: np.random.Generator) -> str:
    if not ordered:
        return _pick(rng, "Normal slice.", "No acute abnormality.", "No focal lung lesion.")
    parts = []
    for kind in dict.fromkeys(x.kind for x in ordered):
        places = list(dict.fromkeys(x.lobe for x in ordered if x.kind == kind))
        count = sum(x.kind == kind for x in ordered)
        parts.append(f"{kind}{'s' if count > 1 else ''} in the {' and '.join(places)}")
    return ". ".join(p[0].upper() + p[1:] for p in parts) + "."


def _landmark(level: float) -> str:
    names = (
        "lung apices",
        "great vessels",
        "aortic arch",
        "carina",
        "pulmonary arteries",
        "left atrium",
        "ventricles",
        "lung bases",
    )
    return names[min(len(names) - 1, int(level * len(names)))]


def _pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]
