"""Every identifier that is planted in a header, at any level, is gone from the bytes of the file that is written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from typer.testing import CliRunner

from vlm.cli.data import app
from vlm.data.deidentify.keyring import Keyring
from vlm.data.images import read_image

RUN = CliRunner()
PLANTED = (
    "Zwingli", "Huldrych", "MRN-778812", "ACC-55123", "Bullinger", "Grossmuenster", "Limmatquai", "0445551234",
    "19310704", "20190314", "Schaffhausen", "Pellican", "SECRETAE", "Hottinger",
)  # fmt: skip


def planted(path: Path, patient: str = "MRN-778812") -> Path:
    """A CT slice whose header names a patient in every way that the standard offers."""
    data = Dataset()
    meta = data.file_meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    meta.SourceApplicationEntityTitle = "SECRETAE"
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = generate_uid(), b"Zwingli private"
    data.preamble = b"Hottinger was here".ljust(128, b"\0")
    data.SOPClassUID, data.Modality, data.BodyPartExamined = CTImageStorage, "CT", "CHEST"
    data.PatientName, data.PatientID, data.PatientBirthDate = "Zwingli^Huldrych", patient, "19310704"
    data.PatientSex, data.PatientAge, data.PatientAddress = "M", "087Y", "Limmatquai 1"
    data.PatientTelephoneNumbers, data.OtherPatientIDs = "0445551234", [patient, "MRN-2"]
    data.AccessionNumber, data.ReferringPhysicianName = "ACC-55123", "Bullinger^H"
    data.InstitutionName, data.StationName = "Grossmuenster", "SECRETAE"
    data.StudyDate = data.SeriesDate = data.ContentDate = "20190314"
    data.StudyTime, data.AcquisitionDateTime = "101500", "20190314101500"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    data.StudyDescription, data.SeriesDescription = "CT of Huldrych Zwingli", "for Dr. Bullinger"
    data.ImageComments, data.PatientComments = "Zwingli seen on 14.03.2019", "lives at Limmatquai"
    data.DerivationDescription = "made for ZWINGLI on 14.03.2019"  # type 3; in the table
    data.FilterMaterial, data.ConvolutionKernel = "ZWINGLI", "B30f"  # not in the table
    inner = Dataset()
    inner.PatientName, inner.StudyDate, inner.ReferencedSOPInstanceUID = "Pellican^K", "20190314", data.SOPInstanceUID
    inner.ReferencedSOPClassUID = CTImageStorage
    private = inner.private_block(0x0009, "Schaffhausen", create=True)
    private.add_new(1, "LO", "Zwingli in a nested private element")
    deeper = Dataset()
    deeper.add_new(0x0040A123, "PN", "Hottinger^J")
    deeper.add_new(0x00189074, "DT", "20190314101500")
    inner.ConceptNameCodeSequence = [deeper]
    data.DeidentificationActionSequence = [inner]
    data.ReferencedImageSequence = [inner]
    data.RequestAttributesSequence = [inner]
    block = data.private_block(0x0029, "SIEMENS Schaffhausen", create=True)
    block.add_new(1, "OB", b"Zwingli, Huldrych\0")
    data.add_new(0x60000010, "US", 8)
    data.add_new(0x60003000, "OW", b"Zwingli!")
    data.add_new(0x60004000, "LT", "Zwingli overlay")
    data.Rows = data.Columns = 16
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelSpacing, data.ImageOrientationPatient = ["0.7", "0.7"], ["1", "0", "0", "0", "1", "0"]
    data.ImagePositionPatient, data.RescaleSlope, data.RescaleIntercept = ["0", "0", "5"], "1", "-1024"
    data.PixelData = np.arange(256, dtype="<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.add_new(0xFFFCFFFC, "OB", b"Zwingli padding!")
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_every_planted_identifier_is_gone(tmp_path: Path) -> None:
    source = tmp_path / "src"
    first = planted(source / "Zwingli_Huldrych" / "MRN-778812_1.dcm")
    planted(source / "Zwingli_Huldrych" / "MRN-778812_2.dcm")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in source.rglob("*.dcm")}
    for word in PLANTED:
        assert word.encode() in first.read_bytes(), f"{word} was not planted"
    done = RUN.invoke(app, ["deidentify", str(source), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len([p for p in written if p.suffix == ".dcm"]) == 2
    for path in written:
        content = path.read_bytes().lower() + path.as_posix().removeprefix(tmp_path.as_posix()).lower().encode()
        for word in (*PLANTED, "Huldrych_", "MRN-2"):
            assert word.lower().encode() not in content, f"{word} is left in {path.name}"
    for word in PLANTED:
        assert word not in done.output
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in source.rglob("*.dcm")} == before


def test_what_is_needed_stays(tmp_path: Path) -> None:
    source = tmp_path / "src"
    path = planted(source / "a.dcm")
    assert RUN.invoke(app, ["deidentify", str(source), "--out", str(tmp_path / "out")]).exit_code == 0
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert np.array_equal(read_image(written).pixels, read_image(path).pixels)
    old, new = dcmread(path), dcmread(written)
    for name in (
        "Modality",
        "BodyPartExamined",
        "PixelSpacing",
        "ImagePositionPatient",
        "RescaleIntercept",
        "SOPClassUID",
    ):
        assert new[name].value == old[name].value, name
    assert new.PatientID == new.PatientName
    assert str(new.PatientID).startswith("x")
    assert new.PatientIdentityRemoved == "YES"
    assert new.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID


def test_uids_and_patients_stay_joined(tmp_path: Path) -> None:
    """The same UID becomes the same UID in every file, in nested references and in a second run with the same key."""
    source = tmp_path / "src"
    one, two = planted(source / "a.dcm"), planted(source / "b.dcm")
    first = dcmread(one)
    second = dcmread(two)
    second.StudyInstanceUID = first.StudyInstanceUID
    second.save_as(two)
    key = ["--key", str(tmp_path / "k")]
    for out in ("out", "again"):
        assert RUN.invoke(app, ["deidentify", str(source), "--out", str(tmp_path / out), *key]).exit_code == 0
    a, b = (dcmread(p) for p in sorted((tmp_path / "out").glob("*.dcm")))
    assert a.StudyInstanceUID == b.StudyInstanceUID != first.StudyInstanceUID
    assert a.PatientID == b.PatientID
    assert a.SOPInstanceUID != b.SOPInstanceUID
    assert a.ReferencedImageSequence[0].ReferencedSOPInstanceUID == a.SOPInstanceUID
    assert a.ReferencedImageSequence[0].ReferencedSOPClassUID == CTImageStorage
    for path in (tmp_path / "out").glob("*.dcm"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_dates_shift_together(tmp_path: Path) -> None:
    source = tmp_path / "src"
    planted(source / "a.dcm")
    later = planted(source / "b.dcm")
    data = dcmread(later)
    data.StudyDate = "20190325"
    data.save_as(later)
    done = RUN.invoke(app, ["deidentify", str(source), "--out", str(tmp_path / "out"), "--shift-dates"])
    assert done.exit_code == 0
    days = sorted(
        np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}")
        for d in (str(dcmread(p).StudyDate) for p in (tmp_path / "out").glob("*.dcm"))
    )
    assert days[1] - days[0] == np.timedelta64(11, "D")
    assert days[1] < np.datetime64("2018-03-26")
    assert all(not dcmread(p).PatientBirthDate for p in (tmp_path / "out").glob("*.dcm"))


def test_bad_files_are_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "src"
    planted(source / "Zwingli.dcm")
    (source / "Zwingli_broken.dcm").write_bytes(planted(tmp_path / "x.dcm").read_bytes()[:140])
    (source / "Zwingli.pdf").write_bytes(b"%PDF Zwingli")
    done = RUN.invoke(app, ["deidentify", str(source), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    report = json.loads((tmp_path / "out" / "deidentify_report.json").read_text())
    assert report["files"] == {"dicom written": 1, "dicom failed": 1, "other left out": 1}
    assert "Zwingli" not in json.dumps(report)
    assert report["removed"]["dicom"]["PatientName"] >= 1
    assert report["removed"]["dicom"]["private"] >= 4


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "src", tmp_path / "out"
    planted(source / "a.dcm")
    run = ["deidentify", str(source), "--out", str(out)]
    assert RUN.invoke(app, run).exit_code == 0
    (first,) = out.glob("*.dcm")
    stamp = first.stat().st_mtime_ns
    planted(source / "b.dcm")
    with (out / ".deidentify.jsonl").open("a") as state:
        state.write('{"file": "cut o')
    assert RUN.invoke(app, run).exit_code == 0
    assert first.stat().st_mtime_ns == stamp
    assert len(list(out.glob("*.dcm"))) == 2
    assert json.loads((out / "deidentify_report.json").read_text())["from an earlier run"] == 1


def test_wrong_places_are_refused(tmp_path: Path) -> None:
    from vlm.data.deidentify.job import Options, deidentify
    from vlm.types import InputError

    source = tmp_path / "src"
    planted(source / "a.dcm")
    with pytest.raises(InputError, match="within one another"):
        deidentify(source, source / "out", tmp_path / "k", Options())
    with pytest.raises(InputError, match="whoever gets the data"):
        deidentify(source, tmp_path / "out", tmp_path / "out" / "k", Options())
    with pytest.raises(InputError, match="no such file"):
        deidentify(tmp_path / "none", tmp_path / "out", tmp_path / "k", Options())
    deidentify(source, tmp_path / "out", tmp_path / "k", Options())
    with pytest.raises(InputError, match="another key"):
        deidentify(source, tmp_path / "out", tmp_path / "k2", Options())
    assert (tmp_path / "k").stat().st_mode & 0o077 == 0


def test_the_key_decides() -> None:
    a, b = Keyring(b"a" * 32), Keyring(b"b" * 32)
    assert a.pseudonym("MRN-1") == a.pseudonym(" MRN-1 ") != b.pseudonym("MRN-1")
    assert len(a.uid("1.2.3")) <= 64
    assert a.path("images/Doe_John/IM-0001.dcm") == f"images/{a.pseudonym('Doe_John')}/IM-0001.dcm"
    assert Counter(a.days(str(i)) < -364 for i in range(50)) == {True: 50}
