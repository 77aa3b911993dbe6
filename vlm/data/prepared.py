"""A prepared set: what `vlm data prepare` writes, opened here or anywhere that fsspec reaches.

    DIR/prepared.json    what it holds: settings, splits with hashes of their ids, shards with hashes; written last
    DIR/index.parquet    a row a study, without pixels: id, patient, split, source, modality, sizes of texts, record
    DIR/data/<split>-00000-of-00012.parquet    shards (vlm/data/shards.py); `datasets.load_dataset(DIR)` reads them
    DIR/failures.jsonl   studies that could not be prepared, and why; absent when there are none

A row group of the index is a block: the studies of one shard, in its order. With `--index-only` there are no shards,
and records name the files where they lie, below `root`.

`PreparedSet` is a sequence of studies that lives on disk. Opening it reads the index's footer; a study reads its block
of the index, and its pixels when they are asked for. A set that lies elsewhere is streamed: shards are fetched to a
temporary folder, the last few kept.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm.data.layouts.tabular import study_of
from vlm.types import SECTIONS, InputError, Study

FORMAT, VERSION = "radscribe-prepared", 1
MANIFEST, PLAN, INDEX, FAILURES = "prepared.json", "plan.json", "index.parquet", "failures.jsonl"
INDEX_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "patient", "split", "source", "modality", "record")]
    + [("images", pa.int32())]
    + [(f"{name}_chars", pa.int32()) for name in SECTIONS]
)
KEPT_BLOCKS = 64
"""Blocks of the index, and fetched shards, that are kept at a time."""
_URL = re.compile(r"([a-z][a-z0-9+.-]+)::?/+")


def is_prepared(path: Path) -> bool:
    """Whether a folder is a prepared set, finished or not."""
    return path.is_dir() and any((path / name).is_file() for name in (MANIFEST, PLAN))


def read_prepared(path: Path) -> list[Study]:
    """All studies of a prepared set, for what takes a list; pixels stay on disk.

    Raises:
        InputError: as `PreparedSet`.
    """
    return list(PreparedSet(path))


def is_url(location: Path | str) -> bool:
    """Whether a location is an address such as s3://bucket/set, also after `Path` took one of its slashes."""
    return _URL.match(str(location)) is not None


class PreparedSet(Sequence[Study]):
    """Studies of a prepared set, made when they are asked for.

    Args:
        location: folder, or an address that fsspec knows (s3://, gs://, https://, file://, memory://).
        kept: how many blocks, and fetched shards of a set elsewhere, are kept at a time.

    Raises:
        InputError: no prepared set, an unfinished one, one of another version, or a broken index.
    """

    def __init__(self, location: Path | str, kept: int = KEPT_BLOCKS) -> None:
        self.name = str(location)
        self.store = _store(location)
        self.manifest = read_manifest(self.store.read(MANIFEST), self.store.has(PLAN), self.name)
        self.kept = kept
        try:
            self.table = pq.ParquetFile(self.store.open(INDEX))
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{self.name}: {INDEX} is absent or broken ({_line(error)}); prepare the set again"
            ) from None
        footer = self.table.metadata
        self.starts = np.cumsum([0, *(footer.row_group(g).num_rows for g in range(footer.num_row_groups))])
        if int(self.starts[-1]) != self.manifest["studies"]:
            held = f"{self.starts[-1]} studies and {MANIFEST} says {self.manifest['studies']}"
            raise InputError(f"{self.name}: {INDEX} holds {held}; prepare the set again")
        root = self.manifest.get("root")
        self.root = Path(root) if root else self.store.folder
        self.shards: list[str] = [shard["file"] for shard in self.manifest["shards"]]
        self._blocks: OrderedDict[int, list[str]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self.study(int(at) % len(self))

    def __iter__(self) -> Iterator[Study]:
        return (self.study(i) for i in range(len(self)))

    def study(self, at: int, pixels: bool = True) -> Study:
        """One study.

        Args:
            at: its number. pixels: make sure that its shard is at hand.
        """
        block = int(np.searchsorted(self.starts, at, side="right")) - 1
        if pixels and self.shards:
            self.store.fetch(self.shards[block], self.kept)
        record = self._records(block)[at - int(self.starts[block])]
        try:
            return study_of(json.loads(record), self.root / INDEX, at)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.name}: study {at} of {INDEX} is broken; prepare the set again") from None

    def columns(self, *names: str) -> pa.Table:
        """Columns of the index, a row a study."""
        try:
            return self.table.read(columns=list(names), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.name}: {INDEX} is broken ({_line(error)}); prepare the set again") from None

    def bytes_a_study(self) -> float:
        """Mean bytes of images that a study takes."""
        return sum(s["bytes"] for s in self.manifest["shards"]) / max(1, len(self))

    def _records(self, block: int) -> list[str]:
        found = self._blocks.pop(block, None)
        if found is None:
            try:
                found = self.table.read_row_group(block, columns=["record"], use_threads=False)["record"].to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{self.name}: {INDEX} is broken ({_line(error)}); prepare the set again") from None
        self._blocks[block] = found
        while len(self._blocks) > self.kept:
            self._blocks.popitem(last=False)
        return found


