"""The one error of this package: what was read is wrong, said in one line."""

from __future__ import annotations

from pathlib import Path


class KnowledgeError(ValueError):
    """What was read cannot be used; the message names file, line and the fix."""


def at(path: Path | str | None, line: int | None, message: str) -> KnowledgeError:
    """Builds an error that starts with `file:line:`.

    Args:
        path: file that was read; None when the content came from memory.
        line: 1-based line in it; None when the fault has no single line.
        message: what is wrong and what to do.

    Returns:
        The error, to be raised by the caller.
    """
    place = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
    return KnowledgeError(place + message)
