"""Several CT windows as channels, pseudo-colour, and models that take them; JPEG 2000 at reduced resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from vlm.config import Config, load_config, parse_config
from vlm.data.channels import as_channels, colour_table, hull, load_channels
from vlm.data.dicom import read_dicom
from vlm.data.images import load_image
from vlm.data.jpeg2000 import levels_to_leave_out
from vlm.data.transforms import letterbox
from vlm.data.windows import WINDOWS, apply_window
from vlm.models.vision import VisionEncoder, build_backbone
from vlm.types import InputError, Modality, StudyImage

NAMES = ("lung", "mediastinum", "bone")
HU = np.linspace(-1024, 2000, 4096).reshape(64, 64)


@pytest.fixture
def ct(tmp_path: Path, write_dicom: Any) -> Path:
    stored = np.rint(HU + 1024).astype(np.uint16)
    return write_dicom(  # type: ignore[no-any-return]
        tmp_path / "ct.dcm", stored, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"
    )


def test_windows_are_the_channels_of_a_ct(ct: Path) -> None:
    windows = [WINDOWS[n] for n in NAMES]
    assert hull(windows) == (-25.0, 2650.0)
    image, channels = load_channels(StudyImage(ct), windows)
    assert len(channels) == 3
    for window, channel in zip(windows, channels, strict=True):
        assert np.abs(channel - apply_window(np.rint(HU), *window)).max() < 1e-5
        assert np.abs(channel - load_image(StudyImage(ct, window=window)).pixels).max() < 1e-5
    assert image.modality is Modality.CT
    assert len(load_channels(StudyImage(ct, window=(40, 400)), windows)[1]) == 1, "the user's window is all there is"
    _, again = load_channels(load_image(StudyImage(ct)), windows)
    assert np.abs(again[1] - channels[1]).max() < 1e-5, "pixels in the model's window tell what it holds"


def test_what_has_no_units_is_grey(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.arange(256, dtype=np.uint8).reshape(16, 16))
    _, (grey,) = load_channels(StudyImage(tmp_path / "a.png", modality=Modality.CT), [WINDOWS[n] for n in NAMES])
    assert grey.shape == (16, 16)
    assert as_channels(np.zeros((4, 4), np.uint8), 3, False).shape == (3, 4, 4)


def test_pseudo_colour_keeps_every_grey_level_apart() -> None:
    table = colour_table()
    assert len({tuple(c) for c in table.T.tolist()}) == 256
    assert table[:, [0, 128, 255]].T.tolist() == [[0, 0, 255], [2, 255, 0], [255, 0, 0]]
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(as_channels(grey, 3, True), table[:, grey])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_model_takes_any_number_of_channels(count: int) -> None:
    inputs = 2 if count == 2 else max(3, count)
    backbone = build_backbone("mobilenetv3_small_050", None, {}, 64, inputs)
    encoder = VisionEncoder(backbone, 0.5, 0.5, True, inputs).eval()
    assert [m.shape[-1] for m in encoder(torch.rand(2, count, 64, 64))] == [8, 4, 2]


def test_the_model_follows_the_data_section() -> None:
    assert Config().model.vision.channels == 1
    made = parse_config({"data": {"windows": list(NAMES)}}, "c")
    assert made.model.vision.channels == 3
    assert parse_config(made.model_dump(mode="json"), "checkpoint").model.vision.channels == 3
    assert parse_config({"data": {"pseudo_colour": True}}, "c").model.vision.channels == 3
    assert Config().model.vision.channels == 1, "one configuration does not change another's defaults"
    with pytest.raises(InputError, match="three windows"):
        parse_config({"data": {"pseudo_colour": True, "windows": ["lung", "bone"]}}, "c")
    with pytest.raises(InputError, match=r"model\.vision\.channels: 2, but"):
        parse_config({"model": {"vision": {"channels": 2}}}, "c")


def test_shipped_configurations_are_grey() -> None:
    for path in sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")):
        assert load_config(path).model.vision.channels == 1


def radiograph(rng: np.random.Generator, side: int) -> np.ndarray:
    """12-bit blobs with edges and noise."""
    y, x = np.mgrid[:side, :side]
    out = np.full((side, side), 1800.0)
    for _ in range(20):
        cx, cy, r, level = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(8, side / 5), rng.uniform(-300, 300)
        out += level * ((x - cx) ** 2 + (y - cy) ** 2 < r * r)
    out = cv2.GaussianBlur(out, (0, 0), 2) + rng.normal(0, 10, out.shape)
    return np.clip(out, 0, 4095).astype(np.uint16)  # type: ignore[no-any-return]


def write_j2k(path: Path, stored: np.ndarray, **tags: Any) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3"
    dataset.Modality, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = "DX", 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.WindowCenter, dataset.WindowWidth = (2048, 4096) if stored.dtype.kind == "u" else (0, 4096)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("kind", ["plain", "signed", "inverted", "odd"])
def test_reduced_jpeg_2000_lies_where_the_full_one_does(tmp_path: Path, kind: str) -> None:
    stored = radiograph(np.random.default_rng(0), 512)
    if kind == "signed":
        stored = (stored.astype(np.int32) - 2048).astype(np.int16)
    if kind == "odd":
        stored = np.ascontiguousarray(stored[:487, :502])
    tags = {"PhotometricInterpretation": "MONOCHROME1"} if kind == "inverted" else {}
    path = write_j2k(tmp_path / "a.dcm", stored, **tags)
    full, reduced = read_dicom(path), read_dicom(path, least=120)
    assert full.pixels is not None
    assert reduced.pixels is not None
    assert (full.full_size, reduced.full_size) == (None, stored.shape[::-1])
    assert max(reduced.pixels.shape) in (126, 128)
    wanted, _ = letterbox(full.pixels, 120)
    found, placement = letterbox(reduced.pixels, 120, full_size=reduced.full_size)
    assert (placement.width, placement.height) == stored.shape[::-1], "boxes count in the full image"
    assert np.abs(found - wanted).mean() * 255 < 0.6
    crop = (slice(8, -8), slice(8, -8))
    (dx, dy), _ = cv2.phaseCorrelate(wanted[crop].astype(np.float64), found[crop].astype(np.float64))
    assert max(abs(dx), abs(dy)) < 0.06, "uncorrected it is 0.37 pixels"


def test_nothing_is_reduced_below_what_is_needed(tmp_path: Path) -> None:
    assert levels_to_leave_out(2048, 2048, 512) == 2
    assert levels_to_leave_out(2048, 2048, 600) == 1
    assert levels_to_leave_out(2045, 2048, 512) == 1
    assert levels_to_leave_out(500, 400, 512) == 0
    path = write_j2k(tmp_path / "a.dcm", radiograph(np.random.default_rng(0), 128))
    assert read_dicom(path, least=100).full_size is None
    cut = path.read_bytes()[:-4000]
    path.write_bytes(cut)
    with pytest.raises(InputError, match=r"a\.dcm"):
        read_dicom(path)
