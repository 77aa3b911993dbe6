"""Volumes become a bounded set of key slices, and a box names its slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from vlm.data.images import load_image
from vlm.data.layouts.tabular import read_list, write_studies
from vlm.data.slices import SliceRule, keep_slices, lesion_score
from vlm.data.sources import read_studies
from vlm.types import Box, Finding, InputError, SlicePlace, Study, StudyImage

AXIAL = [1, 0, 0, 0, 1, 0]
LESION = 23


def body(rng: np.random.Generator, lesion: bool) -> np.ndarray:
    """A slice in HU: a body with two lungs, vessels that are alike on both sides, and a ball in one lung."""
    y, x = np.mgrid[-32:32, -32:32]
    hu = np.where((x / 30) ** 2 + (y / 24) ** 2 < 1, 40, -1000)
    for side in (-13, 13):
        hu[((x - side) / 10) ** 2 + (y / 16) ** 2 < 1] = -850
        hu[(x - side) ** 2 + (y - 3) ** 2 < 4] = 0
    if lesion:
        hu[(x + 16) ** 2 + (y + 6) ** 2 < 10] = 60
    return (hu + rng.normal(0, 15, hu.shape)).astype(np.int16)


@pytest.fixture
def series(tmp_path: Path, write_dicom: Any) -> Path:
    folder, rng = tmp_path / "ct_series", np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        write_dicom(
            folder / f"{39 - number:02d}.dcm", body(rng, abs(number - LESION) <= 1) + 1024, Modality="CT",
            SeriesInstanceUID="1.2.3", ImageOrientationPatient=AXIAL, ImagePositionPatient=[0, 0, -100 + 2.5 * number],
            RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU",
        )  # fmt: skip
    return folder


def places(study: Study) -> list[SlicePlace]:
    return [i.place for i in study.images if i.place]


def test_a_series_keeps_its_positions(series: Path) -> None:
    (study,) = read_studies(series, slices="uniform:4")
    assert [p.first for p in places(study)] == [5, 15, 25, 35]
    assert [p.position_mm for p in places(study)] == [-87.5, -62.5, -37.5, -12.5]
    assert all(p.count == 40 for p in places(study))
    assert [i.path.name for i in study.images if i.path] == ["34.dcm", "24.dcm", "14.dcm", "04.dcm"]


def test_the_lesion_is_among_the_slices_of_highest_score(series: Path) -> None:
    (study,) = read_studies(series, slices="mls:3")
    assert min(abs(p.first - LESION) for p in places(study)) <= 1
    (counted,) = read_studies(series, slices="mls:2", score=lambda i: float(i.place.first == 31) if i.place else 0)
    assert 31 in [p.first for p in places(counted)]


def test_a_slab_shows_the_maximum_and_holds_the_boxes_of_its_slices(series: Path) -> None:
    (whole,) = read_studies(series, slices="uniform:64")
    whole.boxes = (Box((12, 20, 20, 30), "nodule", LESION), Box((1, 1, 2, 2), "mass", 0))
    whole.findings = (Finding("nodule", boxes=(0,)),)
    study = keep_slices(whole, SliceRule.parse("mip:5"))
    assert [(p.first, p.last) for p in places(study)] == [(0, 7), (8, 15), (16, 23), (24, 31), (32, 39)]
    assert [b.image for b in study.boxes or ()] == [2, 0]
    parts = [load_image(i).pixels for i in whole.images[16:24]]
    assert np.array_equal(load_image(study.images[2]).pixels, np.max(parts, axis=0))  # type: ignore[type-var, arg-type]


def test_boxes_on_slices_that_are_left_out_are_left_out(series: Path) -> None:
    (whole,) = read_studies(series, slices="uniform:64")
    whole.boxes = (Box((1, 1, 2, 2), "mass", 0), Box((12, 20, 20, 30), "nodule", LESION))
    whole.findings = (Finding("mass", boxes=(0,)), Finding("nodule", boxes=(1,)))
    uniform = keep_slices(whole, SliceRule("uniform", 4))
    assert (uniform.boxes, [f.boxes for f in uniform.findings or ()]) == ((), [(), ()])
    trained = keep_slices(whole, SliceRule("boxes", 4))
    assert [p.first for p in places(trained)][:1] == [0]
    assert LESION in [p.first for p in places(trained)]
    assert {trained.images[b.image].place.first: b.label for b in trained.boxes or ()} == {0: "mass", LESION: "nodule"}  # type: ignore[union-attr]


def test_a_nifti_volume_has_the_positions_of_its_affine(tmp_path: Path) -> None:
    affine = np.diag([-1, -1, 3.0, 1])
    affine[2, 3] = -60
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 20), np.float32), affine), tmp_path / "v.nii.gz")  # type: ignore[no-untyped-call]
    (study,) = read_studies(tmp_path / "v.nii.gz", slices="uniform:2")
    assert [(i.frame, i.place.position_mm) for i in study.images if i.place] == [(5, -45.0), (15, -15.0)]
    upside_down = affine @ np.diag([1, 1, -1, 1])
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 20), np.float32), upside_down), tmp_path / "u.nii"
    )  # type: ignore[no-untyped-call]
    (other,) = read_studies(tmp_path / "u.nii", slices="uniform:20")
    heights = [p.position_mm for p in places(other)]
    assert heights == sorted(heights), "counted from the feet up"  # type: ignore[type-var]


def test_frames_are_slices_too(tmp_path: Path, write_dicom: Any) -> None:
    frames = np.random.default_rng(0).integers(0, 4000, (12, 16, 16)).astype(np.uint16)
    write_dicom(tmp_path / "cine.dcm", frames, Modality="US", NumberOfFrames=12)
    (study,) = read_studies(tmp_path, slices="uniform:3")
    assert [(i.frame, i.place.count) for i in study.images if i.place] == [(2, 12), (6, 12), (10, 12)]


def test_a_list_keeps_places_and_slabs(series: Path, tmp_path: Path) -> None:
    studies = read_studies(series, slices="mip:3")
    write_studies(tmp_path / "studies.jsonl", studies)
    (again,) = read_list(tmp_path / "studies.jsonl")
    assert (again.images[1].place, again.images[1].slab) == (studies[0].images[1].place, studies[0].images[1].slab)


@pytest.mark.parametrize("rule", ["mls:0", "mls:65", "middle:3", "mls:x", ""])
def test_a_rule_that_makes_no_sense_is_refused(rule: str) -> None:
    with pytest.raises(InputError, match="slices"):
        SliceRule.parse(rule)


def test_the_score_prefers_what_lies_on_one_side() -> None:
    rng = np.random.default_rng(0)
    window = lambda hu: np.clip((hu + 1000) / 1400, 0, 1).astype(np.float32)  # noqa: E731
    without = [lesion_score(StudyImage(pixels=window(body(rng, False)))) for _ in range(5)]
    assert lesion_score(StudyImage(pixels=window(body(rng, True)))) > 1.5 * max(without)
