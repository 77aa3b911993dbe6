"""Index and manifest of a prepared set: counted, hashed and written, a block of rows at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm import __version__
from vlm.data.files import write_atomic
from vlm.data.prepared import FORMAT, INDEX, INDEX_SCHEMA, MANIFEST, VERSION
from vlm.types import SECTIONS


class Tally:
    """Counts by split while an index is written, and the hash of each split's sorted ids."""

    def __init__(self) -> None:
        self.studies = self.images = 0
        self.images_of: Counter[str] = Counter()
        self.ids: dict[str, list[str]] = {}
        self.patients: dict[str, set[str]] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Counts one row of the index."""
        split = row["split"] or ""
        self.studies += 1
        self.images += row["images"]
        self.images_of[split] += row["images"]
        self.ids.setdefault(split, []).append(row["id"])
        self.patients.setdefault(split, set()).add(row["patient"] or row["id"])

    def splits(self) -> dict[str, dict[str, Any]]:
        """By name, "" for studies without one."""
        return {
            name: {
                "studies": len(ids),
                "images": self.images_of[name],
                "patients": len(self.patients[name]),
                "idssha256_of": hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest(),
            }
            for name, ids in self.ids.items()
        }


def index_row(record: dict[str, Any], text: str) -> dict[str, Any]:
    """A row of the index: what a plan of training asks of a study before it is read."""
    images = record.get("images") or []
    report = record.get("report") or {}
    return {
        "id": str(record["id"]),
        "patient": None if record.get("patient") in (None, "") else str(record["patient"]),
        "split": record.get("split") or None,
        "source": record.get("source") or None,
        "modality": next((i["modality"] for i in images if i.get("modality")), None),
        "record": text,
        "images": len(images),
        **{f"{name}_chars": len(report.get(name, "").strip()) for name in SECTIONS},
    }


def write_index(out: Path, blocks: Iterable[list[dict[str, Any]]], tally: Tally) -> None:
    """Writes a set's index, whole or not at all, a row group a block; `tally` counts the rows."""
    temporary = out / f".{INDEX}.{os.getpid()}.tmp"
    try:
        dictionary = ["split", "source", "modality"]
        with pq.ParquetWriter(temporary, INDEX_SCHEMA, compression="zstd", use_dictionary=dictionary) as writer:
            for rows in blocks:
                for row in rows:
                    tally.add(row)
                writer.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), row_group_size=len(rows))
        os.replace(temporary, out / INDEX)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_manifest(out: Path, tally: Tally, facts: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    """Writes what a set holds; from here on it is finished. No time and no place: equal sets are equal files."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "radscribe": __version__,
        "studies": tally.studies,
        "images": tally.images,
        **facts,
        "splits": tally.splits(),
        "index": {"file": INDEX, "sha256": sha256_of(out / INDEX)},
        "shards": shards,
    }
    write_atomic(out / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
