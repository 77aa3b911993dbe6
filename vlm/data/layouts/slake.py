"""SLAKE (Liu et al. 2021): `imgs/xmlab<N>/{source.jpg, detection.json, question.json}`.

Organs and lesions stand in one list of boxes. Lesions of chest radiographs that mean the same as ours take our name;
everything else keeps its own. The radiographs come from a set whose boxes are of the named diseases only, so a lesion
without a box is unknown, and an image without a box is one that nobody boxed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from knowledge.ontology import Certainty
from vlm.data.files import read_json
from vlm.types import Box, Finding, InputError, Modality, Study, StudyImage, View

LESIONS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Effusion": "pleural_effusion",
    "Infiltrate": "infiltrate",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
"""Boxes of chest radiographs -> the model's labels."""

_MODALITIES = {"X-Ray": Modality.XRAY, "CT": Modality.CT, "MRI": Modality.MR}
_PLANES = {"transverse": View.AXIAL, "coronal": View.CORONAL, "sagittal": View.SAGITTAL}


def read_slake(root: Path) -> list[Study]:
    """Reads SLAKE's own layout.

    Args:
        root: folder that holds `imgs/`, or `imgs` itself.

    Returns:
        One study a folder `xmlab<N>`, by number.

    Raises:
        InputError: no such folders, or a broken file in one.
    """
    folder = root / "imgs" if (root / "imgs").is_dir() else root
    folders = [p for p in folder.glob("xmlab*") if p.is_dir() and p.name.removeprefix("xmlab").isdigit()]
    if not folders:
        raise InputError(f"{root}: holds no folder imgs/xmlab<N>; unpack SLAKE's imgs.zip there")
    return [_study(p) for p in sorted(folders, key=lambda p: int(p.name.removeprefix("xmlab")))]


def is_slake(path: Path) -> bool:
    """Whether a folder looks like SLAKE."""
    return (
        path.is_dir()
        and (next((path / "imgs").glob("xmlab*/source.jpg"), None) or next(path.glob("xmlab*/source.jpg"), None))
        is not None
    )


def _study(folder: Path) -> Study:
    questions = read_json(folder / "question.json") if (folder / "question.json").is_file() else []
    if not isinstance(questions, list) or not all(isinstance(q, dict) for q in questions):
        raise InputError(f"{folder / 'question.json'}: a list of objects is expected")
    about: dict[str, Any] = questions[0] if questions else {}
    modality = _MODALITIES.get(str(about.get("modality")))
    chest = modality is Modality.XRAY and "lung" in str(about.get("location", "")).lower()
    boxes = _boxes(folder / "detection.json", LESIONS if chest else {})
    present = sorted({b.label for b in boxes} & set(LESIONS.values()))
    findings = [Finding(label, Certainty.PRESENT) for label in present]
    if present:
        findings.append(Finding("normal", Certainty.ABSENT))
    return Study(
        id=folder.name,
        images=[StudyImage(folder / "source.jpg", view=_view(questions, modality), modality=modality)],
        findings=tuple(findings) or None,
        boxes=boxes or None,
        source="slake",
    )


def _boxes(path: Path, names: dict[str, str]) -> tuple[Box, ...]:
    if not path.is_file():
        return ()
    content = read_json(path)
    boxes = []
    try:
        for entry in content:
            for name, (x, y, width, height) in entry.items():
                xyxy = (float(x), float(y), float(x) + float(width), float(y) + float(height))
                if all(map(math.isfinite, xyxy)) and width > 0 and height > 0:
                    boxes.append(Box(xyxy, names.get(name, name)))
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{path}: a list of {{name: [x, y, width, height]}} is expected") from None
    return tuple(boxes)


def _view(questions: list[dict[str, Any]], modality: Modality | None) -> View | None:
    """The plane that an answer names; radiographs of the chest are all frontal ("coronal")."""
    for question in questions:
        answer = str(question.get("answer", "")).lower().split()
        if "plane" in answer and answer[0] in _PLANES:
            plane = _PLANES[answer[0]]
            return View.FRONTAL if modality is Modality.XRAY and plane is View.CORONAL else plane
    return View.FRONTAL if modality is Modality.XRAY else None
