"""SLAKE, COCO (TBX11K, KSSD) and MedPix: miniatures, what stays unknown, and the real sets where they are at hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from knowledge.ontology import Certainty
from vlm.data.images import load_image
from vlm.data.sources import layout_of, read_studies
from vlm.types import Box, Finding, InputError, Modality, View

WHITE = np.full((100, 200), 255, np.uint8)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), WHITE)


def coco(folder: Path, name: str = "train.json", **changes: object) -> Path:
    content = {
        "images": [{"id": n, "file_name": f"images/{n}.png", "modality": "X-Ray"} for n in (1, 2)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 40], "iscrowd": 0}],
        "categories": [{"id": 5, "name": "cyst"}, {"id": 6, "name": "stone"}],
    } | changes
    for n in (1, 2):
        picture(folder / "images" / f"{n}.png")
    (folder / name).write_text(json.dumps(content))
    return folder


def test_coco_boxes_are_corners_and_what_is_not_boxed_is_absent(tmp_path: Path) -> None:
    first, second = read_studies(coco(tmp_path))
    assert first.boxes == (Box((10, 20, 40, 60), "cyst"),)
    assert first.findings == (Finding("cyst", Certainty.PRESENT), Finding("stone", Certainty.ABSENT))
    assert second.boxes == ()
    assert {f.certainty for f in second.findings or ()} == {Certainty.ABSENT}
    assert (first.id, first.split, first.images[0].modality) == ("1", "train", Modality.XRAY)


def test_a_group_box_leaves_its_category_unknown(tmp_path: Path) -> None:
    crowd = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4], "iscrowd": 1}
    first, _ = read_studies(coco(tmp_path, annotations=[crowd, {**crowd, "iscrowd": 0, "bbox": [1, 2, 0, 4]}]))
    assert first.boxes == ()
    assert first.findings == (Finding("cyst", None), Finding("stone", Certainty.ABSENT))


def test_tbx11k_means_tuberculosis_and_never_healthy(tmp_path: Path) -> None:
    names = [{"id": 5, "name": "ActiveTuberculosis"}, {"id": 6, "name": "ObsoletePulmonaryTuberculosis"}]
    first, second = read_studies(coco(tmp_path, categories=names))
    assert [b.label for b in first.boxes or ()] == ["tuberculosis"]
    assert first.findings == (Finding("tuberculosis", Certainty.PRESENT), Finding("normal", Certainty.ABSENT))
    assert first.images[0].view is View.FRONTAL
    assert (second.boxes, second.findings) == (None, None)


def test_two_lists_are_two_splits(tmp_path: Path) -> None:
    coco(tmp_path, "val.json", images=[{"id": 1, "file_name": "images/2.png"}])
    studies = read_studies(coco(tmp_path))
    assert [(s.id, s.split) for s in studies] == [("1", "train"), ("2", "train"), ("val/2", "val")]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": [{"id": 1, "image_id": 9, "category_id": 5, "bbox": [1, 1, 2, 2]}]}, "points at image 9"),
        ({"annotations": [{"id": 7, "image_id": 1, "category_id": 5, "bbox": [1, 2]}]}, "annotation 7 has no 'bbox'"),
        ({"images": [{"id": 1}], "annotations": []}, "lacks the key 'file_name'"),
        ({"images": [{"id": 1, "file_name": "../../x.png"}], "annotations": []}, "leaves the folder"),
        ({"images": {"a": 1}}, "is not a COCO file"),
    ],
)
def test_mistakes_in_coco(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_studies(coco(tmp_path, **changes), "coco")


def slake(folder: Path, number: int, boxes: list[dict[str, list[float]]], **about: str) -> None:
    picture(folder / "imgs" / f"xmlab{number}" / "source.jpg")
    about = {"modality": "X-Ray", "location": "Lung", "answer": "X-Ray", **about}
    (folder / "imgs" / f"xmlab{number}" / "detection.json").write_text(json.dumps(boxes))
    (folder / "imgs" / f"xmlab{number}" / "question.json").write_text(json.dumps([about]))


def test_slake_maps_chest_lesions_and_keeps_organs(tmp_path: Path) -> None:
    slake(tmp_path, 10, [{"Effusion": [1, 2, 3, 4]}, {"Left Lung": [5, 5, 5, 5]}])
    slake(tmp_path, 9, [{"Mass": [1, 2, 3, 4]}], modality="CT", location="Abdomen", answer="Transverse  Plane")
    slake(tmp_path, 11, [])
    brain, chest, bare = read_studies(tmp_path)
    assert (chest.id, [b.label for b in chest.boxes or ()]) == ("xmlab10", ["pleural_effusion", "Left Lung"])
    assert chest.boxes is not None
    assert chest.boxes[0].xyxy == (1, 2, 4, 6)
    assert chest.findings == (Finding("pleural_effusion", Certainty.PRESENT), Finding("normal", Certainty.ABSENT))
    assert chest.images[0].view is View.FRONTAL
    assert ([b.label for b in brain.boxes or ()], brain.findings) == (["Mass"], None)
    assert brain.images[0].view is View.AXIAL
    assert (bare.boxes, bare.findings) == (None, None)


def test_slake_names_the_broken_file(tmp_path: Path) -> None:
    slake(tmp_path, 1, [{"Mass": [1, 2, 3]}])
    with pytest.raises(InputError, match=r"xmlab1/detection\.json: a list of \{name: \[x, y, width, height\]\}"):
        read_studies(tmp_path)


def test_medpix_marks_are_blackened_and_placeholders_dropped(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    case = {"case": "c", "image": "images/a.png", "modality": "CT", "plane": "Axial", "split": "dev", "history": "Pain",
            "diagnosis": "Cyst", "width": 200, "height": 100}  # fmt: skip
    records = [{"id": "a", "caption": "A cyst.", **case}, {"id": "b", "caption": "Replace this - DESCRIPTION", **case}]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    first, second = read_studies(tmp_path)
    assert (first.report, second.report) == ({"findings": "A cyst.", "impression": "Cyst"}, None)
    assert (first.patient, second.patient, first.split) == ("c", "c", "val")
    pixels = load_image(first.images[0]).pixels
    assert pixels is not None
    assert not pixels[:28, 90:].any()
    assert not pixels[66:].any()
    assert pixels[29:65].all()
    assert pixels[:28, :84].all()


def test_the_real_sets(shared_data: Path) -> None:
    counts = {}
    for name in ("slake", "medpix", "tbx11k", "kssd"):
        studies = read_studies(shared_data / name)
        assert len({s.id for s in studies}) == len(studies)
        assert all(i.path and i.path.is_file() for s in studies[::50] for i in s.images)
        counts[name] = (layout_of(shared_data / name).name, len(studies), sum(s.boxes is None for s in studies))
    assert counts == {
        "slake": ("slake", 545, 53),
        "medpix": ("medpix", 1850, 1850),
        "tbx11k": ("coco", 600, 1),
        "kssd": ("coco", 671, 0),
    }
    medpix = read_studies(shared_data / "medpix")
    assert sum(s.report is None for s in medpix) == 21
    splits = {p: {s.split for s in medpix if s.patient == p} for p in Counter(s.patient for s in medpix)}
    assert all(len(x) == 1 for x in splits.values())
