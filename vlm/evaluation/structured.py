"""Boxes and finding probabilities in the records of report files: our `reports.jsonl` and study JSONL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm.types import Box, InputError


def boxes_of(records: Sequence[Mapping[str, Any]]) -> list[list[Box]] | None:
    """Returns the boxes of each record, None when no record has a `boxes` list.

    A record without the key among records with it is a study on which nobody drew boxes, which can't be scored: that is
    an error.

    Raises:
        InputError: a box that is not one.
    """
    if not any(isinstance(record.get("boxes"), list) for record in records):
        return None
    result = []
    for record in records:
        entries = record.get("boxes")
        if not isinstance(entries, list):
            raise InputError(
                f"study {record.get('id')}: no list of boxes, while others have one; write [] where there is none"
            )
        result.append([_box(entry, record.get("id")) for entry in entries])
    return result


def _box(entry: Any, study: Any) -> Box:
    try:
        x1, y1, x2, y2 = (float(value) for value in entry["xyxy"])
        confidence = entry.get("confidence")
        box = Box(
            (x1, y1, x2, y2),
            str(entry["label"]),
            int(entry.get("image", 0)),
            None if confidence is None else float(confidence),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"study {study}: a box needs xyxy (four numbers) and a label; got {str(entry)[:120]}"
        ) from error
    numbers = (*box.xyxy, box.confidence or 0.0)
    if not all(math.isfinite(value) for value in numbers) or x2 <= x1 or y2 <= y1:
        raise InputError(
            f"study {study}: box {list(box.xyxy)} is not a rectangle with x1 < x2 and y1 < y2 in finite numbers"
        )
    return box


def image_count(record: Mapping[str, Any]) -> int:
    """Returns how many images a record lists, at least one."""
    images = record.get("images") or record.get("image_path")
    return max(1, len(images)) if isinstance(images, list) else 1


def probabilities_of(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns label -> (N,) finding probability, for the labels that every record gives.

    Raises:
        InputError: a probability that is no number in [0, 1].
    """
    rows: list[dict[str, float]] = []
    for record in records:
        findings = record.get("findings")
        row: dict[str, float] = {}
        for entry in findings if isinstance(findings, list) else []:
            if not isinstance(entry, Mapping) or entry.get("probability") is None:
                continue
            value = entry["probability"]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(
                    f"study {record.get('id')}: probability {value!r} of {entry.get('label')} is not in [0, 1]"
                )
            row[str(entry.get("label"))] = float(value)
        rows.append(row)
    shared = set(rows[0]).intersection(*rows[1:]) if rows else set()
    return {label: np.array([row[label] for row in rows]) for label in rows[0] if label in shared} if rows else {}


def findings_of(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray] | None:
    """Returns label -> (N,) bool from labelled reference records (`findings` with certainty), None when there are none.

    Only labels that every record states are kept: a label that is not listed is unknown, not negative.
    """
    rows = []
    for record in records:
        findings = record.get("findings")
        if not isinstance(findings, list):
            return None
        rows.append({str(f["label"]): f.get("certainty") for f in findings if isinstance(f, Mapping) and "label" in f})
    if not rows:
        return None
    shared = set(rows[0]).intersection(*rows[1:])
    return {
        label: np.array([row[label] in ("present", "uncertain") for row in rows])
        for label in rows[0]
        if label in shared
    }


def map_labels(
    probabilities: Mapping[str, np.ndarray], concepts: Mapping[str, frozenset[str]]
) -> dict[str, np.ndarray]:
    """Returns scores of another view's labels: the highest probability of a model label whose concept the label covers.

    Args:
        probabilities: model label (a concept id) -> (N,).
        concepts: label of the view -> the concepts that it covers, descendants included.
    """
    result = {}
    for label, covered in concepts.items():
        inside = [values for name, values in probabilities.items() if name in covered]
        if inside:
            result[label] = np.max(inside, axis=0)
    return result


def truth_by_label(coded: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns label -> (N,) bool from the (N, L) array of coded labels."""
    return {label: coded[:, i] for i, label in enumerate(labels)}
