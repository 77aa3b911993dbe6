"""Shards of a prepared set: Parquet files whose rows are studies, with their images as grey PNG.

    id, patient, split, source   texts
    record                       the study as an object of the list schema (vlm/data/layouts/tabular.py)
    images                       PNG bytes, in the study's order; `datasets` shows and decodes them
    hu                           a truth value an image: whether its grey stands for Hounsfield units

An image of a record is named by its shard and by its number in it: `{"file": "data/train-00000-of-00002.parquet",
"frame": 17}`, so that a prepared study is read like any other. Grey of 8 or 16 bit is the window's 0 to 1; where `hu`
is true, 0 to 65535 is -1024 to 3071 HU and the window is applied when the image is read.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm.data.layouts.tabular import as_record
from vlm.data.windows import MODEL_CT_WINDOW, apply_window, window_of
from vlm.types import InputError, Study, StudyImage

MARK = b"radscribe"
HU_WINDOW = (1023.5, 4095.0)
"""Centre and width that hold every 12-bit CT value: -1024 to 3071 HU."""
GROUP = 32  # studies a row group: what is decompressed at once for one image
CACHE_BYTES = 512 << 20
WHOLE = 65535
"""White in 16 bit."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A study with its images as bytes; boxes and spacing are those of the scaled images."""

    study: Study
    images: tuple[bytes, ...]
    hu: tuple[bool, ...]


def decode(data: bytes, in_hu: bool, window: tuple[float, float] | str | None, name: str) -> np.ndarray:
    """PNG -> (H, W) float32 in [0, 1].

    Raises:
        InputError: broken bytes, or a window asked of an image that has lost its Hounsfield units.
    """
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if grey is None or grey.ndim != 2:
        raise InputError(f"{name}: an image in it is broken; prepare the set again")
    # As `images.to_unit` scales: prepared or not, the same picture has the same bits.
    pixels = grey * np.float32(1 / (255 if grey.dtype == np.uint8 else WHOLE))
    if not in_hu:
        return pixels
    low = HU_WINDOW[0] - HU_WINDOW[1] / 2
    return apply_window(
        pixels * np.float32(HU_WINDOW[1]) + np.float32(low), *window_of(MODEL_CT_WINDOW if window is None else window)
    )


def schema() -> pa.Schema:
    """Of a shard; holds what `datasets` needs to decode the images. Made once: that library takes seconds to load."""
    from datasets import Features, Image, List, Value

    texts = {name: Value("string") for name in ("id", "patient", "split", "source", "record")}
    return Features({**texts, "images": List(Image()), "hu": List(Value("bool"))}).arrow_schema


