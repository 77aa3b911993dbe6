"""Open-i in both layouts: miniatures written here, and the real download where it is at hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from knowledge.ontology import Certainty
from vlm.data.layouts.openi import OPENI20, read_openi, read_r2gen
from vlm.types import InputError, View

REPORTS = """uid,MeSH,Problems,image,indication,comparison,findings,impression
7,normal,normal,x,Cough,None.,Clear lungs.,Normal chest.
9,x,x,x,,,"Effusion, left.",
11,x,x,x,,,,Only an impression.
13,x,x,x,,,No image.,x
"""
PROJECTIONS = """uid,filename,projection
7,7_b.jpg,Lateral
7,7_a.jpg,Frontal
9,9_a.jpg,Frontal
11,11_a.jpg,Lateral
"""
ENTRY = {
    "id": "CXR9_IM-1",
    "report": "Effusion, left.",
    "image_path": ["CXR9_IM-1/0.png", "CXR9_IM-1/1.png"],
    "split": "val",
}


@pytest.fixture
def indiana(tmp_path: Path) -> Path:
    (tmp_path / "indiana_reports.csv").write_text(REPORTS)
    (tmp_path / "indiana_projections.csv").write_text(PROJECTIONS)
    (tmp_path / "labels20.json").write_text(json.dumps({"7": ["normal / no indexing"], "9": ["pleural effusion"]}))
    (tmp_path / "r2gen_annotation.json").write_text(json.dumps({"train": [], "val": [ENTRY]}))
    folder = tmp_path / "images" / "images_normalized"
    folder.mkdir(parents=True)
    for name in ("7_a.jpg", "7_b.jpg", "9_a.jpg", "11_a.jpg"):
        cv2.imwrite(str(folder / name), np.zeros((16, 16), np.uint8))
    return tmp_path


def test_the_indiana_layout_joins_reports_images_splits_and_labels(indiana: Path) -> None:
    first, second, third = read_openi(indiana)
    assert (first.id, first.patient, first.split, second.split) == ("7", "7", "extra", "val")
    assert [i.view for i in first.images] == [View.FRONTAL, View.LATERAL]
    assert first.report == {"findings": "Clear lungs.", "impression": "Normal chest."}
    assert first.clinical == {"indication": "Cough", "comparison": "None."}
    said = {f.label: f.certainty for f in second.findings or ()}
    assert len(said) == 20
    assert said["pleural effusion"] is Certainty.PRESENT
    assert said["cardiomegaly"] is Certainty.ABSENT
    assert third.findings is None, "a uid that nobody coded is unknown, not normal"
    assert third.report == {"impression": "Only an impression."}


def test_the_r2gen_layout_keeps_ids_splits_and_both_views(tmp_path: Path) -> None:
    (tmp_path / "annotation.json").write_text(json.dumps({"train": [], "val": [ENTRY]}))
    (tmp_path / "images").mkdir()
    (study,) = read_r2gen(tmp_path)
    assert (study.id, study.patient, study.split) == ("CXR9_IM-1", "9", "val")
    assert study.report == {"findings": "Effusion, left."}
    assert [i.path.name for i in study.images if i.path] == ["0.png", "1.png"]


def test_a_path_that_leaves_the_folder_is_refused(indiana: Path) -> None:
    (indiana / "indiana_projections.csv").write_text("uid,filename,projection\n7,../../../etc/passwd,Frontal\n")
    with pytest.raises(InputError, match="leaves the folder"):
        read_openi(indiana)


def test_a_missing_column_is_named(indiana: Path) -> None:
    (indiana / "indiana_reports.csv").write_text("uid,indication,comparison,impression\n")
    with pytest.raises(InputError, match="has no column 'findings'; its columns are uid, indication"):
        read_openi(indiana)


def test_the_real_download(shared_data: Path) -> None:
    studies = read_openi(shared_data / "openi")
    assert Counter(s.split for s in studies) == {"train": 2069, "val": 296, "extra": 871}
    assert len({s.id for s in studies}) == len(studies)
    labels = {f.label for s in studies for f in s.findings or ()}
    assert labels == set(OPENI20)
    assert all(s.report and s.report["findings"] for s in studies if s.split != "extra")
    assert all(i.path and i.path.is_file() for s in studies[:50] for i in s.images)
