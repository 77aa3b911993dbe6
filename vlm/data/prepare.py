"""Data sets -> a prepared set: every image decoded once, by several processes, and gone on with after an interruption.

The plan comes first: studies in the sources' order, split by split, cut into shards of a fixed number. A shard is one
process's work and depends on nothing else, so the files are the same, byte for byte, for any number of workers. It
appears under its name when it is whole, with the plan's hash in its footer: a later call makes only those that lack.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlm.data.files import read_json, read_json_lines, write_atomic
from vlm.data.indexing import Tally, index_row, sha256_of, write_index, write_manifest
from vlm.data.layouts.tabular import as_record, list_in, study_of
from vlm.data.packing import Packing, pack
from vlm.data.parallel import Workers
from vlm.data.prepared import FAILURES, FORMAT, INDEX, MANIFEST, PLAN, VERSION, is_prepared
from vlm.data.shards import Packed, rows_of, schema, shard_mark, write_shard
from vlm.data.sources import layout_of, read_studies
from vlm.types import InputError, Study

BLOCK = 1024
"""Studies a row group of an index without shards."""


@dataclass(frozen=True, slots=True)
class Task:
    """One shard: what it holds and where it goes."""

    file: str
    root: Path
    studies: tuple[Study, ...]
    packing: Packing
    plan: str
    form: pa.Schema


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a preparation did.

    Args:
        studies, images: now in the set. failed: (id, why) of those that are not. earlier: shards that an earlier call
            made. shards: all of them. bytes: of the shards.
    """

    studies: int
    images: int
    failed: tuple[tuple[str, str], ...]
    earlier: int
    shards: int
    bytes: int


def prepare(
    sources: Sequence[tuple[Path, str]],
    out: Path,
    packing: Packing | None = None,
    shard: int = 256,
    workers: int = 1,
    overwrite: bool = False,
    watch: Callable[[int, int], None] | None = None,
    slices: str | None = None,
) -> Outcome:
    """Writes a prepared set.

    Args:
        sources: (path, format) of the data sets; an id that two of them share gets the later one's name before it.
        out: folder to write to. packing: how pixels are kept. shard: studies a shard. workers: processes.
        overwrite: start anew where `out` holds another set.
        watch: called with (studies done, studies in all) after each shard.
        slices: which slices of volumes are kept (`vlm.data.slices`); None for the layout's own choice.

    Raises:
        InputError: a source that cannot be read, a folder that holds another set, or no study that can be prepared.
        KeyboardInterrupt: whole shards stay, and the same call goes on.
    """
    packing = packing or Packing()
    studies, names = gather(sources, slices)
    tasks = _plan(studies, out, packing, shard)
    _claim(out, tasks[0].plan, packing, shard, overwrite)
    todo = [task for task in tasks if not _is_done(task)]
    done = sum(len(task.studies) for task in tasks) - sum(len(task.studies) for task in todo)
    if watch is not None:
        watch(done, len(studies))
    try:
        with Workers(workers) as pool:
            for count in pool.map(make_shard, todo):
                done += count
                if watch is not None:
                    watch(done, len(studies))
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"{out}: {why}; what is written stays, the same command goes on") from None
    return _finish(out, tasks, packing, names, len(tasks) - len(todo))


def gather(sources: Sequence[tuple[Path, str]], slices: str | None = None) -> tuple[list[Study], list[dict[str, Any]]]:
    """Studies of several sources with unique ids, and what is said of the sources in the manifest."""
    studies: list[Study] = []
    taken: set[str] = set()
    about = []
    for path, format in sources:
        found = read_studies(path, format, slices=slices)
        about.append({"name": path.resolve().name, "format": layout_of(path, format).name, "studies": len(found)})
        for study in found:
            name, number = study.id, 2
            if name in taken:
                name = f"{path.resolve().name}/{study.id}"
            while name in taken:
                name, number = f"{path.resolve().name}/{study.id}-{number}", number + 1
            taken.add(name)
            studies.append(study if name == study.id else replace(study, id=name))
    return studies, about


