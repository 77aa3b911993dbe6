"""Reads reports from the files that people have, and joins predictions to references by id.

JSONL (one object a line), our own `reports.jsonl` and study JSONL, CSV, Parquet, R2Gen's `annotation.json` (with a
split), a JSON list of objects or a JSON object of id -> text, and Open-i's `indiana_reports.csv`. Columns are found by
name or given.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.types import InputError

ID_COLUMNS = ("id", "study_id", "uid", "image_id", "report_id", "dicom_id", "key")
TEXT_COLUMNS = (
    "text",
    "report",
    "prediction",
    "pred",
    "generated",
    "generated_report",
    "hypothesis",
    "candidate",
    "output",
    "caption",
    "reference",
    "ground_truth",
    "gt",
    "findings",
    "impression",
    "sections",
)
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_UID = re.compile(r"^CXR(\d+)(?:_.*)?$")


@dataclass(slots=True)
class Reports:
    """The reports of one file.

    Args:
        path: where they come from.
        texts: id -> report, in the file's order.
        records: id -> the whole record, for boxes and finding probabilities.
        notes: what a reader of the scores should know.
    """

    path: Path
    texts: dict[str, str]
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_reports(
    path: Path, id_column: str | None = None, text_column: str | None = None, split: str | None = None
) -> Reports:
    """Reads reports.

    Args:
        path: a file with one of `SUFFIXES`.
        id_column, text_column: names of the columns or keys; None: found by name.
        split: part to read of a file that has several (R2Gen's annotation.json, or a `split` column).

    Raises:
        InputError: the file is absent, empty, broken (the line is named), lacks a column, or holds an id twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a file of reports ({', '.join(SUFFIXES)})")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; use one of {', '.join(SUFFIXES)}"
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; it should hold one report a line or row")
    rows = [row for row in _rows(path, split) if split is None or row[1].get("split") in (None, split)]
    if not rows:
        raise InputError(f"{path} holds no reports" + (f" of split {split!r}" if split else ""))
    return _collect(path, rows, id_column, text_column)


def _rows(path: Path, split: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (place for messages, record)."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        if suffix in (".jsonl", ".ndjson"):
            yield from _jsonl(path)
        elif suffix == ".json":
            yield from _json(path, split)
        else:
            yield from _csv(path, "\t" if suffix == ".tsv" else ",")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.strip())
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {number}: not valid JSON ({_fault(error)}); each line must be one object"
                ) from error
            if not isinstance(record, dict):
                raise InputError(
                    f"{path}, line {number}: a {type(record).__name__}, expected an object with an id and a text"
                )
            yield f"line {number}", record


def _fault(error: Exception) -> str:
    """Returns what is wrong with a line, which has no lines of its own."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _json(path: Path, split: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if isinstance(content, dict) and content and all(isinstance(value, str) for value in content.values()):
        content = [{"id": key, "text": value} for key, value in content.items()]
    elif isinstance(content, dict):
        parts = {key: value for key, value in content.items() if isinstance(value, list)}
        if not parts:
            raise InputError(f"{path}: expected a list of reports, id -> text, or R2Gen's train, val and test lists")
        if split is None and len(parts) > 1:
            raise InputError(f"{path} holds the parts {', '.join(sorted(parts))}; choose one with --split")
        if split is not None and split not in parts:
            raise InputError(f"{path} has no part {split!r}; it has {', '.join(sorted(parts))}")
        content = parts[split] if split is not None else next(iter(parts.values()))
    for number, record in enumerate(content if isinstance(content, list) else [], 1):
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, entry {number}: a {type(record).__name__}, expected an object with an id and a text"
            )
        yield f"entry {number}", record


def _csv(path: Path, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    before = csv.field_size_limit(50_000_000)  # a report of 100,000 words passes the default of 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter=delimiter)
            for row in reader:
                if None in row:
                    raise InputError(
                        f"{path}, line {reader.line_num}: more fields than the header has; quote texts that hold commas"
                    )
                yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise InputError(f"{path}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for number, record in enumerate(table.to_pylist(), 1):
        yield f"row {number}", record


def _collect(
    path: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], id_column: str | None, text_column: str | None
) -> Reports:
    found: Reports = Reports(path, {})
    twice: list[str] = []
    for place, record in rows:
        key = _column(path, place, record, id_column, ID_COLUMNS, "--id")
        text_key = _column(path, place, record, text_column, TEXT_COLUMNS, "--text")
        value = record[key]
        if value is None or str(value).strip() == "":
            raise InputError(f"{path}, {place}: column {key!r} is empty; every report needs an id")
        identity = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if identity in found.texts:
            twice.append(identity)
        found.texts[identity] = _text(path, place, text_key, record[text_key])
        found.records[identity] = record
    if twice:
        raise InputError(
            f"{path}: {len(twice)} ids are there more than once: {first_ten(twice)}; each study needs one report"
        )
    return found


def _column(
    path: Path, place: str, record: Mapping[str, Any], given: str | None, names: Sequence[str], option: str
) -> str:
    if given is not None:
        if given not in record:
            raise InputError(f"{path}, {place}: no column {given!r}; it has {', '.join(map(str, record))}")
        return given
    lower = {str(key).lower(): key for key in record}
    for name in names:
        if name in lower and (option == "--id" or isinstance(record[lower[name]], str | dict | None)):
            return lower[name]
    raise InputError(
        f"{path}, {place}: found no {option[2:]} column ({', '.join(names[:6])}, ...) among "
        f"{', '.join(map(str, record))}; name it with {option}"
    )


def _text(path: Path, place: str, key: str, value: Any) -> str:
    """Returns the report: a string, or the findings of a report by sections (the impression where there are none)."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return str(value.get("findings") or value.get("impression") or "").strip()
    if isinstance(value, str):
        return value.strip()
    raise InputError(f"{path}, {place}: {key!r} is a {type(value).__name__}, expected a text")