def read_manifest(text: bytes | None, planned: bool, name: str) -> dict[str, Any]:
    """The manifest, checked.

    Args:
        text: of the file; None when it is absent. planned: whether a preparation was begun. name: for messages.

    Raises:
        InputError: absent, unfinished, broken, or of another version.
    """
    if text is None:
        if planned:
            raise InputError(f"{name}: its preparation was not finished; run the same vlm data prepare again")
        raise InputError(f"{name}: is no prepared set (it has no {MANIFEST}); vlm data prepare SRC --out DIR makes one")
    try:
        manifest = json.loads(text)
        kind, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{name}: {MANIFEST} is broken; prepare the set again") from None
    if kind != FORMAT or version != VERSION:
        raise InputError(
            f"{name}: {MANIFEST} is of format {kind} {version}, this program reads {FORMAT} {VERSION}; "
            "prepare the set again, or use the program that wrote it"
        )
    files = [s.get("file") if isinstance(s, dict) else None for s in manifest.get("shards") or ()]
    whole = isinstance(manifest.get("studies"), int) and isinstance(manifest.get("shards"), list)
    # Names go into paths: a manifest from elsewhere must not lead out of its folder.
    if not whole or not all(isinstance(f, str) and re.fullmatch(r"data/[\w.-]+\.parquet", f) for f in files):
        raise InputError(f"{name}: {MANIFEST} is broken; prepare the set again")
    return manifest


class _Here:
    """A set in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise InputError(f"{folder}: no such file or folder")
        if not folder.is_dir():
            raise InputError(f"{folder}: is a file; a prepared set is a folder")
        self.folder = folder

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes | None:
        return (self.folder / name).read_bytes() if self.has(name) else None

    def open(self, name: str) -> Any:
        return self.folder / name

    def fetch(self, name: str, kept: int) -> None:
        """Nothing to do: it is here."""


class _Elsewhere:
    """A set that fsspec reaches; shards are fetched to a temporary folder, the last `kept` stay there."""

    def __init__(self, location: str) -> None:
        import fsspec

        try:
            self.files, self.path = fsspec.core.url_to_fs(location)
        except (ImportError, ValueError, OSError) as error:
            raise InputError(f"{location}: cannot be reached ({_line(error)})") from None
        self.location = location
        self.folder = Path(tempfile.mkdtemp(prefix="radscribe-"))
        weakref.finalize(self, shutil.rmtree, str(self.folder), True)
        self._here: OrderedDict[str, None] = OrderedDict()

    def has(self, name: str) -> bool:
        return bool(self._asked(self.files.exists, name))

    def read(self, name: str) -> bytes | None:
        return self._asked(self.files.cat_file, name) if self.has(name) else None

    def open(self, name: str) -> Any:
        return self._asked(self.files.open, name)

    def fetch(self, name: str, kept: int) -> None:
        """Makes sure that a shard is here, and lets the oldest go."""
        target = self.folder / name
        if name not in self._here:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            self._asked(lambda path: self.files.get_file(path, str(part)), name)
            part.replace(target)
        self._here[name] = self._here.pop(name, None)
        while len(self._here) > max(1, kept):
            (self.folder / self._here.popitem(last=False)[0]).unlink(missing_ok=True)

    def _asked(self, ask: Any, name: str) -> Any:
        try:
            return ask(f"{self.path.rstrip('/')}/{name}")
        except Exception as error:  # each of fsspec's backends raises errors of its own
            raise InputError(f"{self.location}: {name} cannot be read ({_line(error)})") from None


def _store(location: Path | str) -> _Here | _Elsewhere:
    match = _URL.match(str(location))
    if match is None:
        return _Here(Path(location))
    rest = str(location)[match.end() :]
    lead = "/" if match[1] in ("file", "local") else ""
    return _Elsewhere(f"{match[1]}://{lead}{rest}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
