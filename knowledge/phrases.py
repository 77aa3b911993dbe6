"""What a sentence is made of while it is read: matched phrases, and readings whose offsets are not yet known."""

from __future__ import annotations

from dataclasses import dataclass, field

from knowledge.general import general_concepts
from knowledge.lexicon import Payload
from knowledge.ontology import Certainty

EXCEPTIONS = ("except", "except for", "apart from", "aside from", "other than", "with the exception of")
"""Cues behind which stands what a statement is not about."""


@dataclass(slots=True)
class Phrase:
    """A matched phrase: words [start, end) of the sentence and the parts it can play."""

    start: int
    end: int
    roles: Payload
    used: bool = False


@dataclass(slots=True)
class Reading:
    """A mention before its offsets are known: words [start, end), phrase `index` of its clause.

    `fixed`: the certainty is not for cues to change. `nothing`: a denied generic word, to be named when it is known
    where; `also` holds the further places that it is said of, `some` tells that it does not speak of all. `head`:
    (concept, start, end) of the finding that a composite is about; where the state is denied (`inside`: "a nodule that
    is not calcified"), the head stays said.
    """

    concept: str
    start: int
    end: int
    index: int
    certainty: Certainty = Certainty.PRESENT
    fixed: bool = False
    place: str | None = None
    side: str | None = None
    attributes: list[str] = field(default_factory=list)
    measure_mm: float | None = None
    change: str | None = None
    head: tuple[str, int, int] | None = None
    inside: bool = False
    nothing: bool = False
    also: list[str] = field(default_factory=list)
    some: bool = False


def is_general(r: Reading) -> bool:
    """Whether a reading is about anything at all."""
    return r.nothing or r.concept in general_concepts()


def next_roles(phrases: list[Phrase], j: int) -> Payload:
    return phrases[j + 1].roles if j + 1 < len(phrases) else {}


def cue_before(clause: list[Phrase], i: int, role: str, verb: bool = False) -> int | None:
    """The nearest cue to the left of phrase `i` that reaches it; `verb`: what starts at `i` is itself a statement."""
    blockers = "ends" if role != "hedges_after" else "ends_hedge"
    for j in range(i - 1, -1, -1):
        roles = clause[j].roles
        if "finding" in roles and verb:
            return None  # "no effusion, the lungs are hyperinflated": the finding before the verb took the cue
        verb = verb or ("verb" in roles and "exists" not in next_roles(clause, j))
        if (role in roles or (role == "negates_after" and "negates_near" in roles)) and "unaffected" not in roles:
            return j
        if blockers in roles or roles.get("asserts") in ("there is", "there are"):
            return None
    return None