def _plan(studies: Sequence[Study], out: Path, packing: Packing, size: int) -> list[Task]:
    """The shards: split by split, each of one split, so that training reads none in vain."""
    groups: dict[str, list[Study]] = {}
    for study in studies:
        groups.setdefault(re.sub(r"[^\w.]+", "_", study.split or "") or "all", []).append(study)
    digest = hashlib.sha256(json.dumps([VERSION, asdict(packing), size], sort_keys=True).encode())
    for study in studies:
        digest.update(_fact(study).encode("utf-8", "replace"))
    plan, form = digest.hexdigest(), schema()
    tasks = []
    for name, group in groups.items():
        count = -(-len(group) // size)
        for number in range(count):
            file = f"data/{name}-{number:05d}-of-{count:05d}.parquet"
            tasks.append(Task(file, out, tuple(group[number * size : (number + 1) * size]), packing, plan, form))
    return tasks


def _fact(study: Study) -> str:
    """All that a study says, with its files by name: where a data set lies makes no difference."""
    images = [replace(i, path=None if i.path is None else Path(*i.path.parts[-2:]), pixels=None) for i in study.images]
    return repr(replace(study, images=images))


def _claim(out: Path, plan: str, packing: Packing, size: int, overwrite: bool) -> None:
    """Makes the folder this plan's own, or refuses it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not is_prepared(out):
        raise InputError(f"{out}: holds files that are no prepared set; give a new or an empty folder with --out")
    mine = {"format": FORMAT, "version": VERSION, "plan": plan, "packing": asdict(packing), "shard": size}
    if (out / PLAN).is_file() and not overwrite:
        theirs = read_json(out / PLAN)
        theirs = theirs if isinstance(theirs, dict) else {}
        if theirs.get("plan") != plan:
            same = all(theirs.get(k) == json.loads(json.dumps(mine[k])) for k in ("version", "packing", "shard"))
            other = "other studies" if same else "other settings"
            raise InputError(f"{out}: holds a set prepared from {other}; choose another --out, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    # Without a manifest readers see an unfinished set, whatever happens from here on.
    for name in (MANIFEST, INDEX, FAILURES):
        (out / name).unlink(missing_ok=True)
    write_atomic(out / PLAN, json.dumps(mine, indent=1) + "\n")
    for path in (out / "data").glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _is_done(task: Task) -> bool:
    """Whether a shard is there, whole, of this plan, and without a failure that a second try may mend."""
    mark = shard_mark(task.root / task.file)
    return mark is not None and mark.get("plan") == task.plan and not mark.get("failures")


def make_shard(task: Task) -> int:
    """Decodes the studies of a shard and writes it; a study that cannot be read is recorded in its footer.

    Returns:
        How many studies were gone through.
    """
    failures: list[tuple[str, str]] = []
    images = 0

    def packed() -> Iterator[Packed]:
        nonlocal images
        for study in task.studies:
            try:
                item = pack(study, task.packing)
            except MemoryError:
                failures.append((study.id, "its images do not fit into memory"))
            except Exception as error:  # thousands of files: a decoder's own error must not end the rest
                prefix = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                failures.append((study.id, prefix + (" ".join(str(error).split())[:300] or "cannot be read")))
            else:
                images += len(item.images)
                yield item

    def mark() -> dict[str, Any]:
        return {"plan": task.plan, "images": images, "failures": failures}

    write_shard(task.root / task.file, task.root, task.form, packed(), mark)
    return len(task.studies)


def _finish(out: Path, tasks: Sequence[Task], packing: Packing, names: list[dict[str, Any]], earlier: int) -> Outcome:
    """Index, failures and manifest; and files of an earlier set go."""
    shards: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    images = 0
    tally = Tally()
    expected = {task.file for task in tasks}
    for path in (out / "data").glob("*.parquet"):
        if f"data/{path.name}" not in expected:
            path.unlink()

    def blocks() -> Iterator[list[dict[str, Any]]]:
        nonlocal images
        for task in tasks:
            path = out / task.file
            mark = shard_mark(path)
            if mark is None:
                raise InputError(f"{path}: vanished or broke while the set was made; run the same command again")
            failed.extend((str(name), str(why)) for name, why in mark["failures"])
            rows = [index_row(json.loads(row["record"]), row["record"]) for row in rows_of(path)]
            if rows:  # a row group must not be empty, and a block belongs to a shard
                images += mark["images"]
                facts = {"studies": len(rows), "images": mark["images"], "bytes": path.stat().st_size}
                shards.append({"file": task.file, **facts, "sha256": sha256_of(path)})
                yield rows
            else:
                path.unlink()

    write_index(out, blocks(), tally)
    if failed:
        lines = (json.dumps({"id": name, "error": why}, ensure_ascii=False) + "\n" for name, why in failed)
        write_atomic(out / FAILURES, "".join(lines))
    if not tally.studies:
        why = f"; the first: {failed[0][1]}" if failed else ""
        raise InputError(f"{out}: no study could be prepared{why}")
    write_manifest(out, tally, {"sources": names, "packing": asdict(packing), "failed": len(failed)}, shards)
    size = sum(s["bytes"] for s in shards)
    return Outcome(tally.studies, images, tuple(failed), earlier, len(shards), size)


def index_only(
    sources: Sequence[tuple[Path, str]],
    out: Path,
    overwrite: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Outcome:
    """Writes an index of one data set whose images stay where they are; JSONL lists are read line by line.

    Args:
        sources: one (path, format). out: folder to write to. overwrite: replace another set.
        watch: called with the number of studies gone through.

    Raises:
        InputError: several sources, one that cannot be read, or a folder that holds another set.
    """
    if len(sources) != 1:
        raise InputError("an index without pixels is of one data set; give one SRC")
    path, format = sources[0]
    root, records = _records(path, format)
    settings = {"index_only": True, "root": str(root), "source": str(path)}
    plan = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    _claim(out, plan, Packing(), BLOCK, overwrite)
    tally = Tally()

    def blocks() -> Iterator[list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        for record in records:
            rows.append(index_row(record, json.dumps(record, ensure_ascii=False)))
            if len(rows) == BLOCK:
                yield rows
                rows = []
                if watch is not None:
                    watch(tally.studies)
        if rows:
            yield rows

    write_index(out, blocks(), tally)
    if not tally.studies:
        raise InputError(f"{path}: holds no study")
    about = [{"name": path.resolve().name, "format": layout_of(path, format).name, "studies": tally.studies}]
    write_manifest(out, tally, {"sources": about, "root": str(root), "failed": 0}, [])
    return Outcome(tally.studies, tally.images, (), 0, 0, 0)


def _records(path: Path, format: str) -> tuple[Path, Iterator[dict[str, Any]]]:
    """The folder that images are named from, and the studies as objects of the list schema."""
    layout = layout_of(path, format)
    root = (path if path.is_dir() else path.parent).resolve()
    file = list_in(path) if layout.name == "list" else path
    if layout.name != "list" or file.suffix.lower() == ".csv":
        return root, (as_record(study, root) for study in read_studies(path, format))
    return file.parent.resolve(), _checked(file)


def _checked(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL list, each checked as `read_list` does; ids are kept as 8 bytes each."""
    seen: set[int] = set()
    for number, record in read_json_lines(file):
        study = study_of(record, file, number)
        key = int.from_bytes(hashlib.blake2b(study.id.encode(), digest_size=8).digest())
        if key in seen:
            raise InputError(f"{file}: line {number}: the id {study.id!r} was used before; ids must be unique")
        seen.add(key)
        yield record