def write_shard(
    path: Path, root: Path, form: pa.Schema, packed: Iterable[Packed], mark: Callable[[], dict[str, Any]]
) -> None:
    """Writes a shard, whole or not at all.

    Args:
        path: of the shard, below `root`. form: `schema()`. packed: studies, taken one at a time.
        mark: what is kept in its footer, asked once all studies were taken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _writer(temporary, form) as writer:
            rows: list[dict[str, Any]] = []
            number = 0
            for item in packed:
                images = [replace(i, path=path, frame=number + k) for k, i in enumerate(item.study.images)]
                number += len(images)
                rows.append(_row(replace(item.study, images=images), item, root))
                if len(rows) == GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, writer.schema))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, writer.schema))
            writer.add_key_value_metadata({MARK: json.dumps(mark(), ensure_ascii=False).encode()})
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _writer(path: Path, form: pa.Schema) -> pq.ParquetWriter:
    texts = ["id", "patient", "split", "source"]
    return pq.ParquetWriter(path, form, compression="snappy", use_dictionary=texts, write_statistics=texts)


def _row(study: Study, packed: Packed, root: Path) -> dict[str, Any]:
    return {
        "id": study.id,
        "patient": study.patient,
        "split": study.split,
        "source": study.source,
        "record": json.dumps(as_record(study, root), ensure_ascii=False),
        "images": [{"bytes": data, "path": None} for data in packed.images],
        "hu": list(packed.hu),
    }


def shard_mark(path: Path) -> dict[str, Any] | None:
    """What `write_shard` kept in the footer; None when the file is absent, cut or no shard."""
    try:
        found = (pq.read_metadata(path).metadata or {}).get(MARK)
        return None if found is None else json.loads(found)
    except (OSError, pa.ArrowException, ValueError):
        return None


def read_packed(
    path: Path,
    window: tuple[float, float] | str | None,
    frame: int | None,
    ct_window: tuple[float, float] = MODEL_CT_WINDOW,
) -> StudyImage:
    """Reads one image of a shard.

    Args:
        path: of the shard. frame: the image's number in it.
        window: for images that are kept in Hounsfield units; None for `ct_window`.

    Raises:
        InputError: no shard, cut, or no such image.
    """
    try:
        stat = path.stat()
        shard = _open(str(path), stat.st_mtime_ns, stat.st_size)
        if frame is None or not 0 <= frame < shard.starts[-1]:
            raise InputError(f"{path}: has no image {frame}; it holds {shard.starts[-1]}, counted from 0")
        group = int(np.searchsorted(shard.starts, frame, side="right")) - 1
        data, in_hu = CACHE.get(shard, group)
        at = frame - int(shard.starts[group])
        if window is None and in_hu[at]:
            window = ct_window
        pixels = decode(data[at].as_buffer(), in_hu[at], window, str(path))
        return StudyImage(path=path, pixels=pixels, frame=frame, window=window if in_hu[at] else None)
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        line = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: the shard is cut or broken ({line}); run vlm data prepare again") from None


@dataclass(frozen=True, slots=True)
class _Shard:
    """An open shard: its file, what tells it from another of the same name, and each row group's first image."""

    file: pq.ParquetFile
    key: tuple[str, int, int]
    starts: np.ndarray


@lru_cache(maxsize=64)
def _open(path: str, changed: int, size: int) -> _Shard:
    file = pq.ParquetFile(path)
    names = [file.schema.column(i).path for i in range(len(file.schema))]
    leaf = next((i for i, name in enumerate(names) if name.startswith("images.") and name.endswith(".bytes")), None)
    if leaf is None or MARK not in (file.metadata.metadata or {}):
        raise InputError(f"{path}: is a Parquet file, but no shard of a prepared set; vlm data prepare makes them")
    counts = [file.metadata.row_group(g).column(leaf).num_values for g in range(file.metadata.num_row_groups)]
    return _Shard(file, (path, changed, size), np.cumsum([0, *counts]))


class GroupCache:
    """The row groups that were read last, within a number of bytes."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self.groups: OrderedDict[tuple[Any, ...], tuple[pa.Array, list[bool], int]] = OrderedDict()

    def get(self, shard: _Shard, group: int) -> tuple[pa.Array, list[bool]]:
        """PNG bytes and `hu` of the images of a row group, in order."""
        key = (*shard.key, group)
        found = self.groups.pop(key, None)
        if found is None:
            table = shard.file.read_row_group(group, columns=["images", "hu"], use_threads=False).combine_chunks()
            data = table["images"].chunk(0).flatten().field("bytes")
            found = (data, table["hu"].chunk(0).flatten().to_pylist(), data.nbytes)
            self.bytes += data.nbytes
        self.groups[key] = found
        while self.bytes > self.most_bytes and len(self.groups) > 1:
            self.bytes -= self.groups.popitem(last=False)[1][2]
        return found[:2]


CACHE = GroupCache()
"""One for the process: studies of a shard are read one after another, or at random within a few shards."""


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a shard without their images.

    Raises:
        InputError: the shard is cut.
    """
    try:
        yield from pq.read_table(path, columns=["id", "patient", "split", "source", "record"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        line = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: the shard is cut or broken ({line}); run vlm data prepare again") from None
