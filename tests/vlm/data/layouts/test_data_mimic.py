"""MIMIC-CXR and MIMIC-CXR-JPG: a miniature of PhysioNet's trees."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from knowledge.ontology import Certainty
from vlm.data.layouts.mimic import CHEXPERT, official_sections
from vlm.data.sources import layout_of, read_studies
from vlm.types import InputError, View

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
FIRST = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with new onset ascites  // eval for infection
 
 FINDINGS: 
 
 There is no focal consolidation.
 
 IMPRESSION: 
 
 No acute cardiopulmonary process.
"""  # noqa: W291, W293
SECOND = """                                 WET READ: ___ ___ ___ 8:10 PM
  Clear.
 ______________________________________________________________________________
                                 FINAL REPORT
 CHEST RADIOGRAPH
 
 COMPARISON:  ___.
 
 New small left effusion.
"""  # noqa: W293
IMAGES = [  # subject, study, image, view, date, time
    ("10000032", "50414267", "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014", "PA", "21800506", "213014.531"),
    ("10000032", "50414267", "174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962", "LATERAL", "21800506", "213014.531"),
    ("10000032", "53189527", "2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab", "", "21800626", "165500.312"),
    ("10000764", "57375967", "096052b7-d256dc40-453a102b-fa7d01c6-1b22c6b4", "AP", "21321015", "3951.0"),
]


def packed(path: Path, *rows: str) -> None:
    with gzip.open(path, "wt") as stream:
        stream.write("\n".join(rows) + "\n")


def tree(root: Path, write: Any, suffix: str, absent: str = "") -> None:
    for subject, study, image, *_ in IMAGES:
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"
        if study != absent:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / f"{image}{suffix}")


@pytest.fixture
def jpg(tmp_path: Path) -> Path:
    root = tmp_path / "mimic-cxr-jpg"
    tree(root, lambda p: cv2.imwrite(str(p), RAMP), ".jpg", absent="57375967")
    packed(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,"
        "StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
        "PatientOrientationCodeSequence_CodeMeaning",
        *(f'{i},{p},{s},"CHEST (PA AND LAT)",{v},3056,2544,{d},{t},,,Erect' for p, s, i, v, d, t in IMAGES),
    )
    packed(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split",
        *(f"{i},{s},{p},{'validate' if s == '53189527' else 'train'}" for p, s, i, *_ in IMAGES),
    )
    packed(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        "subject_id,study_id," + ",".join(CHEXPERT),
        "10000032,50414267,,,0.0,,,,,,1.0,,,,,",
        "10000032,53189527,-1.0,,,,,,,,,1.0,,,,",
    )
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/p10/p10000032/s50414267.txt", FIRST)
        archive.writestr("files/p10/p10000032/s53189527.txt", SECOND)
    return root  # fmt: skip


def test_jpg(jpg: Path) -> None:
    assert layout_of(jpg).name == "mimic-cxr-jpg"
    first, second = read_studies(jpg)
    assert (first.id, first.patient, first.split, second.split) == ("s50414267", "p10000032", "train", "val")
    assert [i.view for i in first.images] == [View.FRONTAL, View.LATERAL]
    assert second.images[0].view is None, "an empty ViewPosition is unknown"
    assert first.report == {"findings": "There is no focal consolidation.",
                            "impression": "No acute cardiopulmonary process."}  # fmt: skip
    assert first.clinical == {"indication": "XXXX F with new onset ascites // eval for infection"}
    assert second.report == {"findings": "New small left effusion."}, "the last paragraph stands for the findings"
    assert second.clinical == {"comparison": "XXXX.", "prior": "No acute cardiopulmonary process."}
    said = {f.label: f.certainty for f in first.findings or ()}
    assert said == {"Consolidation": Certainty.ABSENT, "No Finding": Certainty.PRESENT}, "an empty cell is unknown"
    assert {f.label: f.certainty for f in second.findings or ()} == {
        "Atelectasis": Certainty.UNCERTAIN, "Pleural Effusion": Certainty.PRESENT}  # fmt: skip
    assert [s.id for s in read_studies(jpg, split="val")] == ["s53189527"]


def test_dicom_with_the_record_list_alone(tmp_path: Path, write_dicom: Any) -> None:
    tree(tmp_path, lambda p: write_dicom(p, RAMP, Modality="DX", ViewPosition="PA"), ".dcm")
    (tmp_path / "files/p10/p10000032/s50414267.txt").write_text(FIRST)
    rows = [f"{p},{s},{i},files/p{p[:2]}/p{p}/s{s}/{i}.dcm" for p, s, i, *_ in IMAGES]
    (tmp_path / "cxr-record-list.csv").write_text("\n".join(["subject_id,study_id,dicom_id,path", *rows]))
    assert layout_of(tmp_path).name == "mimic-cxr"
    studies = {s.id: s for s in read_studies(tmp_path)}
    assert set(studies) == {"s50414267", "s53189527", "s57375967"}
    assert studies["s50414267"].report
    assert (studies["s57375967"].report, studies["s57375967"].findings, studies["s57375967"].split) == (None,) * 3
    (tmp_path / "cxr-record-list.csv").unlink()
    assert {s.id for s in read_studies(tmp_path / "files")} == set(studies)


def test_a_table_without_its_columns_is_refused(jpg: Path) -> None:
    packed(jpg / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study,split")
    with pytest.raises(InputError, match=r"split\.csv\.gz: has no column 'study_id'"):
        read_studies(jpg)
    (jpg / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(InputError, match=r"split\.csv\.gz: broken or cut off"):
        read_studies(jpg)


def test_cuts_are_those_of_the_official_code() -> None:
    text = " FINAL REPORT\n PORTABLE CHEST, TWO VIEWS:\n\n CONCLUSION: Old.\n IMPRESSION:  New.\n Second line: kept.\n"
    assert official_sections(text)["impression"] == "New.\n Second line: kept."
    assert "findings" not in official_sections(text), "an empty findings section is a title"
    assert official_sections("no heading at all") == {"full report": "no heading at all"}
