"""DICOM: values, windows, display, encodings, and refusals that name no patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from vlm.data.dicom import read_dicom, read_slice_header
from vlm.data.images import check_image, read_image
from vlm.types import InputError, Modality, View

HU = np.linspace(-1024, 3000, 20 * 30).reshape(20, 30).astype(np.int16)
CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def pixels_of(path: Path, **options: Any) -> np.ndarray:
    pixels = read_dicom(path, **options).pixels
    assert pixels is not None
    assert pixels.dtype == np.float32
    return pixels


def test_ct_takes_the_models_window_and_named_ones(tmp_path: Path, write_dicom: Any) -> None:
    stored = ((HU + 1024) // 2).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, Modality="CT", RescaleSlope=2, RescaleIntercept=-1024,
                       WindowCenter=40, WindowWidth=80, PixelSpacing=[0.5, 0.75])  # fmt: skip
    hu = stored * 2.0 - 1024
    np.testing.assert_allclose(pixels_of(path), np.clip((hu + 1000) / 1400, 0, 1), atol=1e-5)
    np.testing.assert_allclose(pixels_of(path, window="abdomen"), np.clip((hu + 150) / 400, 0, 1), atol=1e-5)
    np.testing.assert_allclose(pixels_of(path, window=(0, 100)), np.clip((hu + 50) / 100, 0, 1), atol=1e-5)
    image = read_dicom(path)
    assert (image.modality, image.spacing_mm, image.view, image.frame) == (Modality.CT, (0.5, 0.75), None, None)


def test_the_files_own_window_is_for_all_but_ct(tmp_path: Path, write_dicom: Any) -> None:
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20)
    path = write_dicom(tmp_path / "a.dcm", ramp, Modality="DX", WindowCenter=[200, 50], WindowWidth=[101, 10],
                       ViewPosition="PA", ImagerPixelSpacing=[0.2, 0.2])  # fmt: skip
    expected = np.clip((ramp - 199.5) / 100 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    np.testing.assert_allclose(pixels_of(path), expected, atol=1e-5)
    image = read_dicom(path)
    assert (image.modality, image.view, image.spacing_mm) == (Modality.XRAY, View.FRONTAL, (0.2, 0.2))
    with pytest.raises(InputError, match="window 'lung' is for CT; leave it out"):
        read_dicom(path, window="lung")


def test_monochrome1_is_turned_and_padding_is_black(tmp_path: Path, write_dicom: Any) -> None:
    ramp = np.tile(np.arange(20, dtype=np.uint8) * 12, (20, 1))
    ramp[:5] = 255
    path = write_dicom(tmp_path / "a.dcm", ramp, Modality="CR", PhotometricInterpretation="MONOCHROME1",
                       PixelPaddingValue=255)  # fmt: skip
    pixels = pixels_of(path)
    np.testing.assert_allclose(pixels[5:], 1 - ramp[5:] / 255, atol=1e-6)
    assert not pixels[:5].any()


def test_signed_padding_outside_the_ct_circle(tmp_path: Path, write_dicom: Any) -> None:
    stored = HU.copy()
    stored[:2] = -2000
    path = write_dicom(tmp_path / "a.dcm", stored, **CT, PixelPaddingValue=-2000)
    assert not pixels_of(path)[:2].any()
    np.testing.assert_allclose(pixels_of(path)[2:], np.clip((HU[2:] + 1000) / 1400, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "tags, rows, columns",
    [
        ({}, 1, 1),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, 1, 1),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, 1, -1),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}, -1, -1),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 0, -1]}, 1, -1),
        ({"ImageOrientationPatient": [0, -1, 0, 0, 0, -1]}, 1, 1),
        ({"Modality": "DX", "PatientOrientation": ["L", "F"]}, 1, 1),
        ({"Modality": "DX", "PatientOrientation": ["R", "F"]}, 1, -1),
        ({"Modality": "DX", "PatientOrientation": ["P", "F"]}, 1, 1),
        ({"Modality": "MG", "PatientOrientation": ["R", "F"]}, 1, 1),
        ({"Modality": "DX", "FieldOfViewHorizontalFlip": "YES"}, 1, 1),
    ],
)
def test_only_tags_mirror(tmp_path: Path, write_dicom: Any, tags: dict[str, Any], rows: int, columns: int) -> None:
    path = write_dicom(tmp_path / "a.dcm", HU, **{**CT, **tags})
    plain = pixels_of(write_dicom(tmp_path / "b.dcm", HU, **{**CT, "Modality": tags.get("Modality", "CT")}))
    np.testing.assert_array_equal(pixels_of(path), plain[::rows, ::columns])


@pytest.mark.parametrize(
    "directions, view",
    [
        ([1, 0, 0, 0, 1, 0], View.AXIAL),
        ([1, 0, 0, 0, 0.26, -0.966], View.CORONAL),
        ([0, 1, 0, 0, 0, -1], View.SAGITTAL),
        ([0.7071, 0.7071, 0, 0, 0, -1], View.OTHER),
        ([1, 0, 0, 0, 9, 0], None),
    ],
)
def test_the_plane_is_read_from_directions(
    tmp_path: Path, write_dicom: Any, directions: list[float], view: View | None
) -> None:
    path = write_dicom(tmp_path / "a.dcm", HU, **CT, ImageOrientationPatient=directions)
    assert read_dicom(path).view is view


def test_the_middle_frame_unless_asked(tmp_path: Path, write_dicom: Any) -> None:
    frames = np.stack([np.full((16, 16), 10 * i, np.uint8) for i in range(5)])
    path = write_dicom(tmp_path / "a.dcm", frames, Modality="US")
    assert read_image(path).frame == 2
    assert pixels_of(path)[0, 0] == pytest.approx(20 / 255)
    assert pixels_of(path, frame=4)[0, 0] == pytest.approx(40 / 255)
    with pytest.raises(InputError, match="has no frame 5; it has 5, counted from 0"):
        read_dicom(path, frame=5)


def test_lookup_tables(tmp_path: Path, write_dicom: Any) -> None:
    ramp = np.tile(np.arange(16, dtype=np.uint8), (16, 1))
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [16, 0, 8])
    table.add_new("LUTData", "US", [min(255, 20 * i) for i in range(16)])
    path = write_dicom(tmp_path / "a.dcm", ramp, Modality="CR", VOILUTSequence=Sequence([table]))
    np.testing.assert_allclose(pixels_of(path)[0], np.minimum(np.arange(16) * 20, 255) / 255, atol=1e-6)


def test_enhanced_frames_carry_their_own_tags(tmp_path: Path, write_dicom: Any) -> None:
    def group(**parts: dict[str, Any]) -> Dataset:
        out = Dataset()
        for name, tags in parts.items():
            item = Dataset()
            for key, value in tags.items():
                setattr(item, key, value)
            setattr(out, name, Sequence([item]))
        return out

    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [0.6, 0.6]},
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
    )
    own = [group(PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": x}) for x in (0, -1000)]
    path = write_dicom(tmp_path / "a.dcm", np.full((2, 16, 16), 700, np.int16), Modality="CT",
                       SharedFunctionalGroupsSequence=Sequence([shared]),
                       PerFrameFunctionalGroupsSequence=Sequence(own))  # fmt: skip
    image = read_dicom(path, frame=1)
    assert (image.view, image.spacing_mm) == (View.AXIAL, (0.6, 0.6))
    assert image.pixels is not None
    assert image.pixels[0, 0] == pytest.approx((700 - 1000 + 1000) / 1400)
    assert pixels_of(path, frame=0)[0, 0] == 1.0


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_encodings_give_the_same_pixels(tmp_path: Path, write_dicom: Any, syntax: Any) -> None:
    plain = write_dicom(tmp_path / "a.dcm", np.tile(HU, (4, 4)), **CT)
    dataset = pydicom.dcmread(plain)
    if syntax.is_compressed and syntax is not DeflatedExplicitVRLittleEndian:
        dataset.compress(syntax)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.dcm"), pixels_of(plain))


def test_series_headers(tmp_path: Path, write_dicom: Any) -> None:
    path = write_dicom(tmp_path / "a.dcm", HU, **CT, SeriesInstanceUID="1.2.3", InstanceNumber=7,
                       ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[5, 6, -40])  # fmt: skip
    header = read_slice_header(path)
    assert (header.series, header.position, header.instance, header.modality) == ("1.2.3", -40.0, 7.0, Modality.CT)


def test_every_bundled_file_is_read_or_refused_in_one_line() -> None:
    read, refused, lines = [], [], []
    for path in sorted(TEST_FILES.glob("*.dcm")):
        try:
            image = read_image(path)
        except InputError as error:
            refused.append(path.name)
            lines.append(str(error))
        else:
            assert image.pixels is not None
            assert 0 <= image.pixels.min() <= image.pixels.max() <= 1
            read.append(path.name)
    assert all(line.startswith(str(TEST_FILES)) and "\n" not in line for line in lines)
    if not read:
        pytest.skip("this pydicom carries no test files")
    broken = {"JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "badVR.dcm", "MR_truncated.dcm"}
    assert broken <= set(refused) | {p.name for p in TEST_FILES.glob("*.dcm")}
    assert {"CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "image_dfl.dcm", "SC_rgb_jpeg.dcm"} <= set(read)
    assert len(read) > 45


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, write_dicom: Any, part: float) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((200, 200), np.int16), **CT)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(InputError, match=r"a\.dcm: the DICOM file is truncated: pixels are missing; copy it again"):
        read_image(path)


def test_without_pixels(tmp_path: Path, write_dicom: Any) -> None:
    report = write_dicom(tmp_path / "a.dcm", HU, PixelData=None, Rows=None, Columns=None)
    with pytest.raises(InputError, match="holds no pixels") as caught:
        read_image(report)
    assert "Doe" not in str(caught.value)
    assert "4711" not in str(caught.value)
    with pytest.raises(InputError, match="holds no pixels, or lacks a tag"):
        read_image(write_dicom(tmp_path / "b.dcm", HU, PixelData=None))


def test_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("hello, this is a letter and no image at all")
    with pytest.raises(InputError, match=r"a\.dcm: is not a DICOM file"):
        read_image(tmp_path / "a.dcm")


def test_sizes_are_bounded_before_decoding(tmp_path: Path, write_dicom: Any) -> None:
    huge = write_dicom(tmp_path / "a.dcm", HU, Rows=20000, Columns=20000)
    with pytest.raises(InputError, match="20000x20000 pixels, more than 100 megapixels"):
        read_image(huge)
    with pytest.raises(InputError, match="1x1 pixels; at least 8x8"):
        read_image(write_dicom(tmp_path / "b.dcm", np.zeros((1, 1), np.int16)))


def test_all_black_is_read_and_flagged(tmp_path: Path, write_dicom: Any) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.full((32, 32), -2000, np.int16), **CT)
    with pytest.raises(InputError, match="uniform"):
        check_image(pixels_of(path), path.name)
