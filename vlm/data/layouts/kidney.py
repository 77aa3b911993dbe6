"""CT-KIDNEY (Islam et al. 2022): 12,446 coronal and axial slices in the class folders Cyst, Normal, Stone, Tumor.

    CT-KIDNEY-DATASET-Normal-Cyst-Tumor-Stone/{Cyst,Normal,Stone,Tumor}/Cyst- (1).jpg
    kidneyData.csv      image_id, path, diag, target, Class; used where the images do not lie in class folders

The class is one finding of the slice: nothing is said of the others, so they stay unknown; "Normal" denies all three.
The set names no patients, and neighbouring numbers are neighbouring slices: a random split leaks. Split by ranges of
numbers within a class.
"""

from __future__ import annotations

import re
from pathlib import Path

from knowledge.ontology import Certainty
from vlm.data.files import table_rows
from vlm.types import Finding, InputError, Modality, Study, StudyImage

CLASSES = {"cyst": "kidney_cyst", "stone": "kidney_stone", "tumor": "kidney_tumour", "normal": "normal"}
"""Class folder in small letters -> concept of the graph."""
_SUFFIXES = (".jpg", ".jpeg", ".png")
_NUMBER = re.compile(r"\d+")
_TABLE = "kidneyData.csv"


def read_kidney(root: Path) -> list[Study]:
    """Reads the class folders, at most two levels below `root`; without them the images that `kidneyData.csv` names.

    Returns:
        One study an image, by class and number; its id is "Cyst/Cyst- (1)".

    Raises:
        InputError: neither class folders nor a table with images beside it.
    """
    found: dict[str, list[Path]] = {}
    for folder in _class_folders(root):
        files = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")]
        found.setdefault(folder.name.capitalize(), []).extend(files)
    if not found:
        found = _by_table(root)
    return [
        Study(
            f"{name}/{file.stem}", [StudyImage(file, modality=Modality.CT)], findings=_findings(name), source="kidney"
        )
        for name, files in sorted(found.items())
        for file in sorted(files, key=_order)
    ]


def is_kidney(path: Path) -> bool:
    """Whether a folder holds at least two of the class folders, "Stone" or "Cyst" among them, or the table."""
    names = {folder.name.lower() for folder in _class_folders(path)} if path.is_dir() else set()
    return (len(names) > 1 and bool(names & {"stone", "cyst"})) or (path.is_dir() and (path / _TABLE).is_file())


def _class_folders(root: Path) -> list[Path]:
    """The archive holds a folder of its own name twice."""
    level = [root]
    for _ in range(3):
        found = [p for folder in level for p in sorted(folder.iterdir()) if p.is_dir() and p.name.lower() in CLASSES]
        if found:
            return found
        below = (p for folder in level for p in sorted(folder.iterdir())[:50])
        level = [p for p in below if p.is_dir() and "kidney" in p.name.lower()]
    return []


def _by_table(root: Path) -> dict[str, list[Path]]:
    table = root / _TABLE
    if not table.is_file():
        raise InputError(f"{root}: has none of the folders Cyst, Normal, Stone, Tumor, and no {_TABLE}")
    files = {p.stem: p for p in sorted(root.rglob("*")) if p.suffix.lower() in _SUFFIXES}
    out: dict[str, list[Path]] = {}
    for number, (name, kind) in enumerate(table_rows(table, ("image_id", "Class")), start=1):
        if kind.lower() not in CLASSES:
            raise InputError(f"{table}: row {number}: the class {kind!r} is not one of Cyst, Normal, Stone, Tumor")
        if name in files:
            out.setdefault(kind.capitalize(), []).append(files[name])
    return out


def _findings(name: str) -> tuple[Finding, ...]:
    concept = CLASSES[name.lower()]
    if concept == "normal":
        absent = tuple(Finding(c, Certainty.ABSENT) for c in CLASSES.values() if c != "normal")
        return (Finding("normal", Certainty.PRESENT), *absent)
    return Finding(concept, Certainty.PRESENT), Finding("normal", Certainty.ABSENT)


def _order(path: Path) -> tuple[int, str]:
    number = _NUMBER.search(path.stem)
    return int(number[0]) if number else 0, path.name
