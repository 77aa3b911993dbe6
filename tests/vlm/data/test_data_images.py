"""Pictures: depths, colours and what is refused, by its message."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from vlm.data.images import check_image, load_image, read_image
from vlm.types import InputError, Modality, StudyImage

RAMP = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)


@pytest.mark.parametrize("suffix, tolerance", [(".png", 0), (".tif", 0), (".jpg", 0.02)])
def test_eight_bit_pictures(tmp_path: Path, suffix: str, tolerance: float) -> None:
    path = tmp_path / f"ramp{suffix}"
    cv2.imwrite(str(path), RAMP)
    pixels = read_image(path).pixels
    assert pixels is not None
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, RAMP / 255, atol=tolerance + 1e-6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_by_the_depth_in_use(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep{suffix}"
    values = np.linspace(0, 4000, 64 * 48).reshape(48, 64).astype(np.uint16)
    cv2.imwrite(str(path), values)
    np.testing.assert_allclose(read_image(path).pixels, values / 4095, atol=1e-5)


def test_colour_becomes_grey_and_content_decides_over_the_name(tmp_path: Path) -> None:
    path = tmp_path / "named.jpg"
    ok, data = cv2.imencode(".png", np.dstack([RAMP] * 3))
    assert ok
    path.write_bytes(data.tobytes())
    np.testing.assert_allclose(read_image(path).pixels, RAMP / 255, atol=1 / 255)


def test_what_the_study_says_wins_over_the_file(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), RAMP)
    image = load_image(StudyImage(tmp_path / "a.png", modality=Modality.MR))
    assert image.modality is Modality.MR
    assert image.pixels is not None


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello, this is text")
    with pytest.raises(InputError, match=r"a\.png: is not an image"):
        read_image(tmp_path / "a.png")


def test_empty_and_absent(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="the file is empty"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"b\.png: no such image file"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)
    path = tmp_path / f"cut{suffix}"
    cv2.imwrite(str(path), noise)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match="truncated"):
        read_image(path)


def test_one_pixel(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((1, 1), np.uint8))
    with pytest.raises(InputError, match="1x1 pixels; at least 8x8"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(InputError, match="more than 100 megapixels"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_uniform_image_is_read_and_flagged(tmp_path: Path, value: float) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((32, 32), int(value * 255), np.uint8))
    pixels = read_image(tmp_path / "a.png").pixels
    assert pixels is not None
    with pytest.raises(InputError, match=r"a\.png: image is uniform"):
        check_image(pixels, "a.png")


def test_check_image_refuses_nan_and_passes_a_picture() -> None:
    check_image(RAMP / np.float32(255), "ramp")
    with pytest.raises(InputError, match="not finite"):
        check_image(np.full((16, 16), np.nan, np.float32), "x")
