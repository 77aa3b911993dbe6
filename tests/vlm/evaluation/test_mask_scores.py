"""Dice of masks in report files: PNG, NIfTI and run lengths, by class and by size, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vlm.evaluation.command import Arguments, run
from vlm.evaluation.masks import decode_rle, dice, mask_table, masks_of
from vlm.types import InputError


def square(low: int, high: int, side: int = 64) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[low:high, low:high] = True
    return mask


def write_png(path: Path, mask: np.ndarray) -> str:
    from PIL import Image

    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path.name


def rle(mask: np.ndarray) -> dict[str, Any]:
    flat = np.r_[False, mask.T.ravel(), ~mask.T.ravel()[-1]]
    runs = np.diff(np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]]))
    runs[0] -= 1
    return {"size": list(mask.shape), "counts": runs.tolist()}


def test_dice_by_hand_and_its_error() -> None:
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    first[:2], second[1:3] = True, True
    assert dice(first, second) == pytest.approx(0.5)
    assert np.isnan(dice(first & False, second & False))
    with pytest.raises(ValueError, match="shapes"):
        dice(first, second[:2])


def test_run_lengths_equal_pycocotools() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((37, 53)) < 0.3
    mask[:, 20:40] = True
    packed = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    letters = {"size": packed["size"], "counts": packed["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(letters), mask)
    np.testing.assert_array_equal(decode_rle(rle(mask)), mask)


def test_masks_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    mask = square(8, 24)
    nibabel.save(nibabel.Nifti1Image(np.where(mask, 2, 1).astype(np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    record = {
        "id": "s",
        "masks": [
            {"label": "png", "file": write_png(tmp_path / "a.png", mask)},
            {"label": "nifti", "file": "a.nii.gz", "value": 2},
            {"label": "rle", "rle": rle(mask), "image": 1},
            {"label": "joined", "rle": rle(square(0, 4))},
            {"label": "joined", "rle": rle(square(4, 8))},
        ],
    }
    found = masks_of(record, tmp_path)
    for key in (("png", 0), ("nifti", 0), ("rle", 1)):
        np.testing.assert_array_equal(found[key], mask)
    assert found["joined", 0].sum() == 32


def test_dice_by_class_and_size_counts_missed_and_made_up_lesions(tmp_path: Path) -> None:
    def masks(**parts: np.ndarray) -> dict[str, Any]:
        return {"masks": [{"label": label, "rle": rle(mask)} for label, mask in parts.items()]}

    truths = [masks(cyst=square(0, 20)), masks(cyst=square(0, 40)), masks(), masks(stone=square(0, 2))]
    said = [masks(cyst=square(0, 20)), masks(), masks(cyst=square(0, 9)), masks(stone=square(0, 2) & False)]
    table = mask_table(said, truths, (tmp_path, tmp_path), resamples=50)
    assert table.score.value == pytest.approx(1 / 4)  # found, missed, made up, missed
    assert {label: (value, n) for label, (value, _, n) in table.by_class.items()} == {
        "cyst": (pytest.approx(1 / 3), 3),
        "stone": (0.0, 1),
    }
    assert {size: (value, n) for size, (value, _, n) in table.by_size.items()} == {"small": (0.5, 2), "medium": (0, 1)}
    assert table.interval.low < table.score.value < table.interval.high


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": "x", "file": "../secret.png"}, "lies outside the folder"),
        ({"label": "x", "file": "none.png"}, "is not a file"),
        ({"label": "x", "file": "broken.png"}, "not a readable picture"),
        ({"label": "x", "file": "broken.nii"}, "not a readable NIfTI file"),
        ({"label": "x", "file": "a.txt"}, "use one of .png"),
        ({"label": "x"}, "needs a label and either file or rle"),
        ({"label": "x", "rle": {"size": [2, 2], "counts": [1, 2]}}, "sum to 3, not to 2 x 2"),
        ({"label": "x", "rle": {"size": [2, 2], "counts": "o"}}, "needs size"),
        ({"label": "x", "rle": {"size": [100000, 100000], "counts": [1]}}, "at most 100,000,000 pixels"),
    ],
)
def test_wrong_masks_name_the_study_and_what_is_wrong(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    (tmp_path.parent / "secret.png").write_bytes(b"x")
    for name in ("broken.png", "broken.nii", "a.txt"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"study s7: .*{message}"):
        masks_of({"id": "s7", "masks": [entry]}, tmp_path)


def test_dice_reaches_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = tmp_path / "truth", tmp_path / "system"
    for folder, grow in zip(folders, (0, 4), strict=True):
        folder.mkdir()
        rows = [
            {"id": i, "text": "A cyst.", "masks": [{"label": "cyst", "file": write_png(folder / f"{i}.png", mask)}]}
            for i, mask in ((1, square(0, 20)), (2, square(0, 20 + grow)))
        ]
        (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "o.json"
    run(Arguments([folders[1] / "r.jsonl"], folders[0] / "r.jsonl", resamples=50, json_file=out), Console(width=100))
    found = json.loads(out.read_text())
    assert found["dice"] == pytest.approx((1 + 2 * 400 / (400 + 576)) / 2)
    assert found["dice[small]"] == found["dice[cyst]"] == found["dice"]
    assert "Masks: r" in capsys.readouterr().out
