"""DICOM SR: a file that pydicom reads, regions on the right pixels, and nothing of the patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from export_reports import make_report, make_study
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from vlm.export.dicom_sr import dicom_sr, write_dicom_sr

SECRET = "Doe^Jane"


def write_image(path: Path) -> Dataset:
    """A header as of a CT slice of 60x40 pixels, of a patient whose name must not travel."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.PatientName, image.PatientID, image.PatientBirthDate = SECRET, "MRN-4711", "19700101"
    image.AccessionNumber, image.StudyDate, image.Rows, image.Columns = "ACC-1", "20200102", 40, 60
    image.save_as(path, enforce_file_format=True)
    return image


def items(dataset: Dataset) -> Iterator[Dataset]:
    """All content items, depth first."""
    for item in dataset.get("ContentSequence") or ():
        yield item
        yield from items(item)


def regions(document: Dataset) -> list[list[float]]:
    return [[float(v) for v in i.GraphicData] for i in items(document) if i.ValueType == "SCOORD"]


def test_round_trip_of_what_a_report_says(tmp_path: Path) -> None:
    path = tmp_path / "sr" / "a.dcm"
    write_dicom_sr(path, make_report(), make_study())
    document = pydicom.dcmread(path)
    assert document.SOPClassUID.name == "Comprehensive SR Storage"
    assert (document.CompletionFlag, document.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert [i.TextValue for i in document.ContentSequence if i.ValueType == "TEXT"][1] == "Nodule."
    findings = [i for i in document.ContentSequence if i.ValueType == "CODE"]
    meanings = [i.ConceptCodeSequence[0].CodeMeaning for i in findings]
    assert meanings == ["Nodule", "Scar"], "what is present or uncertain"
    number = next(i for i in items(findings[0]) if i.ValueType == "NUM")
    assert float(number.MeasuredValueSequence[0].NumericValue) == 0.91
    assert not regions(document), "a picture that is no DICOM file cannot carry a region"
    assert any("11.0 6.0 21.0 16.0" in i.get("TextValue", "") for i in items(document))


@pytest.mark.parametrize(
    "flips, corners",
    [
        ((False, False), [11, 6, 21, 6, 21, 16, 11, 16, 11, 6]),
        ((True, False), [39, 6, 49, 6, 49, 16, 39, 16, 39, 6]),  # 60 columns: 60 - 21, 60 - 11
        ((False, True), [11, 24, 21, 24, 21, 34, 11, 34, 11, 24]),  # 40 rows: 40 - 16, 40 - 6
    ],
)
def test_a_box_is_a_closed_polyline_in_stored_pixels(
    tmp_path: Path, flips: tuple[bool, bool], corners: list[float]
) -> None:
    source = write_image(tmp_path / "a.dcm")
    study = make_study()
    study.images[0] = replace(study.images[0], path=tmp_path / "a.dcm", frame=2)
    document = dicom_sr(make_report(), study, [flips, (False, False)])
    assert regions(document) == [corners]
    image = next(i for i in items(document) if i.ValueType == "IMAGE")
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 3
    assert document.StudyInstanceUID == source.StudyInstanceUID
    evidence = document.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_nothing_of_the_patient_is_copied(tmp_path: Path) -> None:
    write_image(tmp_path / "a.dcm")
    study = make_study()
    study.images[0] = replace(study.images[0], path=tmp_path / "a.dcm")
    write_dicom_sr(tmp_path / "sr.dcm", make_report(), study)
    content = (tmp_path / "sr.dcm").read_bytes()
    for secret in (SECRET, "MRN-4711", "19700101", "ACC-1", "20200102"):
        assert secret.encode() not in content
    assert pydicom.dcmread(tmp_path / "sr.dcm").PatientName == ""
