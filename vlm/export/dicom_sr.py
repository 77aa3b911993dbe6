"""A report as a DICOM Comprehensive SR document (PS3.3 A.35.3): sections as text, findings as codes, boxes as SCOORD
polylines.

Unverified and partial, as nobody has read it. Of the image files only the unique identifiers are read (study, series,
instance: a region has to say which image it lies on); names, numbers, dates and everything else about the patient are
left empty. A box on an image that is no DICOM file cannot be a SCOORD and is written as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ComprehensiveSRStorage, ExplicitVRLittleEndian

from knowledge.ontology import Certainty
from vlm import __version__
from vlm.export.files import whole_file
from vlm.types import Box, Finding, Report, Study

_PRIVATE = "99RADSCRIBE"
_SECTIONS = {
    "indication": ("121060", "DCM", "History"),
    "comparison": ("121062", "DCM", "Procedure Description"),
    "technique": ("121062", "DCM", "Procedure Description"),
    "findings": ("121070", "DCM", "Findings"),
    "impression": ("121072", "DCM", "Impressions"),
}
_FINDING = ("121071", "DCM", "Finding")
_CERTAINTY = {
    Certainty.PRESENT: ("52101004", "SCT", "Present"),
    Certainty.ABSENT: ("2667000", "SCT", "Absent"),
    Certainty.UNCERTAIN: ("82334004", "SCT", "Indeterminate"),
}
_SIDES = {
    "left": ("7771000", "SCT", "Left"),
    "right": ("24028007", "SCT", "Right"),
    "bilateral": ("51440002", "SCT", "Bilateral"),
}
Flips = Sequence[tuple[bool, bool]]
_ONE = ("1", "UCUM", "no units")


def _uid(*parts: str) -> str:
    """A UUID-derived UID (PS3.5 B.2) that the same parts always give."""
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()[:16]
    return f"2.25.{int.from_bytes(digest, 'big')}"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning[:64]
    return item


def _item(kind: str, relation: str | None, name: tuple[str, str, str] | None) -> Dataset:
    item = Dataset()
    if relation is not None:
        item.RelationshipType = relation
    item.ValueType = kind
    if name is not None:
        item.ConceptNameCodeSequence = [_code(*name)]
    return item


def _text(relation: str, name: tuple[str, str, str], text: str) -> Dataset:
    item = _item("TEXT", relation, name)
    item.TextValue = text
    return item


def _coded(relation: str, name: tuple[str, str, str], value: tuple[str, str, str]) -> Dataset:
    item = _item("CODE", relation, name)
    item.ConceptCodeSequence = [_code(*value)]
    return item


def _number(relation: str, name: tuple[str, str, str], value: float) -> Dataset:
    measured = Dataset()
    measured.NumericValue = f"{value:.4f}"
    measured.MeasurementUnitsCodeSequence = [_code(*_ONE)]
    item = _item("NUM", relation, name)
    item.MeasuredValueSequence = [measured]
    return item


def _references(study: Study) -> list[Dataset | None]:
    """For each image its study, series and instance UID and its class, or None when it is no DICOM file."""
    found: list[Dataset | None] = []
    wanted = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Rows", "Columns")
    for image in study.images:
        reference = None
        if image.path is not None and image.path.is_file():
            try:
                header: Dataset = pydicom.dcmread(image.path, stop_before_pixels=True, specific_tags=list(wanted))
            except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, NotImplementedError, EOFError):
                header = Dataset()
            if all(header.get(name) for name in wanted):
                reference = Dataset()
                for name in wanted:
                    setattr(reference, name, header.get(name))
        found.append(reference)
    return found


def _box_item(box: Box, reference: Dataset | None, frame: int | None, flips: tuple[bool, bool]) -> Dataset:
    if reference is None:
        place = " ".join(f"{v:.1f}" for v in box.xyxy)
        return _text(
            "HAS PROPERTIES", ("box", _PRIVATE, "Box"), f"image {box.image + 1}, x1 y1 x2 y2 in pixels: {place}"
        )
    x1, y1, x2, y2 = box.xyxy
    if flips[0]:
        x1, x2 = reference.Columns - x2, reference.Columns - x1
    if flips[1]:
        y1, y2 = reference.Rows - y2, reference.Rows - y1
    image = _item("IMAGE", "SELECTED FROM", None)
    selected = Dataset()
    selected.ReferencedSOPClassUID, selected.ReferencedSOPInstanceUID = reference.SOPClassUID, reference.SOPInstanceUID
    if frame is not None:
        selected.ReferencedFrameNumber = frame + 1  # DICOM counts frames from 1
    image.ReferencedSOPSequence = [selected]
    region = _item("SCOORD", "INFERRED FROM", ("111030", "DCM", "Image Region"))
    # PS3.3 C.18.6.1.1: column\row, the outer corner of the top-left pixel is 0\0, as in vlm.types; a closed line.
    region.GraphicType, region.GraphicData = "POLYLINE", [x1, y1, x2, y1, x2, y2, x1, y2, x1, y1]
    region.ContentSequence = [image]
    return region


def _finding_item(
    finding: Finding, report: Report, study: Study, references: Sequence[Dataset | None], flips: Flips
) -> Dataset:
    meaning = finding.label.replace("_", " ").capitalize()
    value = (hashlib.sha256(finding.label.encode()).hexdigest()[:16], _PRIVATE, meaning)
    item = _coded("CONTAINS", _FINDING, value)
    properties = []
    if finding.certainty is not None:
        properties.append(_coded("HAS PROPERTIES", ("certainty", _PRIVATE, "Certainty"), _CERTAINTY[finding.certainty]))
    if finding.probability is not None:
        properties.append(_number("HAS PROPERTIES", ("probability", _PRIVATE, "Probability"), finding.probability))
    if finding.side is not None:
        properties.append(_coded("HAS PROPERTIES", ("272741003", "SCT", "Laterality"), _SIDES[finding.side]))
    for index in finding.boxes:
        box = report.boxes[index]
        known = box.image < len(references)
        frame = study.images[box.image].frame if known else None
        turned = flips[box.image] if known and flips else (False, False)
        properties.append(_box_item(box, references[box.image] if known else None, frame, turned))
    if properties:
        item.ContentSequence = properties
    return item


def _evidence(references: Iterable[Dataset]) -> list[Dataset]:
    """The evidence sequence: studies, their series, their instances."""
    studies: dict[str, dict[str, dict[str, Dataset]]] = {}
    for reference in references:
        instance = Dataset()
        instance.ReferencedSOPClassUID = reference.SOPClassUID
        instance.ReferencedSOPInstanceUID = reference.SOPInstanceUID
        series = studies.setdefault(reference.StudyInstanceUID, {}).setdefault(reference.SeriesInstanceUID, {})
        series[reference.SOPInstanceUID] = instance
    out = []
    for study_uid, series_map in studies.items():
        study = Dataset()
        study.StudyInstanceUID = study_uid
        study.ReferencedSeriesSequence = []
        for series_uid, instances in series_map.items():
            item = Dataset()
            item.SeriesInstanceUID, item.ReferencedSOPSequence = series_uid, list(instances.values())
            study.ReferencedSeriesSequence.append(item)
        out.append(study)
    return out


def dicom_sr(report: Report, study: Study, flips: Flips = (), made: datetime | None = None) -> FileDataset:
    """A report as a Comprehensive SR document.

    Args:
        report: its findings that are present or uncertain, or have a box, become content items.
        study: its DICOM files, where it has some, are the evidence.
        flips: for each image whether its display mirrors the stored columns and rows; a region counts stored pixels.
            Empty: none does.
        made: content date and time; None for now.
    """
    made = made or datetime.now()
    references = _references(study)
    known = [r for r in references if r is not None]
    body = "\n".join(f"{name}: {text}" for name, text in report.sections.items())
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = ComprehensiveSRStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = UID(_uid("instance", report.study_id, body, made.isoformat()))
    document = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    document.SpecificCharacterSet = "ISO_IR 192"
    document.SOPClassUID, document.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for name in (
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
        "PatientBirthDate", "PatientSex", "StudyID",
    ):  # fmt: skip
        setattr(document, name, "")
    document.Modality, document.Manufacturer = "SR", "Radscribe (research software, not a medical device)"
    document.SoftwareVersions = __version__
    document.StudyInstanceUID = known[0].StudyInstanceUID if known else _uid("study", report.study_id)
    document.SeriesInstanceUID = _uid("series", document.StudyInstanceUID, document.SOPInstanceUID)
    document.SeriesNumber = document.InstanceNumber = 1
    document.ReferencedPerformedProcedureStepSequence, document.PerformedProcedureCodeSequence = [], []
    document.ContentDate, document.ContentTime = made.strftime("%Y%m%d"), made.strftime("%H%M%S")
    document.CompletionFlag, document.VerificationFlag = "PARTIAL", "UNVERIFIED"
    if known:
        document.CurrentRequestedProcedureEvidenceSequence = _evidence(known)
    document.ValueType, document.ContinuityOfContent = "CONTAINER", "SEPARATE"
    document.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging study")]
    content = [_text("CONTAINS", _SECTIONS.get(n, _SECTIONS["findings"]), t) for n, t in report.sections.items() if t]
    stated = [f for f in report.findings if f.certainty in (Certainty.PRESENT, Certainty.UNCERTAIN) or f.boxes]
    content += [_finding_item(f, report, study, references, flips) for f in stated]
    document.ContentSequence = content
    return document


def write_dicom_sr(path: Path, report: Report, study: Study, flips: Flips = ()) -> None:
    """Writes `dicom_sr` as a DICOM file, whole or not at all."""
    document = dicom_sr(report, study, flips)
    with whole_file(path) as file:
        document.save_as(file, enforce_file_format=True)