def first_ten(ids: Sequence[str]) -> str:
    """Returns the first ten ids, and how many more there are."""
    return ", ".join(ids[:10]) + (f", and {len(ids) - 10} more" if len(ids) > 10 else "")


def uid_of(identity: str) -> str:
    """Returns Open-i's uid, the number after CXR (`CXR2384_IM-0942` is `2384`), or the id as it is."""
    match = _UID.match(identity)
    return match.group(1) if match else identity


@dataclass(slots=True)
class Joined:
    """Predictions of several systems and the references of the same studies, in one order.

    Args:
        ids: N study ids, as in the references.
        references: N texts.
        systems: name -> N texts.
        records: name -> N records of the prediction files; the key "reference" holds those of the references.
        notes: what a reader of the scores should know.
        folders: as `records`: where each file lies, for the masks that it names.
    """

    ids: list[str]
    references: list[str]
    systems: dict[str, list[str]]
    records: dict[str, list[Mapping[str, Any]]]
    notes: list[str] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)


def join(predictions: Mapping[str, Reports], references: Reports, allow_missing: bool = False) -> Joined:
    """Joins systems to references by id; where no id is shared, by Open-i's uid.

    Args:
        predictions: name -> reports of a system.
        references: the reference reports.
        allow_missing: score the studies that all have instead of refusing.

    Raises:
        InputError: no shared id; ids that are missing, extra or have an empty reference (the first ten are listed).
    """
    notes: list[str] = []
    maps: dict[str, dict[str, str]] = {}  # system -> reference id -> prediction id
    for name, reports in predictions.items():
        maps[name] = _match(reports, references, notes)
        missing = [key for key in references.texts if key not in maps[name]]
        extra = sorted(set(reports.texts) - set(maps[name].values()))
        for ids, what in ((missing, "references have no prediction"), (extra, "predictions have no reference")):
            if ids and not allow_missing:
                raise InputError(
                    f"{reports.path} and {references.path}: {len(ids)} {what}: {first_ten(ids)}; "
                    "complete the file, or score what is shared with --allow-missing"
                )
            if ids:
                notes.append(f"{name}: {len(ids)} {what} and take no part: {first_ten(ids)}")
    empty = [key for key, text in references.texts.items() if not text]
    if empty and not allow_missing:
        raise InputError(
            f"{references.path}: {len(empty)} references are empty: {first_ten(empty)}; "
            "give their text, or leave them out with --allow-missing"
        )
    if empty:
        notes.append(f"{len(empty)} references are empty and take no part: {first_ten(empty)}")
    ids = [key for key, text in references.texts.items() if text and all(key in maps[name] for name in maps)]
    if not ids:
        raise InputError(f"{references.path}: no study has a reference and a prediction of every system")
    joined = Joined(ids, [references.texts[key] for key in ids], {}, {}, notes)
    joined.records["reference"] = [references.records[key] for key in ids]
    joined.folders = {name: reports.path.parent for name, reports in {**predictions, "reference": references}.items()}
    for name, reports in predictions.items():
        joined.systems[name] = [reports.texts[maps[name][key]] for key in ids]
        joined.records[name] = [reports.records[maps[name][key]] for key in ids]
        _check_predictions(reports.path, name, joined, ids)
    return joined


def _match(reports: Reports, references: Reports, notes: list[str]) -> dict[str, str]:
    same = {key: key for key in references.texts if key in reports.texts}
    if same:
        return same
    by_uid = {uid_of(key): key for key in reports.texts}
    if len(by_uid) == len(reports.texts):
        same = {key: by_uid[uid_of(key)] for key in references.texts if uid_of(key) in by_uid}
    if not same:
        raise InputError(
            f"{reports.path} and {references.path} share no id: {first_ten(list(reports.texts)[:3])} against "
            f"{first_ten(list(references.texts)[:3])}; name the id columns with --id and --reference-id"
        )
    notes.append(f"{reports.path.name}: joined to the references by Open-i's uid (the number after CXR)")
    return same


def _check_predictions(path: Path, name: str, joined: Joined, ids: Sequence[str]) -> None:
    empty = [key for key, text in zip(ids, joined.systems[name], strict=True) if not text]
    if len(empty) == len(ids):
        raise InputError(f"{path}: every report is empty; name the column that holds them with --text")
    if empty:
        joined.notes.append(f"{name}: {len(empty)} reports are empty and score 0: {first_ten(empty)}")
    long = [key for key, text in zip(ids, joined.systems[name], strict=True) if text.count(" ") >= 5000]
    if long:
        joined.notes.append(f"{name}: {len(long)} reports are longer than 5,000 words: {first_ten(long)}")
