"""Files of the exports: names from study ids, and writes that are whole or absent."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def file_stem(study_id: str) -> str:
    """A name that is a single plain file name on every system, and differs for ids that differ.

    Args:
        study_id: any text; one that is plain already is kept.
    """
    if _SAFE.fullmatch(study_id) and not study_id.endswith("."):
        return study_id
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", study_id).strip("._-")[:80] or "study"
    return f"{plain}-{hashlib.sha256(study_id.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its place when the block ends; an error leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield cast(BinaryIO, file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))
