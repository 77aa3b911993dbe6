"""NIH ChestX-ray14 (Wang et al. 2017): 112,120 frontal radiographs, 14 findings mined from reports, 984 boxes.

    Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv)   Image Index, Finding Labels "A|B", Patient ID, ...
    BBox_List_2017.csv                                   Image Index, Finding Label, Bbox [x, y, w, h]
    train_val_list.txt  test_list.txt                    the official split, by patient
    images_001/images/00000001_000.png ... images_012    or all of them in images/

A listed finding is present. One that is not listed was not mentioned: unknown, save in an image with "No Finding".
Boxes were drawn for some findings of 880 images: in any other image nobody looked, and a finding without a box in an
image with boxes is present somewhere. Boxes count in the released 1024 x 1024 pixels and are scaled to copies of other
sizes. The official list has no validation part: `train_val_list.txt` is "train".
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from knowledge.ontology import Certainty
from vlm.data.files import plain_or_gz, read_text, table_rows
from vlm.types import Box, Finding, InputError, Modality, Study, StudyImage, View

LABELS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Effusion": "pleural_effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "pulmonary_fibrosis",
    "Hernia": "hiatal_hernia",
    "Infiltrate": "infiltrate",
    "Infiltration": "infiltrate",
    "Mass": "mass",
    "No Finding": "normal",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural_thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
"""The set's names -> concepts of the graph; the box list writes Infiltrate for Infiltration."""
ENTRIES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
SIDE = 1024
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_SIZES = ("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]")
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}


def read_nih(root: Path) -> list[Study]:
    """Reads the tables; images that are not on disk are left out, since the set comes in twelve parts.

    Returns:
        One study an image, in the table's order; its id is the image's stem.

    Raises:
        InputError: a table or a column is missing, a broken box, or no image on disk.
    """
    table = plain_or_gz(root, *ENTRIES)
    if table is None:
        raise InputError(f"{root}: has no {ENTRIES[0]}")
    files = _files(root)
    split_of, boxes_of = _splits(root), _boxes(root)
    studies, side = [], 0
    shared: dict[str, tuple[Finding, ...]] = {}
    for name, labels, patient, view, *sizes in table_rows(table, _COLUMNS, _SIZES):
        folder = files.get(name)
        if folder is None:
            continue
        if labels not in shared:
            shared[labels] = _findings(labels)
        path = folder / name  # a name of the listing: it cannot leave its folder
        side = side or _size(path)[0]  # copies of the set have one size; only the first image's header is read
        boxes = _scaled(boxes_of[name], path) if name in boxes_of else None
        image = StudyImage(path, view=View.FRONTAL if view in ("PA", "AP") else None, modality=Modality.XRAY,
                           spacing_mm=_spacing(sizes, side))  # fmt: skip
        studies.append(
            Study(
                path.stem, [image], findings=shared[labels], boxes=boxes, patient=patient, split=split_of.get(name),
                source="nih",
            )
        )  # fmt: skip
    if not studies:
        raise InputError(f"{root}: none of the images of {table.name} is in images/ or images_001/images ... 012")
    return studies


def is_nih(path: Path) -> bool:
    """Whether a folder looks like ChestX-ray14."""
    return path.is_dir() and plain_or_gz(path, *ENTRIES) is not None


def _files(root: Path) -> dict[str, Path]:
    """Image name -> its folder: one look at each folder."""
    folders = [root / "images", *sorted(root.glob("images_*/images")), *sorted(root.glob("images_*"))]
    out: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            out.update({name: folder for name in os.listdir(folder) if name.lower().endswith(".png")})
    return out


def _splits(root: Path) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, split in _LISTS.items():
        if (root / name).is_file():
            out.update(dict.fromkeys(read_text(root / name).split(), split))
    return out


def _findings(labels: str) -> tuple[Finding, ...]:
    names = [LABELS.get(x.strip(), x.strip()) for x in labels.split("|") if x.strip()]
    found = tuple(Finding(name, Certainty.PRESENT) for name in dict.fromkeys(names))
    if "normal" in names or not names:
        return found
    return (*found, Finding("normal", Certainty.ABSENT))


def _boxes(root: Path) -> dict[str, list[tuple[str, float, float, float, float]]]:
    path = plain_or_gz(root, "BBox_List_2017.csv")
    out: dict[str, list[tuple[str, float, float, float, float]]] = {}
    if path is None:
        return out
    columns = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
    for number, (name, label, *numbers) in enumerate(table_rows(path, columns), start=2):
        try:
            x, y, width, height = map(float, numbers)
        except ValueError:
            raise InputError(f"{path}: row {number}: a box of four numbers is expected, not {numbers}") from None
        if not (width > 0 and height > 0 and abs(x) + abs(y) < 1e6):
            raise InputError(f"{path}: row {number}: the box {numbers} is empty")
        out.setdefault(name, []).append((LABELS.get(label, label), x, y, x + width, y + height))
    return out


def _scaled(boxes: list[tuple[str, float, float, float, float]], path: Path) -> tuple[Box, ...]:
    """Boxes of the released image in pixels of the copy on disk."""
    across, down = (side / SIDE for side in _size(path))
    return tuple(Box((x1 * across, y1 * down, x2 * across, y2 * down), label) for label, x1, y1, x2, y2 in boxes)


def _size(path: Path) -> tuple[int, int]:
    """Width and height from the header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return SIDE, SIDE  # the image says itself what is wrong with it when it is read


def _spacing(sizes: list[str], side: int) -> tuple[float, float] | None:
    """(row, column) spacing of a copy of this side, from the size and spacing of the original."""
    try:
        width, height, x, y = map(float, sizes)
    except ValueError:
        return None
    return (y * height / side, x * width / side) if min(width, height, x, y) > 0 else None
