"""Mutated files are read or refused with one line: never another exception, never a patient's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from vlm.data.images import load_image, read_image
from vlm.data.layouts.mimic import CHEXPERT
from vlm.data.sources import read_studies
from vlm.types import InputError

RAMP = np.add.outer(np.arange(64), np.arange(64)).astype(np.int16) * 10
QUICK, LONG = 200, 2000


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips bytes, cuts, doubles or blanks a stretch; the head is hit more often than the rest."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        span = len(out) if rng.random() < 0.5 else min(len(out), 600)
        at, length = int(rng.integers(0, max(1, span))), int(rng.integers(1, 40))
        match rng.integers(0, 5):
            case 0:
                out[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                out[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length]
            case _:
                del out[max(at, 1) :]
    return bytes(out)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, write_dicom: Callable[..., Path]) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    tags: dict[str, Any] = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024, "PixelSpacing": [1, 1],
                            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelPaddingValue": 0}  # fmt: skip
    plain = write_dicom(folder / "plain.dcm", RAMP, **tags)
    for name, syntax in (("rle", RLELossless), ("j2k", JPEG2000Lossless)):
        dataset = pydicom.dcmread(plain)
        dataset.compress(syntax)
        dataset.save_as(folder / f"{name}.dcm")
    write_dicom(folder / "frames.dcm", np.stack([RAMP.astype(np.uint8)] * 3), Modality="US")
    nib.save(nib.Nifti1Image(np.stack([RAMP] * 4, 2), np.eye(4)), folder / "a.nii")
    nib.save(nib.Nifti1Image(np.stack([RAMP] * 4, 2), np.eye(4)), folder / "a.nii.gz")
    for suffix in ("png", "jpg", "tif"):
        cv2.imwrite(str(folder / f"a.{suffix}"), RAMP.astype(np.uint8))
    study = {"id": "s", "images": [{"file": "a.png", "view": "frontal", "spacing_mm": [1, 1]}], "split": "train",
             "findings": [{"label": "mass", "certainty": "present"}], "boxes": [{"xyxy": [1, 2, 3, 4], "label": "m"}],
             "report": {"findings": "A mass."}}  # fmt: skip
    (folder / "a.jsonl").write_text(json.dumps(study) + "\n")
    (folder / "a.csv").write_text("id,image,view,report\ns,a.png,frontal,FINDINGS: Clear. IMPRESSION: Normal.\n")
    _write_tables(folder)
    return sorted(folder.iterdir())


TABLES = {
    "Data_Entry_2017.csv": "Image Index,Finding Labels,Patient ID,View Position,OriginalImage[Width,Height],"
    "OriginalImagePixelSpacing[x,y],\na.png,Mass|Nodule,1,PA,2682,2749,0.143,0.143,\n",
    "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Mass,225.08,547.01,86.77,79.18,,,\n",
    "PADCHEST_labels.csv": "ImageID,ImageDir,StudyID,PatientID,Projection,Labels,LabelsLocalizationsBySentence\n"
    "a.png,images,7991,P1,PA,\"['nodule', 'mass']\",\"[['nodule', 'loc left'], ['mass']]\"\n",
    "kidneyData.csv": ",image_id,path,diag,target,Class\n0,a,/content/a.png,Tumor,3,Tumor\n",
    "mimic-cxr-2.0.0-metadata.csv": "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime\n"
    "a,10000032,50414267,PA,21800506,213014.531\n",
    "mimic-cxr-2.0.0-chexpert.csv": "subject_id,study_id,"
    + ",".join(CHEXPERT)
    + "\n10000032,50414267,1.0,,0.0,-1.0"
    + "," * 10
    + "\n",
    "s50414267.txt": " FINAL REPORT\n INDICATION:  Cough.\n \n FINDINGS: \n \n Clear.\n \n IMPRESSION:  Normal.\n",
    "069.xml": "<LidcReadMessage><ResponseHeader><SeriesInstanceUid>1.2.3</SeriesInstanceUid></ResponseHeader>"
    "<readingSession><unblindedReadNodule><noduleID>1</noduleID><characteristics><malignancy>4</malignancy>"
    "</characteristics><roi><imageSOP_UID>1.2.1</imageSOP_UID><inclusion>TRUE</inclusion><edgeMap><xCoord>3</xCoord>"
    "<yCoord>4</yCoord></edgeMap><edgeMap><xCoord>9</xCoord><yCoord>9</yCoord></edgeMap></roi></unblindedReadNodule>"
    "</readingSession></LidcReadMessage>",
}
LAYOUT = {"Data": "nih", "BBox": "nih", "PADC": "padchest", "kidn": "ct-kidney", "mimi": "mimic-cxr-jpg",
          "s504": "mimic-cxr-jpg", "069.": "lidc"}  # fmt: skip


def _write_tables(folder: Path) -> None:
    for name, text in TABLES.items():
        (folder / name).write_text(text)


def read_in_its_tree(source: Path, mutated: Path, root: Path, originals: list[Path], write_dicom: Any) -> None:
    """Puts a mutated table where its layout looks for it, the others of the layout beside it, and reads the set."""
    layout = LAYOUT[source.name[:4]]
    picture = next(p for p in originals if p.name == "a.png").read_bytes()
    study = root / "files" / "p10" / "p10000032" / "s50414267"
    for folder in (root / "images", study):
        folder.mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(picture)
    (study / "a.jpg").write_bytes(next(p for p in originals if p.name == "a.jpg").read_bytes())
    if layout == "lidc":
        for number in range(3):
            write_dicom(root / f"{number}.dcm", RAMP, Modality="CT", SeriesInstanceUID="1.2.3",
                        SOPInstanceUID=f"1.2.{number}", ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                        ImagePositionPatient=[0, 0, number])  # fmt: skip
    for name, text in TABLES.items():
        place = study.parent if name.endswith(".txt") else root
        (place / name).write_bytes(mutated.read_bytes() if name == source.name else text.encode())
    for one in read_studies(root, layout):
        for image in one.images:
            load_image(image)


def read(path: Path) -> None:
    if path.suffix in (".jsonl", ".csv"):
        for study in read_studies(path):
            for image in study.images:
                load_image(image)
        return
    image = read_image(path)
    assert image.pixels is not None
    assert image.pixels.ndim == 2
    assert image.pixels.dtype == np.float32
    assert read_studies(path)


@pytest.mark.parametrize("count", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(
    originals: list[Path], tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture, write_dicom: Any
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "a.png").write_bytes(next(p for p in originals if p.name == "a.png").read_bytes())
    refused = []
    for number in range(count):
        source = originals[number % len(originals)]
        path = tmp_path / f"{number}{''.join(source.suffixes)}"
        path.write_bytes(mutate(source.read_bytes(), rng))
        try:
            if source.name in TABLES:
                read_in_its_tree(source, path, tmp_path / f"tree{number}", originals, write_dicom)
            else:
                read(path)
        except InputError as error:
            refused.append(str(error))
        except Exception as error:
            pytest.fail(f"mutation {number} of {source.name}: {type(error).__name__}: {error}")
        path.unlink()
    assert 0.1 * count < len(refused) < count
    assert not [r for r in caplog.records if r.name.startswith("pydicom")], "its remarks quote tags"
    assert not [line for line in refused if "\n" in line or "Doe" in line or "4711" in line or len(line) > 600]
