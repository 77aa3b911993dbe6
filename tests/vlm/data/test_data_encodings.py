"""Files as the libraries bundle them, HTJ2K, palettes, mammography and ultrasound, several windows, missing tags."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless

from vlm.data.dicom import read_dicom
from vlm.data.images import load_image
from vlm.data.sources import read_studies
from vlm.types import InputError, Modality, View

# 32x32 pixels of 60 * (row + column), 16 bit, lossless, as OpenJPH 0.26 encodes them.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAMUAAf+TwAAma/cFB3QAwAATQAATAJD4Awd0AJD4Awd0AMAAE8AAE4BIIPEC"
    "gnQASETiAKNUAMAAFVAABVgiRIgQ8apyAnUAIooQIeLAQgHstgDAABaEAAFpgAwMDAwMDAwM58p6enGCeAAMGRgYGBgYGP79jGB79jGB7LoAwAAt"
    "mAAFvrZt27Zt27Zt27Zt2/n/Cnp6enp6enCCfQB227Zt27Zt27Zt27b/eGBCB79hCB79hCB79hCB7LMB/9k="
)
RAMP = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint16) * 60


def htj2k(path: Path, write_dicom: Any) -> Path:
    data = pydicom.dcmread(write_dicom(path, RAMP, Modality="DX", WindowCenter=2048, WindowWidth=4096))
    data.PixelData = encapsulate([HTJ2K])
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = HTJ2KLossless
    data.save_as(path)
    return path


def test_htj2k(tmp_path: Path, write_dicom: Any) -> None:
    path = htj2k(tmp_path / "a.dcm", write_dicom)
    found = read_dicom(path).pixels
    assert found is not None
    np.testing.assert_allclose(found, (RAMP - 2047.5) / 4095 + 0.5, atol=1e-4)
    half = read_dicom(path, least=16)
    assert half.pixels is not None
    assert (half.pixels.shape, half.full_size) == ((16, 16), (32, 32))
    # The middle of four pixels: half a pixel to the lower right of the first of them.
    wanted = found.reshape(16, 2, 16, 2).mean((1, 3))
    assert np.abs(half.pixels - wanted)[1:-1, 1:-1].max() < 2e-3


def test_palette_colours_become_grey(tmp_path: Path, write_dicom: Any) -> None:
    table = (np.arange(256, dtype=np.uint16) * 257).tobytes()
    tags = {f"{c}PaletteColorLookupTable{k}": v for c in ("Red", "Green", "Blue")
            for k, v in (("Descriptor", [256, 0, 16]), ("Data", table))}  # fmt: skip
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_dicom(tmp_path / "a.dcm", stored, Modality="US", PhotometricInterpretation="PALETTE COLOR", **tags)
    image = read_dicom(path)
    assert image.pixels is not None
    assert image.modality is Modality.ULTRASOUND
    np.testing.assert_allclose(image.pixels, stored / 255, atol=2e-3)


def test_mammography_and_a_detector_without_any_tag(tmp_path: Path, write_dicom: Any) -> None:
    mammogram = read_dicom(write_dicom(
        tmp_path / "mg.dcm", RAMP, Modality="MG", ViewPosition="MLO", ImagerPixelSpacing=[0.07, 0.07],
        PhotometricInterpretation="MONOCHROME1", WindowCenter=["930", "500"], WindowWidth=["1861", "100"],
        VOILUTFunction="LINEAR_EXACT"))  # fmt: skip
    assert (mammogram.modality, mammogram.view, mammogram.spacing_mm) == (
        Modality.MAMMOGRAPHY, View.OTHER, (0.07, 0.07))  # fmt: skip
    assert mammogram.pixels is not None
    np.testing.assert_allclose(mammogram.pixels, 1 - np.clip((RAMP.astype(float) - 930) / 1861 + 0.5, 0, 1), atol=1e-5)
    bare = read_dicom(write_dicom(tmp_path / "bare.dcm", RAMP, PhotometricInterpretation=""))
    assert (bare.modality, bare.view, bare.spacing_mm) == (None, None, None)
    assert bare.pixels is not None
    assert bare.pixels[0, 0] == 0
    assert bare.pixels[-1, -1] == 1


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int8, np.uint8])
def test_plain_pixels_are_those_that_pydicom_gives(tmp_path: Path, write_dicom: Any, kind: Any) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (3, 17, 9), endpoint=True).astype(kind)
    path = write_dicom(tmp_path / "a.dcm", stored, Modality="MR")
    for frame in range(3):
        wide = read_dicom(path, (0, 131072), frame).pixels
        assert wide is not None
        np.testing.assert_allclose(wide * 131072 - 65536, stored[frame], atol=0.02)


def test_bundled_volumes_of_nibabel() -> None:
    folder = Path(nibabel.__file__).parent / "tests" / "data"
    files = sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")])
    if not files:
        pytest.skip("this nibabel carries no test files")
    read, refused = {}, []
    for path in files:
        try:
            (study,) = read_studies(path, slices="uniform:3")
            read[path.name] = load_image(study.images[0])
        except InputError as error:
            refused.append(str(error))
    assert all(line.startswith(str(folder)) and "\n" not in line for line in refused)
    assert {"anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"} <= set(read)
    example = read["example4d.nii.gz"]
    assert example.pixels is not None
    assert (example.pixels.shape, example.spacing_mm) == ((96, 128), (2.0, 2.0)), "two millimetres, front at the top"
    assert example.place is not None
    assert example.place.count == 24


def test_reading_leaves_pydicoms_loggers_as_they_were(tmp_path: Path, write_dicom: Any) -> None:
    logger = logging.getLogger("pydicom")
    read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, Modality="CR"))
    assert not logger.disabled
    logger.disabled = True
    try:
        read_dicom(tmp_path / "a.dcm")
        assert logger.disabled, "whoever switched it off keeps it off"
    finally:
        logger.disabled = False
