"""CT-KIDNEY, NIH ChestX-ray14 and PadChest: miniatures of their trees; what is not labelled stays unknown."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from knowledge.ontology import Certainty
from vlm.data.layouts.padchest import findings_of
from vlm.data.sources import layout_of, read_studies
from vlm.types import Finding, InputError, Study, View

PRESENT, ABSENT = Certainty.PRESENT, Certainty.ABSENT
RAMP = np.arange(1024, dtype=np.uint8).reshape(32, 32)


def picture(path: Path, pixels: np.ndarray = RAMP) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def said(study: Study) -> dict[str, Certainty | None]:
    return {f.label: f.certainty for f in study.findings or ()}


def test_kidney(tmp_path: Path) -> None:
    name = "CT-KIDNEY-DATASET-Normal-Cyst-Tumor-Stone"
    for kind in ("Cyst", "Normal", "Stone", "Tumor"):
        for number in (1, 2, 10):
            picture(tmp_path / name / name / kind / f"{kind}- ({number}).jpg")
    assert layout_of(tmp_path).name == "ct-kidney"
    studies = {s.id: s for s in read_studies(tmp_path)}
    assert list(studies)[:3] == ["Cyst/Cyst- (1)", "Cyst/Cyst- (2)", "Cyst/Cyst- (10)"]
    assert said(studies["Stone/Stone- (2)"]) == {"kidney_stone": PRESENT, "normal": ABSENT}
    assert said(studies["Normal/Normal- (1)"]) == {
        "normal": PRESENT, "kidney_cyst": ABSENT, "kidney_stone": ABSENT, "kidney_tumour": ABSENT}  # fmt: skip
    assert studies["Tumor/Tumor- (1)"].patient is None


def test_kidney_by_its_table(tmp_path: Path) -> None:
    picture(tmp_path / "flat" / "Tumor- (1044).jpg")
    head = ",image_id,path,diag,target,Class\n"
    (tmp_path / "kidneyData.csv").write_text(
        head + "0,Tumor- (1044),/content/data/x/Tumor/Tumor- (1044).jpg,Tumor,3,Tumor\n"
    )
    (study,) = read_studies(tmp_path)
    assert said(study)["kidney_tumour"] is PRESENT
    (tmp_path / "kidneyData.csv").write_text(head + "0,Tumor- (1044),x,Tumor,3,Fat\n")
    with pytest.raises(InputError, match="row 1: the class 'Fat' is not one of"):
        read_studies(tmp_path)


ENTRY = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,058Y,M,PA,2682,2749,0.143,0.143,\n"
    "00000002_000.png,No Finding,0,2,081Y,M,PA,2500,2048,0.171,0.171,\n"
    "00013118_008.png,Atelectasis,8,13118,069Y,M,AP,3056,2544,0.139,0.139,\n"
    "00099999_000.png,Hernia,0,99999,069Y,M,AP,3056,2544,0.139,0.139,\n"
)


def test_nih(tmp_path: Path) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_text(ENTRY)
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00013118_008.png,Atelectasis,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,,\n"
    )
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000002_000.png\n")
    (tmp_path / "test_list.txt").write_text("00013118_008.png\n")
    for name in ("images_001/images/00000001_000.png", "images_001/images/00000002_000.png"):
        picture(tmp_path / name, np.zeros((512, 512), np.uint8))
    picture(tmp_path / "images_007/images/00013118_008.png", np.zeros((512, 512), np.uint8))
    assert layout_of(tmp_path).name == "nih"
    first, second, third = read_studies(tmp_path)
    assert said(first) == {"cardiomegaly": PRESENT, "emphysema": PRESENT, "normal": ABSENT}, "the rest is unknown"
    assert (first.boxes, second.boxes) == (None, None), "nobody drew boxes there"
    assert said(second) == {"normal": PRESENT}
    assert (first.split, third.split, third.patient) == ("train", "test", "13118")
    (box,) = third.boxes or ()
    assert box.xyxy == pytest.approx((112.542, 273.51, 155.932, 313.103), abs=1e-3), "scaled to a copy of 512 pixels"
    assert first.images[0].spacing_mm == pytest.approx((0.143 * 2749 / 512, 0.143 * 2682 / 512))
    (tmp_path / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Mass,1,2,x,4,,,\n")
    with pytest.raises(InputError, match="row 2: a box of four numbers"):
        read_studies(tmp_path)


def test_padchest(tmp_path: Path) -> None:
    (tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text(
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
        "Projection,MethodProjection,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
        "labelCUIS,LocalizationsCUIS\n"
        "0,1_l.png,0,20140915,7991,P1,1935.0,M,LATERAL,L,Manual review of DICOM fields,4765777,sin hallazg .,Physician,"
        "\"['pleural effusion', 'cardiomegaly']\",\"['loc left', 'loc basal']\","
        "\"[['pleural effusion', 'loc left', 'loc basal'], ['cardiomegaly']]\",[],[]\n"
        "1,1_pa.png,0,20140915,7991,P1,1935.0,M,POSTEROANTERIOR,PA,x,4765777,x,Physician,\"['pleural effusion']\",,,,\n"
        "2,2.png,1,20140915,8000,P2,1935.0,M,PA,PA,x,1,x,RNN_model,\"['normal']\",,\"[['normal']]\",,\n"
        "3,3.png,1,20140915,8001,P2,1935.0,M,PA,EXCLUDE,x,1,x,RNN_model,\"['exclude']\",,,,\n"
        "4,4.png,1,20140915,8002,P2,1935.0,M,PA,PA,x,1,x,RNN_model,\"['unchanged']\",,,,\n"
    )
    for name in ("0/1_l.png", "0/1_pa.png", "1/2.png", "1/3.png", "images/4.png"):
        picture(tmp_path / name, RAMP.astype(np.uint16) * 16)
    assert layout_of(tmp_path).name == "padchest"
    first, second, third = read_studies(tmp_path)
    assert [(i.view, i.path.name) for i in first.images if i.path] == [
        (View.FRONTAL, "1_pa.png"), (View.LATERAL, "1_l.png")]  # fmt: skip
    assert first.findings == (
        Finding("pleural_effusion", PRESENT, side="left"), Finding("cardiomegaly", PRESENT), Finding("normal", ABSENT)
    )  # fmt: skip
    assert (said(second), third.findings, first.patient, first.report) == ({"normal": PRESENT}, None, "P1", None)


def test_spanish_labels_and_labels_that_the_graph_does_not_know() -> None:
    found = findings_of("['Cardiomegalia', 'neumonía', 'minor fissure thickening']") or ()
    assert [f.label for f in found] == ["cardiomegaly", "pneumonia", "minor fissure thickening", "normal"]


def test_a_path_in_a_table_does_not_leave_its_folder(tmp_path: Path) -> None:
    (tmp_path / "padchest.csv").write_text("ImageID,StudyID,Labels,Projection\n../../etc/x.png,1,['normal'],PA\n")
    with pytest.raises(InputError, match="leaves the folder"):
        read_studies(tmp_path / "padchest.csv", "padchest")
