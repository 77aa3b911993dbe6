"""The vocabulary of medical knowledge: concepts, the relations between them, and how sure a report is of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Certainty(StrEnum):
    """What a text says of a concept."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"


class Kind(StrEnum):
    """What a concept is."""

    FINDING = "finding"
    ANATOMY = "anatomy"
    ATTRIBUTE = "attribute"


class Relation(StrEnum):
    """Kinds of edges. `EXCLUDES` is symmetric; `ASSOCIATED_WITH` carries a weight in (0, 1]."""

    IS_A = "is_a"
    PART_OF = "part_of"
    LOCATED_IN = "located_in"
    SUGGESTS = "suggests"
    ASSOCIATED_WITH = "associated_with"
    EXCLUDES = "excludes"


@dataclass(frozen=True, slots=True)
class Concept:
    """A node of the graph.

    Args:
        id: stable identifier, lower case with underscores ("pleural_effusion").
        name: preferred term.
        kind: finding, anatomy or attribute.
        synonyms: other ways in which radiologists write it, lower case, the preferred term not repeated.
        adjectives: adjective forms that name it ("emphysematous").
        xrefs: identifiers elsewhere ("DOID:1673", "UBERON:0002048").
        source: provenance, one line.
    """

    id: str
    name: str
    kind: Kind
    synonyms: tuple[str, ...] = ()
    adjectives: tuple[str, ...] = ()
    xrefs: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """A directed, typed, weighted edge of the graph.

    Args:
        source, target: concept ids.
        relation: what the edge says.
        weight: strength in (0, 1]; 1 for edges that are true by definition.
        provenance: where the edge comes from, one line.
    """

    source: str
    target: str
    relation: Relation
    weight: float = 1.0
    provenance: str = field(default="", compare=False)
