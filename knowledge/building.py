"""Builds a graph: a base, other people's files on top, and edges counted in reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from knowledge.cooccurrence import cooccurrence
from knowledge.errors import at
from knowledge.graph import KnowledgeGraph
from knowledge.imported import Imported
from knowledge.merging import Conflict
from knowledge.sources import merge, read_source
from knowledge.tables import Content
from knowledge.validation import located_faults


@dataclass(slots=True)
class Built:
    """What `build` made.

    Args:
        graph: sound, and larger than the base or equal to it.
        conflicts: every point on which two sources disagree, without repeats.
        summary: one line a source.
    """

    graph: KnowledgeGraph
    conflicts: list[Conflict] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


def build(
    base: KnowledgeGraph,
    sources: Sequence[Path],
    reports: tuple[Sequence[str], str] | None = None,
    min_count: int = 5,
    min_lift: float = 1.5,
    version: str | None = None,
) -> Built:
    """Merges sources into a base, in the order given; the base and earlier sources win.

    Args:
        base: graph to start from.
        sources: files and folders (forms: `knowledge.sources`).
        reports: (texts, name of the corpus) to count co-occurrence in.
        min_count, min_lift: limits of `cooccurrence`.
        version: of the result; None: the base's, marked as built on.

    Returns:
        The graph and what to tell about it.

    Raises:
        KnowledgeError: a source is broken in itself (a circle, an unknown relation, a duplicate id, a synonym of two of
            its own concepts): file and line are named.
    """
    built = Built(base)
    for source in sources:
        for imported in read_source(source):
            _check(imported)
            _add(built, imported)
    if reports is not None:
        texts, corpus = reports
        content = Content(edges=cooccurrence(texts, built.graph, corpus, min_count, min_lift))
        _add(built, Imported(Path(corpus), content, "co-occurrence"))
    g = built.graph
    built.graph = KnowledgeGraph(g.concepts, g.edges, g.views, version or f"{base.version}+built", check=True)
    built.conflicts = list(dict.fromkeys(built.conflicts))
    return built


def _check(imported: Imported) -> None:
    """Refuses a source with a circle of its own making, and a table of concepts with a synonym clash.

    Ontologies and triples may name two things alike ("gallstone", "gallstones"): the merge joins them and reports it.
    """
    content = imported.content
    graph = KnowledgeGraph(content.concepts, content.edges, {}, check=False)
    own_synonyms = imported.kind in ("tables", "json", "concept table", "keywords")
    kinds = ("circle", "clash") if own_synonyms else ("circle",)
    for message in located_faults(graph, content, kinds):
        raise at(None, None, message)


def _add(built: Built, imported: Imported) -> None:
    before = built.graph
    built.graph, conflicts = merge(before, imported.content)
    _refuse_loose_ends(built.graph, imported)
    built.conflicts += conflicts
    concepts = len(built.graph.concepts) - len(before.concepts)
    edges = len(built.graph.edges) - len(before.edges)
    skipped = sum(imported.skipped.values())
    line = f"{imported.path.name} ({imported.kind}): {len(imported.content.concepts)} concepts and "
    line += f"{len(imported.content.edges)} edges read, {concepts} and {edges} new, {len(conflicts)} conflicts"
    if skipped:
        most = max(imported.skipped, key=lambda k: imported.skipped[k])
        line += f", {skipped} entries left out (most: {most})"
    built.summary.append(line)


def _refuse_loose_ends(graph: KnowledgeGraph, imported: Imported) -> None:
    """An edge of a source may point into the base, but not at nothing."""
    own = imported.content.concepts
    for index, e in enumerate(imported.content.edges):
        for end in (e.source, e.target):
            if end not in own and end not in graph.concepts:
                place = imported.content.lines.get(index, (str(imported.path), None))
                text = f"edge {e.source} {e.relation.value} {e.target}: no concept {end!r}; add it or remove the edge"
                raise at(place[0], place[1], text)
