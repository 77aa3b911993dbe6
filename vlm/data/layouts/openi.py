"""Open-i (Indiana University chest X-rays, "IU X-Ray") in the two layouts that its users download.

Indiana: `indiana_reports.csv`, `indiana_projections.csv`, `images/images_normalized/`; splits come from R2Gen's
annotation file lying beside them (Chen et al. 2020), and studies that it does not list get the split "extra": free for
training, never scored. R2Gen: `annotation.json` and `images/CXR<uid>_.../{0,1}.png`. R2Gen's `report` is the findings
section alone.

A uid is one patient's visit and never crosses a split. `labels20.json` (uid -> findings coded by people) is read when
present.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from knowledge.ontology import Certainty
from vlm.data.files import inside, read_json, read_table, sections_of, text_of
from vlm.types import Finding, InputError, Modality, Study, StudyImage, View

OPENI20 = (
    "normal / no indexing",
    "cardiomegaly",
    "scoliosis / degenerative",
    "fractures bone",
    "pleural effusion",
    "thickening",
    "pneumothorax",
    "hernia hiatal",
    "calcinosis",
    "emphysema / pulmonary emphysema",
    "pneumonia / infiltrate / consolidation",
    "pulmonary edema",
    "pulmonary atelectasis",
    "cicatrix",
    "opacity",
    "nodule / mass",
    "airspace disease",
    "hypoinflation / hyperdistention",
    "catheters indwelling / surgical instruments / tube inserted / medical device",
    "others",
)
"""The 20 labels of `labels20.json`."""

EXTRA = "extra"
_VIEWS = {"frontal": View.FRONTAL, "lateral": View.LATERAL}
_ORDER = {View.FRONTAL: 0, View.LATERAL: 1}
_CXR = re.compile(r"CXR(\d+)_")


def coded_findings(labels: list[str] | None) -> tuple[Finding, ...] | None:
    """Findings from the labels that people coded: listed ones present, the rest of the 20 absent; None stays None."""
    if labels is None:
        return None
    names = OPENI20 + tuple(x for x in labels if x not in OPENI20)
    return tuple(Finding(x, Certainty.PRESENT if x in labels else Certainty.ABSENT) for x in names)


def read_openi(root: Path) -> list[Study]:
    """Reads the Indiana layout.

    Args:
        root: folder of the two CSV files.

    Returns:
        One study a uid that has an image, in the order of the reports file, frontal views first.

    Raises:
        InputError: a file or a column is missing, or an image path leaves the folder.
    """
    reports = read_table(root / "indiana_reports.csv", ("uid", "indication", "comparison", "findings", "impression"))
    projections = root / "indiana_projections.csv"
    images: dict[str, list[StudyImage]] = {}
    folder = _image_folder(root)
    for row in read_table(projections, ("uid", "filename", "projection")):
        view = _VIEWS.get(row["projection"].strip().lower())
        image = StudyImage(inside(folder, row["filename"], projections), view=view, modality=Modality.XRAY)
        images.setdefault(row["uid"], []).append(image)
    annotation = _annotation(root)
    split_of = {_uid(entry, annotation): (split, entry) for split, entry in _entries(annotation)} if annotation else {}
    labels = _labels(root)
    studies = []
    for row in reports:
        uid = row["uid"]
        if uid not in images:
            continue
        split, entry = split_of.get(uid, (EXTRA if annotation else None, None))
        findings_text = text_of(entry, "report") if entry else row["findings"]
        studies.append(
            Study(
                id=uid,
                images=sorted(images[uid], key=lambda i: (_ORDER.get(i.view, 2) if i.view else 2, str(i.path))),
                clinical=sections_of(indication=row["indication"], comparison=row["comparison"]),
                findings=coded_findings(labels.get(uid)),
                report=sections_of(findings=findings_text, impression=row["impression"]) or None,
                patient=uid,
                split=split,
                source="openi",
            )
        )
    return studies


def read_r2gen(root: Path) -> list[Study]:
    """Reads R2Gen's layout.

    Args:
        root: folder of `annotation.json` and `images/`, or the annotation file itself.

    Returns:
        One study an entry, in the file's order. R2Gen's two images are frontal then lateral in nearly every study, but
        the file does not say so: the view is left unknown.

    Raises:
        InputError: the file is missing or an entry lacks "id", "report" or "image_path".
    """
    annotation = root if root.is_file() else _annotation(root)
    if annotation is None:
        raise InputError(f"{root}: has no annotation.json; give the folder that holds R2Gen's annotation file")
    root = annotation.parent
    folder = root / "images" if (root / "images").is_dir() else root
    labels = _labels(root)
    studies = []
    for split, entry in _entries(annotation):
        uid = _uid(entry, annotation)
        studies.append(
            Study(
                id=str(entry["id"]),
                images=[
                    StudyImage(inside(folder, str(p), annotation), modality=Modality.XRAY) for p in entry["image_path"]
                ],
                findings=coded_findings(labels.get(uid)),
                report=sections_of(findings=text_of(entry, "report")) or None,
                patient=uid,
                split=split,
                source="openi",
            )
        )
    return studies


def _image_folder(root: Path) -> Path:
    for name in ("images/images_normalized", "images_normalized", "images"):
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{root}: has no folder images/images_normalized; unpack Open-i's images there")


def _annotation(root: Path) -> Path | None:
    return next((root / n for n in ("r2gen_annotation.json", "annotation.json") if (root / n).is_file()), None)


def _labels(root: Path) -> dict[str, list[str]]:
    path = root / "labels20.json"
    if not path.is_file():
        return {}
    labels = read_json(path)
    if not isinstance(labels, dict) or not all(isinstance(v, list) for v in labels.values()):
        raise InputError(f"{path}: an object of uid -> list of labels is expected")
    return {str(k): [str(x) for x in v] for k, v in labels.items()}


def _entries(annotation: Path) -> list[tuple[str, dict[str, Any]]]:
    content = read_json(annotation)
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise InputError(f"{annotation}: an object with the lists 'train', 'val' and 'test' is expected")
    entries = [(split, entry) for split, part in content.items() for entry in part]
    for number, (split, entry) in enumerate(entries):
        missing = {"id", "report", "image_path"} - set(entry) if isinstance(entry, dict) else {"id"}
        if missing or not isinstance(entry["image_path"], list):
            raise InputError(
                f"{annotation}: entry {number} ({split}) lacks {', '.join(sorted(missing)) or 'a list image_path'}"
            )
    return entries


def _uid(entry: dict[str, Any], annotation: Path) -> str:
    match = _CXR.match(str(entry["id"]))
    if match is None:
        raise InputError(
            f"{annotation}: the id {entry['id']!r} does not look like CXR<uid>_IM-...; the uid joins the files"
        )
    return match[1]
