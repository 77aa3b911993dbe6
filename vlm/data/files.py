"""Reading and writing files safely: paths that stay in their folder, writes that are whole or absent."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.types import InputError

MAX_FIELD = 1 << 20


def inside(folder: Path, name: str, listed_in: Path) -> Path:
    """Joins a path that comes from a data file to its folder, and refuses one that leaves the folder.

    Args:
        folder: folder that holds the data set.
        name: relative path as written in the data file.
        listed_in: the data file, for the message.

    Raises:
        InputError: absolute path, or one that leads out of the folder.
    """
    if not name or "\0" in name:
        raise InputError(
            f"{listed_in}: an image path is empty or holds a NUL character; give a path relative to {folder}"
        )
    if ".." not in name and not os.path.isabs(name):
        return folder / name  # nearly every path, in a third of the time: lists name millions
    joined = os.path.normpath(os.path.join(folder, name))
    root = os.path.normpath(folder)
    if os.path.isabs(name) or os.path.relpath(joined, root).split(os.sep)[0] == os.pardir:
        raise InputError(f"{listed_in}: the image path {name!r} leaves the folder {folder}; give a path inside it")
    return Path(joined)


def read_text(path: Path) -> str:
    """Reads UTF-8 text (a byte-order mark is dropped) or says in one line why not."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, a file is expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file or names the line that is broken."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno} is not valid JSON ({error.msg})") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be a data file") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of a JSONL file; blank lines are passed over.

    Raises:
        InputError: a line that is not a JSON object, named by its number.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is not valid JSON ({error.msg})") from None
        except RecursionError:
            raise InputError(f"{path}: line {number} is nested too deeply") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is a {type(record).__name__}, a JSON object is expected")
        yield number, record


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text one at a time: lists of a million studies do not fit into memory as one text."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):  # noqa: B007
                yield line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, a file is expected") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text (after line {number}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def read_table(path: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """Reads a CSV file with a header line.

    Args:
        path: comma-separated file.
        columns: names that must be in the header.

    Returns:
        One dict a row, missing cells as "".

    Raises:
        InputError: a column is missing (the ones that exist are listed), or a row is broken.
    """
    csv.field_size_limit(MAX_FIELD)
    reader = csv.DictReader(read_text(path).splitlines(keepends=True))
    try:
        header = list(reader.fieldnames or ())
        missing = [c for c in columns if c not in header]
        if missing:
            raise InputError(
                f"{path}: has no column {', '.join(map(repr, missing))}; its columns are {', '.join(header[:20])}"
            )
        rows = [{k: v or "" for k, v in row.items() if k is not None} for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is not valid CSV ({error})") from None
    return rows


def table_rows(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the named cells of a CSV file row by row: a file of a million rows is neither held nor turned into dicts.

    Args:
        path: comma-separated file with a header line, plain or `.gz`.
        columns: names that must be in the header. optional: names that may be; a missing one reads "".

    Yields:
        The cells of `columns`, then of `optional`, stripped; blank rows are passed over.

    Raises:
        InputError: a column is missing, or the file is broken (named by its line).
    """
    csv.field_size_limit(MAX_FIELD)
    needed, spare = list(columns), list(optional)
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            missing = [c for c in needed if c not in header]
            if missing:
                raise InputError(
                    f"{path}: has no column {', '.join(map(repr, missing))}; its columns are {', '.join(header[:20])}"
                )
            places = [header.index(c) if c in header else -1 for c in (*needed, *spare)]
            # The quick way for rows that hold every cell; a column that the table lacks makes every row a slow one.
            widest = max(places) if min(places) >= 0 else MAX_FIELD
            for row in reader:
                number = reader.line_num
                if len(row) > widest:
                    yield tuple([row[i].strip() for i in places])
                elif row:
                    yield tuple(row[i].strip() if 0 <= i < len(row) else "" for i in places)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text (after line {number}); save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: line {number + 1} is not valid CSV ({error})") from None
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: broken or cut off after line {number} ({error}); copy it again") from None


def plain_or_gz(folder: Path, *names: str) -> Path | None:
    """The first of these files that a folder holds, as it is or with `.gz`; None when it holds none."""
    for name in names:
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return file
    return None


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data.encode("utf-8") if isinstance(data, str) else data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sections_of(**parts: str) -> dict[str, str]:
    """Keeps the sections that hold text, with white space collapsed."""
    return {name: " ".join(text.split()) for name, text in parts.items() if text and text.strip()}


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Text of a cell or a JSON value; "" when it is absent or null."""
    value = record.get(key)
    return "" if value is None else str(value)
