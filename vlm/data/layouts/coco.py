"""COCO box files ("images", "annotations", "categories"), TBX11K and KSSD among them.

A COCO file boxes every object of its categories, so a category without a box in an image is absent there, and an image
without any box has none. Two exceptions leave "unknown": a group box (`iscrowd`) or a box without area says that the
category is there, not where; and an image of TBX11K without a box is not a healthy one (every image of that list is
positive).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowledge.ontology import Certainty
from vlm.data.files import inside, read_json
from vlm.types import Box, Finding, InputError, Modality, Study, StudyImage, View

MODALITIES = {"x-ray": Modality.XRAY, "xray": Modality.XRAY, "ct": Modality.CT, "mr": Modality.MR, "mri": Modality.MR}
LISTS = ("train", "val", "valid", "test")
_SPLITS = {"valid": "val", "validation": "val"}
_HEAD = re.compile(r'"(images|annotations|categories)"\s*:\s*\[')


@dataclass(frozen=True, slots=True)
class _Known:
    """A data set that is recognised by a category: its name, its view, what its categories mean, whether all images
    are positive."""

    source: str
    view: View
    labels: Mapping[str, str]
    positive: bool = False


_TBX11K = _Known(
    "tbx11k",
    View.FRONTAL,
    {"ActiveTuberculosis": "tuberculosis", "ObsoletePulmonaryTuberculosis": "tuberculosis"},
    positive=True,
)
_KSSD = _Known("kssd", View.AXIAL, {})
_KNOWN = {"ActiveTuberculosis": _TBX11K, "kidney stone": _KSSD}


def read_coco(path: Path) -> list[Study]:
    """Reads a COCO file, or the `train.json`, `val.json`, `test.json` (or the only JSON file) of a folder.

    Args:
        path: file or folder; images lie beside the file, in `images/`, or in a folder named like the file.

    Returns:
        One study an image; the split is the file's name where that is one.

    Raises:
        InputError: not a COCO file, an annotation that points nowhere (named by its number), or a path that leaves the
            folder.
    """
    studies: list[Study] = []
    seen: set[str] = set()
    for file in lists_in(path):
        for study in _read_list(file):
            study.id = study.id if study.id not in seen else f"{file.stem}/{study.id}"
            if study.id in seen:
                raise InputError(f"{file}: the image {study.id!r} is listed twice")
            seen.add(study.id)
            studies.append(study)
    return studies


def lists_in(path: Path) -> list[Path]:
    """The COCO files of a path, `train` first.

    Raises:
        InputError: a folder without any.
    """
    if not path.is_dir():
        return [path]
    named = [path / f"{name}.json" for name in LISTS if is_coco_file(path / f"{name}.json")]
    others = [p for p in sorted(path.glob("*.json")) if is_coco_file(p)]
    if not named and len(others) != 1:
        raise InputError(f"{path}: has no train.json, val.json or test.json of COCO boxes; give the file itself")
    return named or others


def is_coco(path: Path) -> bool:
    """Whether a path looks like COCO boxes."""
    if not path.is_dir():
        return is_coco_file(path)
    files = [p for p in path.glob("*.json") if is_coco_file(p)]
    return len(files) == 1 or any(p.stem in LISTS for p in files)


def is_coco_file(path: Path) -> bool:
    """Whether a file begins like a COCO file."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as stream:
        return _HEAD.search(stream.read(1 << 16).decode("utf-8", "replace")) is not None


def _read_list(path: Path) -> list[Study]:
    content = read_json(path)
    parts = [content.get(k) if isinstance(content, dict) else None for k in ("images", "annotations", "categories")]
    if not all(isinstance(p, list) and all(isinstance(x, dict) for x in p) for p in parts):
        raise InputError(
            f"{path}: is not a COCO file (the lists 'images', 'annotations' and 'categories' are expected)"
        )
    images, annotations, categories = parts
    try:
        names = {c["id"]: str(c["name"]) for c in categories or ()}
        listed = {i["id"]: str(i["file_name"]) for i in images or ()}
    except KeyError as error:
        raise InputError(f"{path}: an image or a category lacks the key {error}") from None
    known = next((_KNOWN[n] for n in names.values() if n in _KNOWN), None)
    labels = {key: (known.labels if known else {}).get(name, name) for key, name in names.items()}
    by_image: dict[Any, list[dict[str, Any]]] = {key: [] for key in listed}
    for number, annotation in enumerate(annotations or ()):
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if image not in by_image or category not in labels:
            raise InputError(
                f"{path}: annotation {number} points at image {image!r}, category {category!r}: not listed"
            )
        by_image[image].append(annotation)
    folder = _folder(path, next(iter(listed.values()), ""))
    split = _SPLITS.get(path.stem.lower(), path.stem.lower())
    return [
        _study(path, folder, image, by_image[image["id"]], labels, known, split if split in LISTS else None)
        for image in images or ()
    ]


def _folder(path: Path, name: str) -> Path:
    """The folder that image names are relative to: the file's, or its `images/`, or the one named like the file."""
    for folder in (path.parent, path.parent / "images", path.parent / path.stem):
        if name and (folder / name).is_file():
            return folder
    return path.parent


def _study(
    path: Path,
    folder: Path,
    image: Mapping[str, Any],
    annotations: list[dict[str, Any]],
    labels: Mapping[Any, str],
    known: _Known | None,
    split: str | None,
) -> Study:
    name = str(image["file_name"])
    boxes: list[Box] = []
    certainty: dict[str, Certainty | None] = dict.fromkeys(labels.values(), Certainty.ABSENT)
    for annotation in annotations:
        label, xyxy = labels[annotation["category_id"]], _xyxy(path, annotation)
        if xyxy is None or annotation.get("iscrowd"):
            certainty[label] = None
            continue
        boxes.append(Box(xyxy, label))
        if certainty[label] is Certainty.ABSENT:
            certainty[label] = Certainty.PRESENT
    findings = tuple(Finding(label, said) for label, said in certainty.items())
    if boxes and known:
        findings += (Finding("normal", Certainty.ABSENT),)
    unknown = not annotations and known is not None and known.positive
    modality = MODALITIES.get(str(image.get("modality", "")).lower())
    return Study(
        id=Path(name).with_suffix("").as_posix().removeprefix("images/"),
        images=[StudyImage(inside(folder, name, path), view=known.view if known else None, modality=modality)],
        findings=None if unknown else findings,
        boxes=None if unknown else tuple(boxes),
        split=split,
        source=known.source if known else path.parent.name,
    )


def _xyxy(path: Path, annotation: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """x, y, width, height -> x1, y1, x2, y2; None without area."""
    try:
        x, y, width, height = (float(v) for v in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: annotation {annotation.get('id')!r} has no 'bbox' of four numbers") from None
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None
