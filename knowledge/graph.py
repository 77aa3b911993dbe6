"""The knowledge graph: a concept graph that is checked, read, saved, hashed, joined with others, given to networkx.

The order of a view is part of the graph's content and so of its hash.
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
from knowledge.concept_graph import ConceptGraph
from knowledge.errors import KnowledgeError, at
from knowledge.merging import merged
from knowledge.ontology import Concept, Edge, Relation
from knowledge.validation import faults

RESOURCES = Path(__file__).parent / "resources"


class KnowledgeGraph(ConceptGraph):
    """Medical concepts and what connects them.

    Args:
        concepts, edges, views, version: as in `ConceptGraph`.
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
        super().__init__(concepts, edges, views, version)
        if check:
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
        return tables.read_graph_json(path)

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

    @cached_property
    def exclusion_weights(self) -> dict[tuple[str, str], float]:
        """(source, target) of each exclusion as it stands in the graph -> its weight."""
        return {(e.source, e.target): e.weight for e in self.edges if e.relation is Relation.EXCLUDES}

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
        content, _ = merged(self, other)
        return KnowledgeGraph(content.concepts, content.edges, content.views, content.version, check=False)

    def save(self, path: Path) -> None:
        """Writes the JSON form, whole or not at all."""
        content = tables.to_json(self.concepts, self.edges, self.views, self.version)
        content["hash"] = self.hash
        write_atomic(Path(path), json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def validate(self) -> list[str]:
        """What is wrong with the graph, one line a fault; an empty list says that it is sound."""
        return [fault.message for fault in faults(self)]


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file through a temporary one beside it, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # a temporary file is its owner's alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
