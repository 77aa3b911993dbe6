"""The knowledge graph: concepts and typed, weighted edges over a networkx multigraph, with named label views.

Directions. An edge reads as a sentence: `atelectasis is_a parenchymal_finding`, `left_lung part_of thorax`,
`pneumonia located_in lung`, `consolidation suggests pneumonia`. `excludes` is stored in both directions.

A view is a named, ordered label list (`views["openi20"]["cicatrix"] == ("scar",)`): a label stands for its concepts and
for everything below them by `is_a`. The order of a view is part of the graph's content and so of its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import networkx as nx

from knowledge import tables
from knowledge.errors import KnowledgeError, at
from knowledge.ontology import Concept, Edge, Kind, Relation

RESOURCES = Path(__file__).parent / "resources"


class KnowledgeGraph:
    """Medical concepts and what connects them.

    Args:
        concepts: by id.
        edges: any order; `excludes` may be given in one direction and is completed.
        views: view -> label -> concept ids.
        version: a person's name for this content; the hash identifies it.
        check: refuse content that `validate` finds wrong.

    Raises:
        KnowledgeError: an edge or a view names an unknown concept, or `check` finds a fault; the first fault is named.
    """

    def __init__(
        self,
        concepts: dict[str, Concept],
        edges: Iterable[Edge] = (),
        views: tables.Views | None = None,
        version: str = "0",
        check: bool = True,
    ) -> None:
        self.concepts = dict(concepts)
        self.edges: tuple[Edge, ...] = _canonical_edges(edges)
        self.views: tables.Views = {view: dict(labels) for view, labels in (views or {}).items()}
        self.version = version
        self._up: dict[str, set[str]] = {}
        self._down: dict[str, set[str]] = {}
        self._descendants: dict[str, frozenset[str]] = {}
        for edge in self.edges:
            if edge.relation is Relation.IS_A:
                self._up.setdefault(edge.source, set()).add(edge.target)
                self._down.setdefault(edge.target, set()).add(edge.source)
        if check:
            from knowledge.validation import faults

            for fault in faults(self):
                raise KnowledgeError(fault.message)

    @classmethod
    def load(cls, path: Path | None = None) -> KnowledgeGraph:
        """Reads a graph.

        Args:
            path: a folder of tables or a JSON file (layouts: `knowledge.tables`); None for the graph that ships.

        Returns:
            The checked graph.

        Raises:
            KnowledgeError: the content is wrong; the message starts with the file and, in tables, the line.
        """
        content = cls.read(path)
        graph = cls(content.concepts, content.edges, content.views, content.version, check=False)
        from knowledge.validation import faults

        for fault in faults(graph):
            place = next((content.lines[key] for key in fault.keys(content) if key in content.lines), None)
            raise at(place[0] if place else path, place[1] if place else None, fault.message)
        return graph

    @staticmethod
    def read(path: Path | None = None) -> tables.Content:
        """The content of a graph file, parsed and not yet checked; see `load`."""
        path = RESOURCES if path is None else Path(path)
        if path.is_dir():
            return tables.read_folder(path)
        return tables.parse_json(tables.read_json(path), path)

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical content (concepts, edges, views; the version is left out), in hexadecimal."""
        content = tables.to_json(self.concepts, self.edges, self.views, "")
        canonical = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def nx(self) -> nx.MultiDiGraph:
        """The same graph for networkx: nodes carry `name` and `kind`; edges `relation`, `weight`, `provenance`."""
        graph = nx.MultiDiGraph(version=self.version, hash=self.hash)
        for c in self.concepts.values():
            graph.add_node(c.id, name=c.name, kind=c.kind.value)
        for e in self.edges:
            attributes = {"relation": e.relation.value, "weight": e.weight, "provenance": e.provenance}
            graph.add_edge(e.source, e.target, key=e.relation.value, **attributes)
        return graph

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

    def label_of(self, view: str) -> dict[str, tuple[str, ...]]:
        """Concept id -> the labels of a view that it counts for, `is_a` closure included.

        Raises:
            KnowledgeError: no such view; the message lists those there are.
        """
        if view not in self.views:
            raise KnowledgeError(f"no view {view!r} in the graph; there are {', '.join(sorted(self.views)) or 'none'}")
        labels: dict[str, list[str]] = {}
        for label, ids in self.views[view].items():
            for id in sorted(set().union(*(self.descendants(i) for i in ids))):
                labels.setdefault(id, []).append(label)
        return {id: tuple(names) for id, names in labels.items()}

    def subgraph(self, ids: Iterable[str]) -> KnowledgeGraph:
        """The graph of some concepts and the edges among them; views keep the labels whose concepts all remain."""
        keep = {self._concept(i).id for i in ids}
        views = {
            view: {label: c for label, c in labels.items() if set(c) <= keep} for view, labels in self.views.items()
        }
        return KnowledgeGraph(
            {i: c for i, c in self.concepts.items() if i in keep},
            [e for e in self.edges if e.source in keep and e.target in keep],
            {view: labels for view, labels in views.items() if labels},
            self.version,
            check=False,
        )

    def merge(self, other: KnowledgeGraph) -> KnowledgeGraph:
        """This graph with another's concepts and edges added; where both say something of one id, this graph wins.

        Conflicts are not reported here: `knowledge.sources.merge` does so and is what `vlm knowledge build` calls.
        """
        from knowledge.sources import merge

        return merge(self, other)[0]

    def save(self, path: Path) -> None:
        """Writes the JSON form, whole or not at all."""
        content = tables.to_json(self.concepts, self.edges, self.views, self.version)
        content["hash"] = self.hash
        write_atomic(Path(path), json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def validate(self) -> list[str]:
        """What is wrong with the graph, one line a fault; an empty list says that it is sound."""
        from knowledge.validation import faults

        return [fault.message for fault in faults(self)]

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
        self._concept(id)
        seen, stack = {id}, [id]
        while stack:
            for x in step.get(stack.pop(), ()):
                if x not in seen:
                    seen.add(x)
                    stack.append(x)
        return frozenset(seen)


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file through a temporary one beside it, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _canonical_edges(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """One edge per (source, relation, target), the first one given; exclusions in both directions."""
    kept: dict[tuple[str, str, str], Edge] = {}
    for e in edges:
        kept.setdefault((e.source, e.relation.value, e.target), e)
        if e.relation is Relation.EXCLUDES:
            back = Edge(e.target, e.source, e.relation, e.weight, e.provenance)
            kept.setdefault((back.source, back.relation.value, back.target), back)
    return tuple(kept.values())
