"""What makes a graph sound: known ends, no circle, one meaning a term, a place for every finding.

A fault carries the concepts and the edge that it concerns, so that a file reader can name the line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from knowledge.concept_graph import ConceptGraph
from knowledge.ontology import Concept, Edge, Kind, Relation
from knowledge.tables import Content
from knowledge.text import phrase_key


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Args:
        message: one line for a person.
        concepts: ids concerned, the one to correct first.
        edge: the edge concerned.
        kind: "circle" or "clash" for the faults that a source can have in itself.
    """

    message: str
    concepts: tuple[str, ...] = ()
    edge: Edge | None = None
    kind: str = ""

    def keys(self, content: Content) -> list[str | int]:
        """Keys of `content.lines` under which the fault may have been read, the best first."""
        edges: list[str | int] = []
        if self.edge is not None:
            same = (self.edge.source, self.edge.target, self.edge.relation)
            edges = [i for i, e in enumerate(content.edges) if (e.source, e.target, e.relation) == same]
        return edges + list(self.concepts)


def faults(graph: ConceptGraph) -> Iterator[Fault]:
    """Every fault of a graph, lazily: the first is the one that `load` reports."""
    yield from _unknown_ends(graph)
    yield from _circles(graph)
    yield from _shared_terms(graph)
    yield from _findings_without_place(graph)
    yield from _exclusions(graph)
    yield from _missing_provenance(graph)


def located_faults(graph: ConceptGraph, content: Content, kinds: tuple[str, ...] = ()) -> list[str]:
    """Faults as messages that start with file and line where these are known.

    Args:
        graph: made from `content`.
        content: remembers the lines.
        kinds: only faults of these kinds; () for all.
    """
    out = []
    for fault in faults(graph):
        if not kinds or fault.kind in kinds:
            place = next((content.lines[key] for key in fault.keys(content) if key in content.lines), None)
            out.append(f"{place[0]}:{place[1]}: {fault.message}" if place else fault.message)
    return out


def _unknown_ends(graph: ConceptGraph) -> Iterator[Fault]:
    for e in graph.edges:
        for end in (e.source, e.target):
            if end not in graph.concepts:
                text = f"edge {e.source} {e.relation.value} {e.target}: no concept {end!r}; add it or remove the edge"
                yield Fault(text, (), e)
    for view, labels in graph.views.items():
        for label, ids in labels.items():
            for id in ids:
                if id not in graph.concepts:
                    yield Fault(f"view {view!r}, label {label!r}: no concept {id!r} in the graph")


def _circles(graph: ConceptGraph) -> Iterator[Fault]:
    for relation in (Relation.IS_A, Relation.PART_OF):
        steps: dict[str, list[str]] = {}
        for e in graph.edges:
            if e.relation is relation:
                steps.setdefault(e.source, []).append(e.target)
        circle = find_circle(steps)
        if circle:
            edge = Edge(circle[-2], circle[-1], relation)
            text = f"cycle in {relation.value}: {' -> '.join(circle)}; remove one of its edges"
            yield Fault(text, (circle[-2],), edge, "circle")


def find_circle(steps: dict[str, list[str]]) -> list[str]:
    """A path that returns to its start, [a, b, ..., a]; empty when there is none."""
    state: dict[str, int] = {}  # 1: on the path, 2: done
    for start in steps:
        if start in state:
            continue
        path, stack = [start], [iter(steps.get(start, ()))]
        state[start] = 1
        while stack:
            node = next(stack[-1], None)
            if node is None:
                state[path.pop()] = 2
                stack.pop()
            elif state.get(node) == 1:
                return [*path[path.index(node) :], node]
            elif node not in state:
                state[node] = 1
                path.append(node)
                stack.append(iter(steps.get(node, ())))
    return []


def term_clashes(graph: ConceptGraph) -> Iterator[tuple[str, str, str]]:
    """(term, first id, second id) for terms that name two concepts of the same kind, or a finding and a place.

    An adjective of a place ("pleural") may equal a term elsewhere only when that is an adjective too; a synonym never.
    """
    owner: dict[str, tuple[str, bool]] = {}
    for c in graph.concepts.values():
        for term, is_adjective in _terms(c):
            key = phrase_key(term)
            if key in owner and owner[key][0] != c.id:
                if not (is_adjective and owner[key][1]):
                    yield term, owner[key][0], c.id
            else:
                owner.setdefault(key, (c.id, is_adjective))


def _terms(c: Concept) -> Iterator[tuple[str, bool]]:
    for term in (c.name, *c.synonyms):
        yield term, False
    for term in c.adjectives:
        yield term, True


def _shared_terms(graph: ConceptGraph) -> Iterator[Fault]:
    for term, first, second in term_clashes(graph):
        yield Fault(
            f"synonym clash: {term!r} names both {first!r} and {second!r}; keep it in one",
            (second, first),
            kind="clash",
        )


def _findings_without_place(graph: ConceptGraph) -> Iterator[Fault]:
    for id in graph.of_kind(Kind.FINDING):
        if not graph.places(id):
            yield Fault(f"finding {id!r} has no place; add located_in to it or to what it is_a", (id,))
    for e in graph.edges:
        target = graph.concepts.get(e.target)
        if e.relation is Relation.LOCATED_IN and target is not None and target.kind is not Kind.ANATOMY:
            yield Fault(f"{e.source} located_in {e.target}: {e.target!r} is not a place", (), e)


def _exclusions(graph: ConceptGraph) -> Iterator[Fault]:
    pairs = graph.exclusions()
    for e in graph.edges:
        if e.relation is not Relation.EXCLUDES:
            continue
        if (e.target, e.source) not in pairs:
            yield Fault(f"{e.source} excludes {e.target} is not symmetric", (), e)
        elif e.target in graph.ancestors(e.source):
            yield Fault(f"{e.source} excludes {e.target}, which it is a kind of", (), e)


def _missing_provenance(graph: ConceptGraph) -> Iterator[Fault]:
    for c in graph.concepts.values():
        if not c.source:
            yield Fault(f"concept {c.id!r} states no source; fill the column 'source'", (c.id,))
    for e in graph.edges:
        if not e.provenance:
            yield Fault(f"edge {e.source} {e.relation.value} {e.target} states no provenance", (), e)
