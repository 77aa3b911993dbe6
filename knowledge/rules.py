"""Which statements of a report cannot both hold: the rule that they break, and the two mentions.

| rule | holds between |
|---|---|
| present_and_absent | a finding said and denied, not of different sides or places, and not denied in a narrower sense |
| parent_absent | a finding said whose more general kind is denied ("lobar pneumonia" beside "no pneumonia") |
| exclusive | two findings that exclude each other in the graph (low and large lung volumes) |
| normal_beside_finding | "no abnormality" beside a finding; "no acute abnormality" only beside acute ones |
| nothing_there | a place or side where no lesion or abnormality is said to be, beside one there (`knowledge.denials`) |
| side_against_place | a side and a place that lies on the other side ("left middle lobe") |

"No large effusion" denies a large one, so it does not contradict "small effusion"; what has resolved or is history
contradicts nothing; an uncertain statement contradicts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from knowledge.anatomy import around_place, side_of_place
from knowledge.denials import ACUTE_WEIGHT, generals_of
from knowledge.extraction import Mention
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty


class Contradiction(NamedTuple):
    """Two statements that cannot both hold, or one that contradicts itself.

    Args:
        rule: name, from the table in the module's docstring.
        first, second: the mentions, in the order of the text; second is None for a statement at odds with itself.
        message: one line for a person.
    """

    rule: str
    first: Mention
    second: Mention | None
    message: str


def contradictions(mentions: Iterable[Mention], graph: KnowledgeGraph) -> list[Contradiction]:
    """Every contradiction among the mentions of one report.

    Args:
        mentions: from `ReportReader.read`, of one text, so that their spans are comparable.
        graph: the graph that they were read with.

    Returns:
        Contradictions, each pair of concepts once per rule, in the order of the text.
    """
    every = list(mentions)
    current = [m for m in every if m.change not in ("resolved", "past")]
    anything = [m for m in current if m.certainty is Certainty.PRESENT]
    denials = [m for m in current if m.certainty is Certainty.ABSENT and m.change != "new"]
    said, present, absent = ([m for m in some if m.concept in graph.concepts] for some in (every, anything, denials))
    denied = list(_denied(present, absent, graph))
    found = [*_sides(said, graph), *denied, *_exclusive(present, graph), *_nothing(anything, denials, denied, graph)]
    seen: set[tuple[str, str, str]] = set()
    out = []
    for c in sorted(found, key=lambda c: (c.first.start, c.second.start if c.second else -1)):
        key = (c.rule, c.first.concept, c.second.concept if c.second else str(c.first.start))
        if key not in seen:
            seen.add(key)
            out.append(c)
    return out


def _sides(said: list[Mention], graph: KnowledgeGraph) -> Iterator[Contradiction]:
    for m in said:
        if m.place in graph.concepts and m.side in ("left", "right"):
            side = side_of_place(str(m.place), graph)
            if side is not None and side != m.side:
                name = graph.concepts[str(m.place)].name
                text = f"{m.side} {_name(m, graph)} in the {name}, which lies on the {side}"
                yield Contradiction("side_against_place", m, None, text)


def _denied(present: list[Mention], absent: list[Mention], graph: KnowledgeGraph) -> Iterator[Contradiction]:
    for p in present:
        above = graph.ancestors(p.concept)
        for a in absent:
            if a.concept not in above or not _same_spot(p, a, graph) or _denies_less(a, p):
                continue
            if a.side in ("left", "right") and p.side is None:
                continue  # it may lie on the other side
            rule = "present_and_absent" if a.concept == p.concept else "parent_absent"
            text = f"{_name(p, graph)} is said to be present and {_name(a, graph)} absent"
            yield Contradiction(rule, *_ordered(p, a), text)


def _nothing(
    present: list[Mention], absent: list[Mention], denied: list[Contradiction], graph: KnowledgeGraph
) -> Iterator[Contradiction]:
    """Denials of a general concept; what the same words deny by name is told once."""
    generals = generals_of(graph)
    told = {
        (m.start, other.start) for c in denied if c.second for m, other in ((c.first, c.second), (c.second, c.first))
    }
    for a in absent:
        if generals.of(a) is None:
            continue
        for p in present:
            if (a.start, p.start) not in told and generals.denies(a, p):
                text = f"{_name(p, graph)} is said to be present where {_name(a, graph)} is said to be absent"
                yield Contradiction("nothing_there", *_ordered(p, a), text)
    for n in present:
        if n.concept != "normal" or "acute" in n.attributes:
            continue
        for p in present:
            if generals.of(p) is not None:
                text = f"the study is said to be without abnormality beside {_name(p, graph)}"
                yield Contradiction("normal_beside_finding", *_ordered(p, n), text)


def _exclusive(present: list[Mention], graph: KnowledgeGraph) -> Iterator[Contradiction]:
    weights = graph.exclusion_weights
    for i, first in enumerate(present):
        for second in present[i + 1 :]:
            pairs = [(a, b) for a in graph.ancestors(first.concept) for b in graph.ancestors(second.concept)]
            weight = max((weights[p] for p in pairs if p in weights), default=0.0)
            if not weight:
                continue
            normal = next((m for m in (first, second) if m.concept == "normal"), None)
            if normal is not None:
                other = second if normal is first else first
                chronic = weight < ACUTE_WEIGHT or not {"old", "chronic"}.isdisjoint(other.attributes)
                if "acute" in normal.attributes and chronic:
                    continue
                text = f"the study is said to be without abnormality beside {_name(other, graph)}"
                yield Contradiction("normal_beside_finding", first, second, text)
            elif _same_spot(first, second, graph):
                text = f"{_name(first, graph)} and {_name(second, graph)} exclude each other"
                yield Contradiction("exclusive", first, second, text)


def _same_spot(a: Mention, b: Mention, graph: KnowledgeGraph) -> bool:
    """Whether two mentions may be about the same place: not on different sides, not in places apart."""
    sides = {s for s in (a.side, b.side) if s in ("left", "right")}
    if len(sides) == 2:
        return False
    if not a.place or not b.place or a.place == b.place:
        return True
    return a.place in around_place(b.place, graph) or b.place in around_place(a.place, graph)


def _denies_less(absent: Mention, present: Mention) -> bool:
    """Whether only a kind is denied: "no large effusion" says nothing against a small one."""
    return bool(absent.attributes) and not set(absent.attributes) <= set(present.attributes)


def _ordered(a: Mention, b: Mention) -> tuple[Mention, Mention]:
    return (a, b) if a.start <= b.start else (b, a)


def _name(m: Mention, graph: KnowledgeGraph) -> str:
    return graph.concepts[m.concept].name if m.concept in graph.concepts else m.concept.replace("_", " ")
