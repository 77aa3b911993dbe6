"""Lesion masks in report files, and Dice where both sides give them: by class and by lesion size.

A record's `masks` is a list of objects, each a `label`, optionally `image` (index, 0) and one of
    "file"  PNG (or TIFF, BMP) or NIfTI, relative to the folder of the report file; not zero is inside, or, with
            "value", what equals it (one file may then hold several labels)
    "rle"   COCO's run lengths, {"size": [height, width], "counts": [...] or "..."}: columns from top to bottom,
            beginning with what is outside
An empty list says that somebody looked and saw nothing. Masks of one label on one image are joined. A case is a (study,
image, label) that one side at least marks, so a lesion that is missed or made up counts 0 (Dice, 1945).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm.evaluation.detection import SIZES
from vlm.evaluation.resampling import Interval, Score, intervals, mean_of_sums
from vlm.types import InputError

MOST_PIXELS = 100_000_000
PICTURES = (".png", ".tif", ".tiff", ".bmp")
VOLUMES = (".nii", ".nii.gz")
Masks = dict[tuple[str, int], np.ndarray]  # (label, image) -> inside


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Dice coefficient of two masks of one shape, NaN when both are empty."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"masks of shapes {first.shape} and {second.shape} can't be compared")
    total = int(first.sum() + second.sum())
    return 2.0 * int((first & second).sum()) / total if total else float("nan")


@dataclass(frozen=True, slots=True)
class MaskTable:
    """Dice of a system.

    Args:
        score: mean over the cases; its per-study values are the studies' means.
        interval: of the mean, studies resampled.
        by_class, by_size: name -> (mean, interval, cases). The size is that of the reference's mask in pixels (voxels);
            lesions that are made up have none and are in `by_class` alone.
    """

    score: Score
    interval: Interval
    by_class: dict[str, tuple[float, Interval, int]]
    by_size: dict[str, tuple[float, Interval, int]]


def has_masks(records: Sequence[Mapping[str, Any]]) -> bool:
    """Tells whether a record has a list of masks."""
    return any(isinstance(record.get("masks"), list) for record in records)


def mask_table(
    predictions: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    folders: tuple[Path, Path],
    resamples: int = 1000,
    seed: int = 0,
) -> MaskTable:
    """Scores the masks of N studies; those of one study at a time are held.

    Args:
        predictions, truths: N records.
        folders: where the files of the predictions and of the truths lie.
        resamples, seed: of the intervals.

    Raises:
        InputError: a record without `masks`, a mask that can't be read, or two of different sizes.
    """
    cases: list[tuple[int, str, int, float]] = []  # study, label, pixels of the truth, Dice
    for number, (mine, theirs) in enumerate(zip(predictions, truths, strict=True)):
        said, true = masks_of(mine, folders[0]), masks_of(theirs, folders[1])
        for label, image in sorted({*said, *true}):
            one, other = said.get((label, image)), true.get((label, image))
            if one is not None and other is not None and one.shape != other.shape:
                raise InputError(
                    f"study {theirs.get('id')}: the masks of {label!r} have the sizes {_size(one)} and {_size(other)}; "
                    "write both on the image's own grid"
                )
            area = 0 if other is None else int(other.sum())
            value = 0.0 if one is None or other is None else dice(one, other)
            if area or (one is not None and one.any()):
                cases.append((number, label, area, value))
    labels = sorted({label for _, label, _, _ in cases})

    def row(chosen: Sequence[tuple[int, str, int, float]]) -> tuple[Score, Interval, int]:
        score = _score(chosen, len(truths))
        return score, intervals([score], resamples, seed)[score.name], len(chosen)

    whole, interval, _ = row(cases)
    classes = {label: row([case for case in cases if case[1] == label]) for label in labels}
    sizes = {name: row([c for c in cases if c[2] and low <= c[2] < high]) for name, (low, high) in SIZES.items()}
    return MaskTable(
        whole,
        interval,
        {label: (score.value, found, n) for label, (score, found, n) in classes.items()},
        {name: (score.value, found, n) for name, (score, found, n) in sizes.items() if n},
    )


def _score(cases: Sequence[tuple[int, str, int, float]], studies: int) -> Score:
    sums = np.zeros((studies, 2))
    for study, _, _, value in cases:
        sums[study] += (value, 1.0)
    value = float(mean_of_sums(sums.sum(axis=0)))
    return Score("dice", value, mean_of_sums(sums), sums, mean_of_sums, "dice|level:mean of study, image and label")


def _size(mask: np.ndarray) -> str:
    return "x".join(map(str, mask.shape))


def masks_of(record: Mapping[str, Any], folder: Path) -> Masks:
    """Reads the masks of a record, those of one label on one image joined.

    Args:
        record: of a report file.
        folder: of the report file.

    Raises:
        InputError: no list of masks, or a mask that can't be read.
    """
    entries, study = record.get("masks"), record.get("id")
    if not isinstance(entries, list):
        raise InputError(f"study {study}: no list of masks, while others have one; write [] where there is none")
    found: Masks = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or "label" not in entry or ("file" in entry) == ("rle" in entry):
            raise InputError(f"study {study}: a mask needs a label and either file or rle; got {str(entry)[:120]}")
        image = entry.get("image", 0)
        if isinstance(image, bool) or not isinstance(image, int) or image < 0:
            raise InputError(f"study {study}: image {image!r} of a mask is no index")
        try:
            mask = decode_rle(entry["rle"]) if "rle" in entry else _file(folder, entry["file"], entry.get("value"))
        except InputError as error:
            raise InputError(f"study {study}: {error}") from error
        key = (str(entry["label"]), image)
        if key in found and found[key].shape != mask.shape:
            raise InputError(f"study {study}: two masks of {key[0]!r} on one image have different sizes")
        found[key] = found[key] | mask if key in found else mask
    return found


def decode_rle(rle: Any) -> np.ndarray:
    """Returns the (H, W) mask of COCO run lengths, given as numbers or in COCO's compressed form.

    Raises:
        InputError: not run lengths, or they do not fill the mask.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = _uncompress(counts) if isinstance(counts, str) else [int(count) for count in counts]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"rle needs size [height, width] and counts; got {str(rle)[:80]}") from error
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise InputError(f"rle of size {height}x{width}; at most {MOST_PIXELS:,} pixels")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise InputError(f"the counts of rle sum to {sum(runs)}, not to {height} x {width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def _uncompress(text: str) -> list[int]:
    """Decodes letters of five bits and a mark to go on; from the fourth run on, steps from two runs before."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, bits, more = 0, 0, True
        while more:
            letter = ord(text[place]) - 48
            value |= (letter & 31) << bits
            more, place, bits = bool(letter & 32), place + 1, bits + 5
            if not more and letter & 16:
                value -= 1 << bits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def _file(folder: Path, name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str) or not name:
        raise InputError(f"file {name!r} of a mask is no path")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"mask {name} lies outside the folder of the report file")
    if not path.is_file():
        raise InputError(f"mask {path} is not a file")
    suffix = next((s for s in (*PICTURES, *VOLUMES) if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise InputError(f"mask {path}: use one of {', '.join((*PICTURES, *VOLUMES))}")
    pixels = _volume(path) if suffix in VOLUMES else _picture(path)
    return pixels != 0 if value is None else pixels == value


def _picture(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            _bounded(path, picture.size)
            pixels = np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"mask {path}: not a readable picture ({str(error).splitlines()[0][:100]})") from error
    return pixels if pixels.ndim == 2 else pixels[..., :3].max(axis=2)


def _volume(path: Path) -> np.ndarray:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
        shape = image.shape  # type: ignore[attr-defined]
        _bounded(path, shape)
        return np.squeeze(np.asarray(image.dataobj))  # type: ignore[attr-defined]
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise InputError(f"mask {path}: not a readable NIfTI file ({str(error).splitlines()[0][:100]})") from error


def _bounded(path: Path, shape: Sequence[int]) -> None:
    if np.prod([int(side) for side in shape], dtype=np.int64) > MOST_PIXELS:
        raise InputError(f"mask {path}: {'x'.join(map(str, shape))} is more than {MOST_PIXELS:,} pixels")
