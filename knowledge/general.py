"""Words for anything at all ("lesion", "abnormality", "clear" of lungs) and what their denial leaves no room for.

"No lesion is seen in the left lung" denies every focal finding of that lung, and no concept of a graph says so. Such
words are read as mentions of a general concept, with the place and the side that they speak of; the table is
`resources/general.tsv`, apart from any graph, so that a report is read alike with every one.

| general concept | read from | its denial leaves no room for |
|---|---|---|
| `lesion` | "lesion", "focal abnormality" | the focal findings of the place, calcified ones too |
| `active_disease` | lungs that are "clear" or "normal" | nodules, infiltrates, edema, ...; nothing calcified or old |
| `abnormality` | "abnormality", "disease", ... of a place or side | every finding there; "acute ...": acute ones |

What follows from such a denial: `knowledge.denials`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from knowledge.graph import RESOURCES
from knowledge.tables import read_rows, split_values

LESION, ACTIVE_DISEASE, ABNORMALITY = "lesion", "active_disease", "abnormality"
QUALIFIED = "qualified"
"""Attribute of a denial that speaks of some only: "no malignant lesion", "clear except for ..."."""

WHOLE = frozenset({"body", "thorax", "cardiopulmonary", "abdomen", "pelvis", "head"})
"""Places as wide as a study: "no abnormality" of one says that the study is normal."""


@dataclass(frozen=True, slots=True)
class General:
    """A row of the table.

    Args:
        words: that name it.
        stands_for: concepts of a graph that mean the same at the place where the graph locates them.
        denies, spares: concepts, with the kinds of each; None for every finding.
    """

    words: tuple[str, ...]
    stands_for: tuple[str, ...]
    denies: tuple[str, ...] | None
    spares: tuple[str, ...]


@lru_cache(maxsize=1)
def general_concepts() -> Mapping[str, General]:
    """The general concepts by id."""
    rows = {}
    for _, row in read_rows(RESOURCES / "general.tsv", ("id", "denies")):
        if row["id"].startswith("#"):
            continue
        words, stands, spares = (split_values(row.get(key)) for key in ("words", "stands_for", "spares"))
        rows[row["id"]] = General(words, stands, None if row["denies"] == "*" else split_values(row["denies"]), spares)
    return rows


@lru_cache(maxsize=1)
def stand_ins() -> frozenset[str]:
    """Concepts of graphs that stand for a general one."""
    return frozenset(id for row in general_concepts().values() for id in row.stands_for)
