"""De-identifies a folder: every file is cleaned and written under a safe name, or left out and counted.

The source is never written to. What is done is noted in `OUT/.deidentify.jsonl` (safe names and counts, no value), so
that an interrupted run goes on where it stopped; `OUT/deidentify_report.json` sums it up. The key lies outside both
folders: with it, and only with it, a later run gives the same pseudonyms.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import dcmread

from vlm.data.deidentify.keyring import Keyring, load_key
from vlm.data.deidentify.pictures import PICTURES, clean_dicom, clean_nifti, clean_picture
from vlm.data.deidentify.tables import TABLES, TableCleaner
from vlm.data.deidentify.tags import METHOD, HeaderCleaner, identifiers
from vlm.data.deidentify.texts import MARK, TextScrubber
from vlm.data.dicom import BROKEN
from vlm.data.dicom import _quiet as quiet
from vlm.data.files import write_atomic
from vlm.data.parallel import Workers
from vlm.types import InputError

STATE, REPORT = ".deidentify.jsonl", "deidentify_report.json"
_DICOM = (".dcm", ".dicom", ".ima", "")


@dataclass(frozen=True, slots=True)
class Options:
    """What to do.

    Args:
        mask_text: blacken text that is burnt into pictures. shift_dates: move dates in place of taking them out.
        mark: what takes the place of an identifier in a text.
    """

    mask_text: bool = False
    shift_dates: bool = False
    mark: str = MARK


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one file.

    Args:
        file: its safe name in the output, relative. kind: "dicom", "picture", "nifti", "text" or "other".
        source: keyed fingerprint of the source's name, size and time of change, and of the settings.
        status: "written", "failed" or "left out". reason: why, in words that name no one.
        removed: how many of each tag or rule. masked: rectangles that were blackened.
    """

    file: str
    kind: str
    source: str
    status: str
    reason: str
    removed: dict[str, int]
    masked: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    relative: str
    file: str
    fingerprint: str


def deidentify(
    source: Path,
    out: Path,
    key_file: Path,
    options: Options,
    workers: int = 1,
    watch: Callable[[Iterable[Entry], int], Iterable[Entry]] = lambda entries, total: entries,
) -> dict[str, Any]:
    """De-identifies `source` into `out`.

    Args:
        source: file or folder, only read. out: folder, made when absent. key_file: secret, made when absent.
        options: what to do. workers: processes. watch: wraps the entries as they come, for a progress bar.

    Returns:
        The report, as written to `OUT/deidentify_report.json`.

    Raises:
        InputError: no source, folders inside one another, a key inside either, or an output made with another key.
    """
    root = _check_places(source, out, key_file)
    keyring = load_key(key_file)
    files = [source.name] if source.is_file() else sorted(_files(source))
    known = _known(root, files)
    done = _state(out, keyring)
    salt = json.dumps([asdict(options), METHOD, sorted(known)])
    tasks, entries = [], {}
    for name, safe in _safe_names(files, keyring).items():
        task = _Task(name, safe, _fingerprint(root / name, name, salt, keyring))
        old = done.get(safe)
        if old is not None and old.source == task.fingerprint and (old.status != "written" or (out / safe).is_file()):
            entries[safe] = old
        else:
            tasks.append(task)
    if not done:
        write_atomic(out / STATE, json.dumps({"key": keyring.fingerprint()}) + "\n")
    work = partial(_one, root=root, out=out, keyring=keyring, options=options, known=tuple(known), files=tuple(files))
    with (out / STATE).open("a", encoding="utf-8") as state, Workers(workers) as pool:
        for entry in watch(pool.map(work, tasks), len(tasks)):
            entries[entry.file] = entry
            state.write(json.dumps(asdict(entry)) + "\n")
            state.flush()
    report = _report([entries[name] for name in sorted(entries)], options, resumed=len(files) - len(tasks))
    write_atomic(out / REPORT, json.dumps(report, indent=1) + "\n")
    return report


def _check_places(source: Path, out: Path, key_file: Path) -> Path:
    """The folder that file names are relative to."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    root = (source.parent if source.is_file() else source).resolve()
    target, key = out.resolve(), key_file.resolve()
    if target == root or (target.is_relative_to(root) and source.is_dir()) or root.is_relative_to(target):
        raise InputError(f"--out {out} and {source} lie within one another; give a folder of its own")
    for folder in (target, root if source.is_dir() else target):
        if key.is_relative_to(folder):
            raise InputError(f"the key {key_file} lies inside {folder}: whoever gets the data would get it too")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, a folder is needed")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (out / STATE).is_file():
        raise InputError(f"--out {out}: holds other files; give a new folder")
    return root


def _files(folder: Path) -> Iterable[str]:
    """Every file below, links left out: they may lead anywhere."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not (Path(parent) / f).is_symlink()]
        for name in names:
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _safe_names(files: Iterable[str], keyring: Keyring) -> dict[str, str]:
    """Source -> safe name, no two alike also where letters' case does not count."""
    out: dict[str, str] = {}
    taken: set[str] = {STATE, REPORT}
    for name in files:
        safe = keyring.path(name)
        if safe.lower() in taken:
            stem, dot, suffix = safe.rpartition(".")
            safe = f"{stem or suffix}-{keyring.pseudonym(name)[1:7]}{dot}{suffix if stem else ''}"
        taken.add(safe.lower())
        out[name] = safe
    return out


