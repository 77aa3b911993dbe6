"""NIfTI volumes written by nibabel in several orientations show the same picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from vlm.data.images import read_image
from vlm.data.sources import read_studies
from vlm.types import InputError, Modality, View

SHAPE = (12, 10, 9)  # right-left, back-front, feet-head


def volume(path: Path, codes: str = "RAS", spacing: tuple[float, float, float] = (0.5, 0.75, 3.0)) -> Path:
    """A volume whose value tells its place: 10 a voxel to the right, 100 to the front, 1000 to the head."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    data = (10 * x + 100 * y + 1000 * z).astype(np.int16)
    affine = np.diag([*spacing, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = apply_orientation(data, turn)
    nib.save(nib.Nifti1Image(turned, affine @ inv_ornt_aff(turn, SHAPE)), path)
    return path


ORIENTATIONS = ["".join(p) for p in itertools.permutations("RAS")] + ["LPS", "LAS", "PIR", "RPI"]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_orientation_is_honoured(tmp_path: Path, codes: str) -> None:
    image = read_image(volume(tmp_path / "a.nii.gz", codes), window=(3000.0, 8000.0), frame=3)
    assert image.pixels is not None
    values = image.pixels * 8000 - 1000
    assert values.shape == (10, 12)
    np.testing.assert_allclose(values[0, 0], 10 * 11 + 100 * 9 + 3000, atol=0.1, err_msg="right front at the top left")
    np.testing.assert_allclose(values[0, -1], 100 * 9 + 3000, atol=0.1, err_msg="left front at the top right")
    np.testing.assert_allclose(values[-1, 0], 10 * 11 + 3000, atol=0.1, err_msg="right back at the bottom left")
    assert (image.view, image.spacing_mm, image.frame) == (View.AXIAL, (0.75, 0.5), 3)


def test_a_volume_is_a_study_of_key_slices(tmp_path: Path) -> None:
    (study,) = read_studies(volume(tmp_path / "liver.nii.gz"))
    assert (study.id, len(study.images)) == ("liver", 8)
    assert [i.frame for i in study.images] == sorted({i.frame for i in study.images if i.frame is not None})


def test_air_tells_ct(tmp_path: Path) -> None:
    data = np.full((16, 16, 3), 40, np.int16)
    data[:4] = -1000
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    assert (image.modality, image.frame) == (Modality.CT, 1)
    assert image.pixels is not None
    assert image.pixels.max() == pytest.approx(1040 / 1400)


def test_refusals(tmp_path: Path) -> None:
    path = volume(tmp_path / "a.nii")
    with pytest.raises(InputError, match="has no slice 9; it has 9, counted from 0 at the feet"):
        read_image(path, frame=9)
    (tmp_path / "cut.nii").write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"cut\.nii: the NIfTI file is truncated or broken"):
        read_image(tmp_path / "cut.nii")
    zipped = volume(tmp_path / "b.nii.gz")
    zipped.write_bytes(zipped.read_bytes()[: zipped.stat().st_size // 2])
    with pytest.raises(InputError, match=r"b\.nii\.gz: "):
        read_image(zipped)
    (tmp_path / "text.nii").write_text("this is no volume")
    with pytest.raises(InputError, match=r"text\.nii: is not a NIfTI file"):
        read_image(tmp_path / "text.nii")
