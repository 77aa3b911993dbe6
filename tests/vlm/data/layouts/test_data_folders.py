"""Files and folders without a list, and how a layout is told from a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vlm.data.slices import key_slices
from vlm.data.sources import FORMATS, layout_of, read_studies
from vlm.types import InputError, View

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), RAMP)
    return path


def test_one_file(tmp_path: Path) -> None:
    (study,) = read_studies(picture(tmp_path / "chest_lateral.png"))
    assert (study.id, study.images[0].view) == ("chest_lateral", View.LATERAL)


def test_files_that_belong_together(tmp_path: Path) -> None:
    for name in ("a_lateral.png", "a_frontal.png", "b.png", ".hidden.png", "case7/1.png", "case7/2.jpg"):
        picture(tmp_path / name)
    for number in range(9):
        picture(tmp_path / "Cyst" / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    studies = {s.id: s for s in read_studies(tmp_path)}
    assert set(studies) == {"a", "b", "case7", *(f"Cyst/{n}" for n in range(9))}
    assert [i.view for i in studies["a"].images] == [View.FRONTAL, View.LATERAL]
    assert [i.path.name for i in studies["case7"].images if i.path] == ["1.png", "2.jpg"]


def test_one_stem_with_two_suffixes_stays_two_studies(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    assert [s.id for s in read_studies(tmp_path)] == ["a.jpg", "a.png"]


def test_ct_slices_are_one_series_from_low_to_high(tmp_path: Path, write_dicom: Any) -> None:
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in range(20):
        write_dicom(folder / f"{19 - number:02d}.dcm", RAMP, Modality="CT", SeriesInstanceUID="1.2.3",
                    ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, 5 * number])  # fmt: skip
    write_dicom(folder / "scout.dcm", RAMP, Modality="CT", SeriesInstanceUID="1.2.4")
    scout, study = sorted(read_studies(tmp_path), key=lambda s: len(s.images))
    assert (study.id, scout.id, len(study.images)) == ("ct", "ct/files", 8)
    names = [i.path.name for i in study.images if i.path]
    assert names == sorted(names, reverse=True), "the files were named from the head down"


def test_key_slices() -> None:
    assert key_slices(3) == [0, 1, 2]
    assert key_slices(100, 4) == [12, 37, 62, 87]


def test_dicom_without_a_suffix_is_found(tmp_path: Path, write_dicom: Any) -> None:
    write_dicom(tmp_path / "IM000001", RAMP, Modality="CR")
    (tmp_path / "README").write_text("x" * 200)
    assert [s.id for s in read_studies(tmp_path)] == ["IM000001"]


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no image \(\.png, \.jpg"):
        read_studies(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        read_studies(tmp_path / "gone")
    with pytest.raises(InputError, match=r"format 'pngs' is not known; choose auto, .*openi"):
        read_studies(tmp_path, "pngs")
    (tmp_path / "letter.txt").write_text("Dear colleague")
    with pytest.raises(InputError, match=r"letter\.txt: is not an image"):
        read_studies(tmp_path / "letter.txt")


def test_every_layout_says_what_it_is() -> None:
    assert all(name == layout.name and layout.summary and layout.example for name, layout in FORMATS.items())


def test_layouts_are_told_apart_on_the_real_sets(shared_data: Path) -> None:
    for name, path in {"openi": "openi", "r2gen": "openi/r2gen_annotation.json", "folder": "openi/images"}.items():
        assert layout_of(shared_data / path).name == name