def _known(root: Path, files: Iterable[str]) -> dict[str, None]:
    """Identifiers that the DICOM headers of the set state."""
    found: dict[str, None] = {}
    with quiet():
        for name in files:
            if _kind(root / name) != "dicom":
                continue
            try:
                found.update(dict.fromkeys(identifiers(dcmread(root / name, stop_before_pixels=True))))
            except (*BROKEN, RecursionError):
                continue
    return found


def _state(out: Path, keyring: Keyring) -> dict[str, Entry]:
    """What an earlier run noted; a line that was cut off is passed over."""
    done: dict[str, Entry] = {}
    try:
        lines = (out / STATE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return done
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            if number == 0 and record.get("key") != keyring.fingerprint():
                raise InputError(f"{out}: was made with another key; give that key (--key) or a new folder")
            if number:
                entry = Entry(**record)
                done[entry.file] = entry
        except (json.JSONDecodeError, TypeError, AttributeError):
            continue
    return done


def _fingerprint(path: Path, name: str, salt: str, keyring: Keyring) -> str:
    stat = path.stat()
    text = f"{name}\n{stat.st_size}\n{stat.st_mtime_ns}\n{salt}"
    return hmac.new(keyring.key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:24]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.name.lower().endswith((".nii", ".nii.gz", ".hdr")):
        return "nifti"
    if suffix in PICTURES:
        return "picture"
    if suffix in TABLES:
        return "text"
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        head = b""
    if head[128:] == b"DICM" or suffix in (".dcm", ".dicom", ".ima"):
        return "dicom"
    return "other"


def _one(
    task: _Task,
    root: Path,
    out: Path,
    keyring: Keyring,
    options: Options,
    known: tuple[str, ...],
    files: tuple[str, ...],
) -> Entry:
    """Cleans one file; whatever is wrong with it is noted and no part of it is written."""
    path, target, counts = root / task.relative, out / task.file, Counter[str]()
    kind = _kind(path)
    masked = 0
    scrubber = TextScrubber(known, options.mark)
    try:
        if kind == "dicom":
            cleaner = HeaderCleaner(keyring, scrubber, options.shift_dates, options.mask_text)
            masked = clean_dicom(path, target, cleaner, counts)
        elif kind == "picture":
            masked = clean_picture(path, target, options.mask_text, counts)
        elif kind == "nifti":
            clean_nifti(path, target, counts)
        elif kind == "text":
            write_atomic(target, TableCleaner(keyring, scrubber, files).clean(path, counts))
        else:
            return Entry(task.file, kind, task.fingerprint, "left out", "of a kind that cannot be checked", {})
    except InputError as error:
        return Entry(task.file, kind, task.fingerprint, "failed", _bare(str(error), path), {})
    except OSError as error:
        return Entry(task.file, kind, task.fingerprint, "failed", error.strerror or "cannot be read", {})
    counts["file or folder name"] += task.file != task.relative
    return Entry(task.file, kind, task.fingerprint, "written", "", dict(sorted((+counts).items())), masked)


def _bare(message: str, path: Path) -> str:
    """A message without the path, which may name a patient."""
    return message.replace(str(path), "the file").replace(path.name, "the file")


def _report(entries: list[Entry], options: Options, resumed: int) -> dict[str, Any]:
    removed: dict[str, Counter[str]] = {}
    for entry in entries:
        removed.setdefault(entry.kind, Counter()).update(entry.removed)
    return {
        "method": METHOD,
        "options": asdict(options),
        "files": dict(Counter(f"{e.kind} {e.status}" for e in entries)),
        "from an earlier run": resumed,
        "removed": {kind: dict(sorted(counts.items())) for kind, counts in removed.items() if counts},
        "pictures with text masked": sum(e.masked > 0 for e in entries),
        "rectangles masked": sum(e.masked for e in entries),
        "failed": [{"file": e.file, "reason": e.reason} for e in entries if e.status == "failed"],
        "left out": [{"file": e.file, "reason": e.reason} for e in entries if e.status == "left out"],
    }
