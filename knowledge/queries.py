"""Questions that a person asks of a graph: find a concept, a path, counts, what differs, the surroundings."""

from __future__ import annotations

import difflib
from collections import Counter, deque

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Edge, Kind
from knowledge.text import phrase_key


def find(graph: KnowledgeGraph, term: str) -> str:
    """The id of the concept that a term names.

    Args:
        graph: where to look.
        term: an id, a name, a synonym, an adjective form or a cross-reference, in any case and number.

    Raises:
        KnowledgeError: nothing has that name; the nearest terms are listed.
    """
    if term in graph.concepts:
        return term
    key = phrase_key(term)
    names: dict[str, str] = {}
    for c in graph.concepts.values():
        if term in c.xrefs:
            return c.id
        for t in graph.terms(c.id):
            names.setdefault(phrase_key(t), c.id)
    if key in names:
        return names[key]
    near = difflib.get_close_matches(key, list(names), n=4, cutoff=0.6)
    hint = f"; did you mean {', '.join(repr(n) for n in near)}?" if near else ""
    raise KnowledgeError(f"no concept is called {term!r}{hint}")


def path(graph: KnowledgeGraph, start: str, end: str) -> list[tuple[Edge, bool]]:
    """The shortest chain of edges between two concepts, directions ignored.

    Args:
        graph: where to look.
        start, end: concept ids.

    Returns:
        (edge, whether it is walked from its source to its target), in order; empty when the two are one.

    Raises:
        KnowledgeError: an id is unknown, or no chain joins them.
    """
    for id in (start, end):
        if id not in graph.concepts:
            raise KnowledgeError(f"no concept {id!r} in the graph")
    steps: dict[str, list[tuple[str, Edge, bool]]] = {}
    for e in graph.edges:
        steps.setdefault(e.source, []).append((e.target, e, True))
        steps.setdefault(e.target, []).append((e.source, e, False))
    came: dict[str, tuple[str, Edge, bool]] = {}
    # "no abnormality" touches every finding, so a chain through it says nothing
    queue, seen = deque([start]), {start, *({"normal", "other_finding"} - {end})}
    while queue and end not in seen:
        here = queue.popleft()
        for there, edge, forward in steps.get(here, ()):
            if there not in seen:
                seen.add(there)
                came[there] = (here, edge, forward)
                queue.append(there)
    if end not in seen:
        raise KnowledgeError(f"nothing joins {start!r} and {end!r}")
    chain: list[tuple[Edge, bool]] = []
    while end != start:
        end, edge, forward = came[end]
        chain.append((edge, forward))
    return chain[::-1]


def statistics(graph: KnowledgeGraph) -> dict[str, int | str]:
    """Counts that describe a graph, by name, in the order in which they are shown."""
    concepts = graph.concepts.values()
    out: dict[str, int | str] = {"version": graph.version, "hash": graph.hash}
    for kind in Kind:
        out[{"finding": "findings", "anatomy": "places", "attribute": "attributes"}[kind.value]] = len(
            graph.of_kind(kind)
        )
    out["terms"] = sum(len(graph.terms(c.id)) for c in concepts)
    out["synonyms"] = sum(len(c.synonyms) for c in concepts)
    out["adjective forms"] = sum(len(c.adjectives) for c in concepts)
    for prefix, n in sorted(Counter(x.split(":")[0] for c in concepts for x in c.xrefs).items()):
        out[f"cross-references to {prefix}"] = n
    for relation, n in sorted(Counter(e.relation.value for e in graph.edges).items()):
        out[f"edges {relation}"] = n
    for view, labels in graph.views.items():
        out[f"labels of view {view}"] = len(labels)
    return out


def difference(old: KnowledgeGraph, new: KnowledgeGraph) -> list[str]:
    """What changed from one graph to another, one line a change: "+", "-" or "~" first."""
    out = []
    for id in sorted(old.concepts.keys() | new.concepts.keys()):
        a, b = old.concepts.get(id), new.concepts.get(id)
        if a is None or b is None:
            there = b or a
            assert there is not None
            out.append(f"{'+' if a is None else '-'} {there.kind.value} {id}: {there.name}")
        elif a != b:
            for name in ("name", "kind", "synonyms", "adjectives", "xrefs", "source"):
                x, y = getattr(a, name), getattr(b, name)
                if x != y:
                    out.append(f"~ {id}: {name} {_change(x, y)}")
    before = {(e.source, e.relation.value, e.target): e for e in old.edges}
    after = {(e.source, e.relation.value, e.target): e for e in new.edges}
    for key in sorted(before.keys() | after.keys()):
        x, y = before.get(key), after.get(key)
        if x is None or y is None:
            out.append(f"{'+' if x is None else '-'} edge {' '.join(key)}")
        elif x.weight != y.weight:
            out.append(f"~ edge {' '.join(key)}: weight {x.weight:g} -> {y.weight:g}")
    for view in sorted(old.views.keys() | new.views.keys()):
        if list(old.views.get(view, {}).items()) != list(new.views.get(view, {}).items()):
            out.append(f"~ view {view}")
    return out


def _change(x: object, y: object) -> str:
    if isinstance(x, tuple) and isinstance(y, tuple):
        gone = [f"-{v}" for v in x if v not in y]
        come = [f"+{v}" for v in y if v not in x]
        return " ".join(gone + come) or "in another order"
    return f"{x!s} -> {y!s}"


def around(graph: KnowledgeGraph, id: str, depth: int = 1, limit: int = 30) -> KnowledgeGraph:
    """The graph of a concept and its neighbours, the strongest edges first.

    Args:
        graph: where to look.
        id: the middle.
        depth: how many edges away.
        limit: how many concepts at most, the middle included.
    """
    keep = [id]
    frontier = [id]
    for _ in range(depth):
        near: list[tuple[float, str]] = []
        for e in graph.edges:
            for here, there in ((e.source, e.target), (e.target, e.source)):
                if here in frontier and there not in keep:
                    near.append((-e.weight, there))
        frontier = list(dict.fromkeys(there for _, there in sorted(near, key=lambda n: n[0])))[
            : max(0, limit - len(keep))
        ]
        keep += frontier
    return graph.subgraph(keep)
