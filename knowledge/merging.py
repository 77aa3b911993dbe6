"""Joins concepts and edges of several sources into one sound graph; what does not fit is refused, and told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from knowledge.concept_graph import ConceptGraph, reached
from knowledge.ontology import Concept, Edge, Kind, Relation
from knowledge.tables import Content
from knowledge.text import phrase_key


@dataclass(frozen=True, slots=True)
class Conflict:
    """Where two sources disagree, and what was done.

    Args:
        kind: "term", "name", "kind", "edge", "cycle" or "exclusion".
        message: one line for a person.
    """

    kind: str
    message: str


def merged(base: ConceptGraph, other: ConceptGraph | Content) -> tuple[Content, list[Conflict]]:
    """Adds concepts and edges to a graph's; where they disagree the graph stands.

    Args:
        base: the graph that wins.
        other: a graph, or content as read from a source.

    Returns:
        The content of both, and every conflict with what was done about it.
    """
    merger = Merger(base)
    for concept in other.concepts.values():
        merger.add_concept(concept)
    for edge in other.edges:
        merger.add_edge(edge)
    views = {**other.views, **base.views}
    views = {v: {label: tuple(merger.id_of(i) for i in ids) for label, ids in ls.items()} for v, ls in views.items()}
    concepts, edges = merger.content()
    return Content(concepts, edges, views, base.version), merger.conflicts


class Merger:
    """Adds to a graph, keeping every term of one concept and every hierarchy free of circles.

    Args:
        base: the graph that wins where sources disagree.
    """

    def __init__(self, base: ConceptGraph) -> None:
        self.conflicts: list[Conflict] = []
        self._concepts = dict(base.concepts)
        self._edges: dict[tuple[str, str, str], Edge] = {(e.source, e.relation.value, e.target): e for e in base.edges}
        self._owner: dict[str, str] = {}
        self._xref: dict[str, str] = {}
        self._renamed: dict[str, str] = {}
        self._up: dict[str, dict[str, set[str]]] = {Relation.IS_A.value: {}, Relation.PART_OF.value: {}}
        for c in base.concepts.values():
            self._index(c)
        for e in base.edges:
            if e.relation.value in self._up:
                self._up[e.relation.value].setdefault(e.source, set()).add(e.target)

    def id_of(self, id: str) -> str:
        """Under which id a concept of an added source now stands."""
        return self._renamed.get(id, id)

    def add_concept(self, c: Concept) -> None:
        """Adds a concept, or joins it with the one that has its id, its cross-reference or its name."""
        here = self._home(c)
        if here is None:
            terms = (*c.synonyms, *c.adjectives)
            kept = [t for t in terms if self._free(t, c.id, c)]
            new = replace(
                c,
                synonyms=tuple(t for t in c.synonyms if t in kept),
                adjectives=tuple(t for t in c.adjectives if t in kept),
            )
            self._concepts[c.id] = new
            self._renamed[c.id] = c.id
            self._index(new)
            return
        self._renamed[c.id] = here
        old = self._concepts[here]
        if old.kind is not c.kind:
            kinds = f"{old.kind.value} in one source and {c.kind.value} in another"
            self._tell("kind", f"{here!r} is {kinds}; kept as {old.kind.value}")
        candidates = (*c.synonyms, c.name)
        synonyms = [t for t in candidates if phrase_key(t) != phrase_key(old.name) and self._free(t, here, c)]
        adjectives = [t for t in c.adjectives if self._free(t, here, c)]
        source = old.source if c.source in old.source else f"{old.source}; {c.source}"
        joined = replace(
            old,
            synonyms=tuple(dict.fromkeys((*old.synonyms, *synonyms))),
            adjectives=tuple(dict.fromkeys((*old.adjectives, *adjectives))),
            xrefs=tuple(dict.fromkeys((*old.xrefs, *c.xrefs))),
            source=source,
        )
        self._concepts[here] = joined
        self._index(joined)

    def add_edge(self, e: Edge) -> None:
        """Adds an edge unless it closes a circle, contradicts an exclusion, or repeats one with another weight."""
        edge = replace(e, source=self.id_of(e.source), target=self.id_of(e.target))
        name = f"{edge.source} {edge.relation.value} {edge.target}"
        key = (edge.source, edge.relation.value, edge.target)
        if edge.source == edge.target:
            self._tell("edge", f"{name}: both ends are now one concept; left out")
            return
        if key in self._edges:
            old = self._edges[key]
            if old.weight != edge.weight:
                self._tell("edge", f"{name}: weight {old.weight:g} or {edge.weight:g}; kept {old.weight:g}")
            return
        ups = self._up.get(edge.relation.value)
        if ups is not None and edge.source in reached(edge.target, ups):
            self._tell("cycle", f"{name} would close a circle ({edge.provenance}); left out")
            return
        if edge.relation is Relation.LOCATED_IN and self._kind(edge.target) is not Kind.ANATOMY:
            self._tell("kind", f"{name}: {edge.target!r} is not a place; left out")
            return
        if edge.relation is Relation.EXCLUDES and edge.target in reached(edge.source, self._up["is_a"]):
            self._tell("exclusion", f"{name}: one is a kind of the other; left out")
            return
        self._edges[key] = edge
        if ups is not None:
            ups.setdefault(edge.source, set()).add(edge.target)

    def content(self) -> tuple[dict[str, Concept], list[Edge]]:
        """All concepts and edges; a finding that no source places is placed in the body as a whole."""
        draft = ConceptGraph(self._concepts, self._edges.values())
        homeless = [i for i in draft.of_kind(Kind.FINDING) if not draft.places(i)]
        if homeless:
            if "body" not in self._concepts:
                self._concepts["body"] = Concept("body", "body", Kind.ANATOMY, source="added by the merge")
            for id in homeless:
                edge = Edge(id, "body", Relation.LOCATED_IN, 1.0, "no source states a place")
                self._edges[(id, "located_in", "body")] = edge
        return self._concepts, list(self._edges.values())

    def _home(self, c: Concept) -> str | None:
        if c.id in self._concepts:
            return c.id
        for xref in (c.id, *c.xrefs):
            if xref in self._xref:
                return self._xref[xref]
        return self._owner.get(phrase_key(c.name))

    def _free(self, term: str, id: str, c: Concept) -> bool:
        """Whether a term may name `id`; if another concept has it, that is a conflict."""
        owner = self._owner.get(phrase_key(term))
        if owner in (None, id):
            return True
        self._tell(
            "term", f"{term!r} names {owner!r} here and {id!r} in {c.source or 'the added source'}; kept for {owner!r}"
        )
        return False

    def _index(self, c: Concept) -> None:
        for term in (c.name, *c.synonyms, *c.adjectives):
            self._owner.setdefault(phrase_key(term), c.id)
        for xref in c.xrefs:
            self._xref.setdefault(xref, c.id)

    def _kind(self, id: str) -> Kind | None:
        return self._concepts[id].kind if id in self._concepts else None

    def _tell(self, kind: str, message: str) -> None:
        self.conflicts.append(Conflict(kind, message))
