"""A list of one's own, cut into train, val and test: by patient, drawn from a seed, and written down in the list.

A split that stands in the data is the same for training, generation and evaluation, today and next year; one drawn
inside a training run is not. Rows that name a split already keep it, and a patient of theirs stays with them, so that a
list may grow.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlm.data.files import read_json_lines, read_table, write_atomic
from vlm.data.layouts.tabular import list_in, read_list
from vlm.types import InputError


def split_list(path: Path, out: Path, shares: Mapping[str, float], seed: int = 0) -> Counter[str]:
    """Writes a CSV or JSONL list again with the split of every study.

    Args:
        path: list, or a folder that holds one; all that it says is kept. out: in the list's own folder, for image paths
            are relative to it; of the list's own kind. shares: split -> share of the patients in (0, 1), beside
            "train", which gets the rest. seed: of the draw.

    Returns:
        How many studies each split has.

    Raises:
        InputError: a list that cannot be read, shares that leave nothing for training, too few patients, a patient in
            two splits already, or an `out` elsewhere.
    """
    path = list_in(path)
    if any(not 0 < share < 1 for share in shares.values()) or not 0 < sum(shares.values()) < 1:
        given = ", ".join(f"{name} {share:g}" for name, share in shares.items()) or "none"
        raise InputError(f"shares ({given}): each must lie between 0 and 1, and they must leave some for training")
    if out.resolve().parent != path.resolve().parent or out.suffix.lower() != path.suffix.lower():
        raise InputError(
            f"{out}: the new list must lie beside {path}, to whose folder image paths are relative, and end in "
            f"{path.suffix}"
        )
    studies = read_list(path)  # says what is wrong with a line
    groups = {study.id: study.patient or study.id for study in studies}
    stated: dict[str, str] = {}
    for study in studies:
        before = stated.setdefault(groups[study.id], study.split) if study.split else None
        if before != study.split:
            raise InputError(f"{path}: a patient of study {study.id!r} is in {before!r} and in {study.split!r}")
    chosen = draw_splits(sorted(set(groups.values())), stated, shares, seed)
    for name in shares:
        if name not in chosen.values():
            raise InputError(
                f"{path}: has {len(set(groups.values()))} patients, too few for {name} with a share of {shares[name]:g}"
            )
    splits = {study: chosen[group] for study, group in groups.items()}
    write_atomic(out, _table(path, splits) if path.suffix.lower() == ".csv" else _lines(path, splits))
    return Counter(splits.values())


def draw_splits(
    groups: Sequence[str], stated: Mapping[str, str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """A split for every group (patient): those stated, then by the order of seeded hashes until each share is full.

    Args:
        groups: names, each once. stated: splits that are fixed. shares: as in `split_list`. seed: of the hashes.
    """
    chosen = dict(stated)
    free = sorted((g for g in groups if g not in stated), key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    there = Counter(stated.values())
    for name, share in shares.items():
        missing = max(0, round(share * len(groups)) - there[name])
        chosen |= dict.fromkeys(free[:missing], name)
        free = free[missing:]
    return chosen | dict.fromkeys(free, "train")


def _table(path: Path, splits: Mapping[str, str]) -> str:
    rows = read_table(path)
    header = [*rows[0], *([] if "split" in rows[0] else ["split"])]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "split": splits[row["id"].strip()]} for row in rows)
    return text.getvalue()


def _lines(path: Path, splits: Mapping[str, str]) -> str:
    records = (record | {"split": splits[str(record["id"])]} for _, record in read_json_lines(path))
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
