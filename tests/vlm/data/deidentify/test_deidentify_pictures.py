"""Text that is planted in pixels is blackened; metadata goes; nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom import dcmread
from typer.testing import CliRunner

from vlm.cli.data import app
from vlm.data.deidentify.pixels import find_text
from vlm.data.phantoms.chest_ct import phantom_study

RUN = CliRunner()
WORDS = ("DOE, JANE", "MRN 4471182", "14/03/2019", "ST MARY HOSPITAL", "F 67Y", "12:33:10")


def planted(index: int, corner: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(512, 512) slice, the slice with a word in a corner, and where its strokes lie."""
    pixels = phantom_study(7, index).images[0].pixels
    assert pixels is not None
    grey = np.round(pixels * 255).astype(np.uint8)
    word, thick = WORDS[index % len(WORDS)], 1 + index % 2
    scale = 0.45 + 0.15 * (index % 4)
    (width, height), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    at = (6 if corner % 2 == 0 else 506 - width, 8 + height if corner < 2 else 503)
    strokes = np.zeros_like(grey)
    cv2.putText(strokes, word, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick)
    return grey, np.maximum(grey, strokes), strokes > 0


def test_planted_text_is_found() -> None:
    missed = []
    for index in range(6):
        _, written, strokes = planted(index, index % 4)
        found = np.zeros(written.shape, bool)
        for x1, y1, x2, y2 in find_text(written):
            found[y1:y2, x1:x2] = True
        if (found & strokes).sum() < 0.97 * strokes.sum():
            missed.append(index)
    assert not missed


def _lost(grey: np.ndarray) -> float:
    return sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in find_text(grey)) / grey.size


def test_anatomy_is_hardly_taken_for_text() -> None:
    assert np.mean([_lost(planted(index, 0)[0]) for index in range(5)]) < 0.005


def test_real_pictures_lose_little(shared_data: Path) -> None:
    files = sorted((shared_data / "openi" / "images" / "images_normalized").iterdir())[::1200]
    assert np.mean([_lost(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) for file in files]) < 0.015


@pytest.mark.parametrize("kind", ["dcm", "png", "jpg"])
def test_masked_on_request(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "src"
    source.mkdir()
    _, written, strokes = planted(1, 0)
    path = source / f"a.{kind}"
    if kind == "dcm":
        from vlm.data.phantoms.dicom_files import write_slice

        hu = (written.astype(np.int16) * 8 - 1000).astype(np.int16)
        write_slice(path, hu, (0.7, 0.7), 0, 0)
    else:
        cv2.imwrite(str(path), written)
    for out, options in (("plain", []), ("masked", ["--mask-text"])):
        done = RUN.invoke(app, ["deidentify", str(source), "--out", str(tmp_path / out), *options])
        assert done.exit_code == 0, done.output

    def read(folder: str) -> np.ndarray:
        (file,) = (tmp_path / folder).rglob(f"*.{kind}")
        return dcmread(file).pixel_array if kind == "dcm" else cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)

    before = dcmread(path).pixel_array if kind == "dcm" else cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(read("plain"), before)
    masked = read("masked")
    assert masked[strokes].max() <= masked.min() + 12
    assert (masked != before).mean() < (0.05 if kind != "jpg" else 0.9)
    report = json.loads((tmp_path / "masked" / "deidentify_report.json").read_text())
    assert report["pictures with text masked"] == 1


def test_metadata_of_pictures_and_volumes_goes(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    picture = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).astype(np.uint8).reshape(64, 64))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", "Zwingli")
    picture.save(source / "a.png", pnginfo=notes)
    exif = Image.Exif()
    exif[270] = "Zwingli"
    picture.save(source / "b.jpg", exif=exif, comment=b"Zwingli comment")
    picture.save(source / "c.tif", description="Zwingli")
    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 3, 4, 1]))
    volume.header["descrip"], volume.header["aux_file"] = b"Zwingli 1931", b"Zwingli.txt"
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Zwingli in an extension"))
    for name in ("d.nii", "e.nii.gz"):
        nibabel.save(volume, source / name)
    assert RUN.invoke(app, ["deidentify", str(source), "--out", str(tmp_path / "out")]).exit_code == 0
    files = {p.name.partition(".")[2]: p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")}
    for ending in ("png", "jpg", "tif", "nii", "nii.gz"):
        old = next(p for p in source.iterdir() if p.name.endswith(f".{ending}"))
        content = files[ending].read_bytes()
        if ending == "nii.gz":
            import gzip

            content = gzip.decompress(content)
        assert b"Zwingli" not in content, ending
        if ending.startswith("nii"):
            a, b = nibabel.load(old), nibabel.load(files[ending])
            assert np.array_equal(a.get_fdata(), b.get_fdata())
            assert np.array_equal(a.affine, b.affine)
        else:
            assert np.array_equal(np.asarray(Image.open(old)), np.asarray(Image.open(files[ending])))
