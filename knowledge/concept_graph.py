"""Concepts and typed, weighted edges as they stand, right or wrong, with named label views.

Directions. An edge reads as a sentence: `atelectasis is_a parenchymal_finding`, `left_lung part_of thorax`,
`pneumonia located_in lung`, `consolidation suggests pneumonia`. `excludes` is stored in both directions.

A view is a named, ordered label list (`views["openi20"]["cicatrix"] == ("scar",)`): a label stands for its concepts and
for everything below them by `is_a`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from knowledge.errors import KnowledgeError
from knowledge.ontology import Concept, Edge, Kind, Relation
from knowledge.tables import Views


class ConceptGraph:
    """What lies above and below a concept, where it is found and which labels it counts for; not changed once made.

    Args:
        concepts: by id.
        edges: any order; `excludes` may be given in one direction and is completed.
        views: view -> label -> concept ids.
        version: a person's name for this content.
    """

    def __init__(
        self,
        concepts: dict[str, Concept],
        edges: Iterable[Edge] = (),
        views: Views | None = None,
        version: str = "0",
    ) -> None:
        self.concepts = dict(concepts)
        self.edges: tuple[Edge, ...] = _canonical_edges(edges)
        self.views: Views = {view: dict(labels) for view, labels in (views or {}).items()}
        self.version = version
        self._up: dict[str, set[str]] = {}
        self._down: dict[str, set[str]] = {}
        self._descendants: dict[str, frozenset[str]] = {}
        self._labels_of: dict[str, dict[str, tuple[str, ...]]] = {}
        for edge in self.edges:
            if edge.relation is Relation.IS_A:
                self._up.setdefault(edge.source, set()).add(edge.target)
                self._down.setdefault(edge.target, set()).add(edge.source)

    def descendants(self, id: str) -> frozenset[str]:
        """Everything that is a kind of `id`, itself included."""
        if id not in self._descendants:
            self._descendants[id] = self._closure(id, self._down)
        return self._descendants[id]

    def ancestors(self, id: str) -> frozenset[str]:
        """Everything that `id` is a kind of, itself included."""
        return self._closure(id, self._up)

    def terms(self, id: str) -> tuple[str, ...]:
        """Every way in which `id` is written: the preferred term, synonyms, adjective forms."""
        c = self._concept(id)
        return tuple(dict.fromkeys((c.name, *c.synonyms, *c.adjectives)))

    def places(self, id: str) -> tuple[str, ...]:
        """Where `id` is found: its own `located_in`, else its nearest ancestors'."""
        self._concept(id)
        level, seen = [id], {id}
        while level:
            found = [e.target for x in level for e in self._located.get(x, ())]
            if found:
                return tuple(dict.fromkeys(found))
            level = sorted({p for x in level for p in self._up.get(x, ())} - seen)  # a draft may hold a circle
            seen.update(level)
        return ()

    def exclusions(self) -> frozenset[tuple[str, str]]:
        """Pairs that cannot both be present, as ordered pairs in both directions."""
        return frozenset((e.source, e.target) for e in self.edges if e.relation is Relation.EXCLUDES)

    def label_of(self, view: str) -> Mapping[str, tuple[str, ...]]:
        """Concept id -> the labels of a view that it counts for, `is_a` closure included; made once a view.

        Raises:
            KnowledgeError: no such view; the message lists those there are.
        """
        if view not in self.views:
            raise KnowledgeError(f"no view {view!r} in the graph; there are {', '.join(sorted(self.views)) or 'none'}")
        if view not in self._labels_of:
            labels: dict[str, list[str]] = {}
            for label, ids in self.views[view].items():
                for id in sorted(set().union(*(self.descendants(i) for i in ids))):
                    labels.setdefault(id, []).append(label)
            self._labels_of[view] = {id: tuple(names) for id, names in labels.items()}
        return self._labels_of[view]

    def of_kind(self, kind: Kind) -> tuple[str, ...]:
        """Ids of the concepts of a kind, in the order of the file."""
        return tuple(i for i, c in self.concepts.items() if c.kind is kind)

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Concept id -> what it is part of, directly."""
        parts: dict[str, tuple[str, ...]] = {}
        for e in self.edges:
            if e.relation is Relation.PART_OF:
                parts[e.source] = (*parts.get(e.source, ()), e.target)
        return parts

    @cached_property
    def _located(self) -> dict[str, list[Edge]]:
        located: dict[str, list[Edge]] = {}
        for e in self.edges:
            if e.relation is Relation.LOCATED_IN:
                located.setdefault(e.source, []).append(e)
        return located

    def _concept(self, id: str) -> Concept:
        if id not in self.concepts:
            raise KnowledgeError(f"no concept {id!r} in the graph")
        return self.concepts[id]

    def _closure(self, id: str, step: dict[str, set[str]]) -> frozenset[str]:
        return frozenset(reached(self._concept(id).id, step))


def reached(id: str, step: Mapping[str, set[str]]) -> set[str]:
    """Everything that steps lead to from `id`, itself included."""
    seen, stack = {id}, [id]
    while stack:
        for x in step.get(stack.pop(), ()):
            if x not in seen:
                seen.add(x)
                stack.append(x)
    return seen


def _canonical_edges(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """One edge per (source, relation, target), the first one given; exclusions in both directions."""
    kept: dict[tuple[str, str, str], Edge] = {}
    for e in edges:
        kept.setdefault((e.source, e.relation.value, e.target), e)
        if e.relation is Relation.EXCLUDES:
            back = Edge(e.target, e.source, e.relation, e.weight, e.provenance)
            kept.setdefault((back.source, back.relation.value, back.target), back)
    return tuple(kept.values())
