"""What a reader of other people's files gives back, and how it names a concept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from knowledge.tables import Content


@dataclass(slots=True)
class Imported:
    """What one source file gave.

    Args:
        path: the file or folder.
        content: its concepts and edges.
        kind: name of the reader that took it.
        skipped: reason -> how many entries were left out for it.
    """

    path: Path
    content: Content
    kind: str
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, reason: str) -> None:
        """Counts an entry that is left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


def slug(text: str) -> str:
    """An id made from a term: "Pleural effusion" -> "pleural_effusion"."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
