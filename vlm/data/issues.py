"""What a check of a data set finds: one thing that is wrong or odd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong or odd.

    Args:
        level: "error" or "warning". kind: short name to count by. study: its id. message: one line.
    """

    level: Literal["error", "warning"]
    kind: str
    study: str
    message: str
