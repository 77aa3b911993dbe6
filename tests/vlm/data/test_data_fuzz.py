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
    (folder / "a.csv").write_text("id,image,view,findings\ns,a.png,frontal,Clear.\n")
    return sorted(folder.iterdir())


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
    originals: list[Path], tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "a.png").write_bytes(next(p for p in originals if p.name == "a.png").read_bytes())
    refused = []
    for number in range(count):
        source = originals[number % len(originals)]
        path = tmp_path / f"{number}{''.join(source.suffixes)}"
        path.write_bytes(mutate(source.read_bytes(), rng))
        try:
            read(path)
        except InputError as error:
            refused.append(str(error))
        except Exception as error:
            pytest.fail(f"mutation {number} of {source.name}: {type(error).__name__}: {error}")
        path.unlink()
    assert 0.2 * count < len(refused) < count
    assert not [r for r in caplog.records if r.name.startswith("pydicom")], "its remarks quote tags"
    assert not [line for line in refused if "\n" in line or "Doe" in line or "4711" in line or len(line) > 600]
