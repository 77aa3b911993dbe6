"""Your own lists: a round trip, CSV rows joined to studies, and every mistake by its message."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from knowledge.ontology import Certainty
from vlm.data.images import load_image
from vlm.data.layouts.tabular import write_studies
from vlm.data.sources import read_studies
from vlm.types import Box, Finding, InputError, Modality, Study, StudyImage, View


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.arange(256, dtype=np.uint8).reshape(16, 16))
    return tmp_path


def listed(folder: Path, *records: dict[str, object]) -> Path:
    path = folder / "studies.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_studies_come_back_as_they_were_written(folder: Path) -> None:
    full = Study(
        id="s1",
        images=[
            StudyImage(folder / "a.png", None, View.FRONTAL, Modality.XRAY, (0.1, 0.2), (40.0, 400.0), 3),
            StudyImage(folder / "sub" / "c.png", window="lung"),
        ],
        clinical={"indication": "Cough."},
        findings=(Finding("nodule", Certainty.PRESENT, side="left", boxes=(0,)), Finding("mass", Certainty.ABSENT)),
        boxes=(Box((1, 2, 3.5, 4), "nodule", 1),),
        report={"findings": "Ein Knötchen."},
        patient="p",
        split="val",
        source="mine",
    )
    looked = Study("s2", [StudyImage(folder / "b.png")], findings=(), boxes=())
    unknown = Study("s3", [StudyImage(folder / "b.png")])
    write_studies(folder / "studies.jsonl", [full, looked, unknown])
    assert read_studies(folder) == [full, looked, unknown]


def test_csv_rows_with_one_id_are_one_study(folder: Path) -> None:
    (folder / "list.csv").write_text(
        "id,image,view,modality,indication,findings,impression,split\n"
        's1,a.png,frontal,xray,Cough,"Clear, both lungs.",,train\n'
        "s1,b.png,lateral,xray,,,,\n"
        "s2,a.png;sub/c.png,Frontal;lateral,,,,Normal.,val\n"
    )
    first, second = read_studies(folder / "list.csv")
    assert [(i.path.name, i.view) for i in first.images if i.path] == [
        ("a.png", View.FRONTAL),
        ("b.png", View.LATERAL),
    ]
    assert (first.clinical, first.report) == ({"indication": "Cough"}, {"findings": "Clear, both lungs."})
    assert (first.split, second.split) == ("train", "val")
    assert [i.view for i in second.images] == [View.FRONTAL, View.LATERAL]
    assert second.report == {"impression": "Normal."}
    assert [s.id for s in read_studies(folder / "list.csv", split="val")] == ["s2"]
    with pytest.raises(InputError, match=r"has no study in split 'test'; it has train \(1\), val \(1\)"):
        read_studies(folder / "list.csv", split="test")


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,file\ns,a.png\n", "has no column 'image'; its columns are id, file"),
        ("id,image,view\ns,a.png,sideways\n", "row 1: view 'sideways' is not known; choose frontal, lateral"),
        ("id,image\n,a.png\n", "row 1: has no id"),
        ("id,image\ns,../../etc/passwd\n", "'../../etc/passwd' leaves the folder"),
        ("id,image\ns,/etc/passwd\n", "'/etc/passwd' leaves the folder"),
        ("id,image,split\ns,a.png,train\ns,b.png,val\n", "row 2: split differs from that of an earlier row"),
        ("id,image,view\ns,a.png;b.png;a.png,pa;lateral\n", "row 1: lists 3 images and 2 views"),
        ("id,image\ns,absent.png\n", r"the listed image 'absent.png' is absent, and so are all of the first 1"),
        ("id,image\n", "holds no study"),
    ],
)
def test_mistakes_in_a_csv(folder: Path, text: str, message: str) -> None:
    path = folder / "list.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_studies(path)
    assert str(caught.value).startswith(str(path))


IMAGE = [{"file": "a.png"}]


@pytest.mark.parametrize(
    "record, message",
    [
        ({"images": IMAGE}, "line 1: has no 'id'"),
        ({"id": "s"}, "line 1: has no 'images'"),
        ({"id": "s", "images": "a.png"}, "'images' is not a list of objects"),
        ({"id": "s", "images": [{"path": "a.png"}]}, "an image has no key 'path'; its keys are file"),
        ({"id": "s", "images": [{"file": "../a.png"}]}, "leaves the folder"),
        ({"id": "s", "images": [{"file": "a.png", "spacing_mm": [0, 1]}]}, "'spacing_mm' must be above 0"),
        ({"id": "s", "images": [{"file": "a.png", "modality": "CAT"}]}, "modality 'CAT' is not known; choose xray, ct"),
        ({"id": "s", "images": IMAGE, "finding": []}, "a study has no key 'finding'"),
        ({"id": "s", "images": IMAGE, "findings": [{"label": "x", "side": "up"}]}, "side 'up' is not known"),
        ({"id": "s", "images": IMAGE, "findings": [{"certainty": "present"}]}, "a finding has no 'label'"),
        ({"id": "s", "images": IMAGE, "boxes": [{"xyxy": [1, 2, 1, 4], "label": "x"}]}, "is empty; xyxy is left, top"),
        ({"id": "s", "images": IMAGE, "boxes": [{"xyxy": [1, 2, 3], "label": "x"}]}, "'xyxy' is not a list of 4"),
        ({"id": "s", "images": IMAGE, "boxes": [{"xyxy": [1, 2, 3, 4], "label": "x", "image": 1}]}, "lies on image 1"),
        ({"id": "s", "images": IMAGE, "report": ["text"]}, "'report' is not an object of texts"),
    ],
)
def test_mistakes_in_a_jsonl(folder: Path, record: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_studies(listed(folder, record))


def test_an_id_comes_once_and_json_is_json(folder: Path) -> None:
    with pytest.raises(InputError, match="line 2: the id 's' was used before"):
        read_studies(listed(folder, {"id": "s", "images": IMAGE}, {"id": "s", "images": IMAGE}))
    (folder / "studies.jsonl").write_text('{"id": "s", "images": [}\n')
    with pytest.raises(InputError, match="line 1 is not valid JSON"):
        read_studies(folder)


def test_one_absent_image_is_named_when_it_is_read(folder: Path) -> None:
    first, second = read_studies(
        listed(folder, {"id": "s", "images": IMAGE}, {"id": "t", "images": [{"file": "gone.png"}]})
    )
    assert load_image(first.images[0]).pixels is not None
    with pytest.raises(InputError, match=r"gone\.png: no such image file"):
        load_image(second.images[0])


def test_images_must_lie_below_the_list(folder: Path) -> None:
    with pytest.raises(InputError, match="write the list above its images"):
        write_studies(folder / "sub" / "studies.jsonl", [Study("s", [StudyImage(folder / "a.png")])])
    with pytest.raises(InputError, match="an image has no file"):
        write_studies(folder / "studies.jsonl", [Study("s", [StudyImage(pixels=np.zeros((8, 8), np.float32))])])
    assert not (folder / "studies.jsonl").exists()
