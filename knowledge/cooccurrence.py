"""Weighted `associated_with` edges from which findings are present together in a corpus of reports.

For findings a and b present in n_a, n_b and, both, n_ab of N reports, lift = n_ab N / (n_a n_b). The weight of the edge
is the normalised pointwise mutual information, ln(lift) / -ln(n_ab / N): 0 when independent, 1 when never one without
the other (Bouma 2009). Pairs of which one is a kind of the other are left out: that they occur together says nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import combinations

from knowledge.errors import KnowledgeError
from knowledge.extraction import ReportReader
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty, Edge, Relation

NOT_COUNTED = ("normal", "other_finding")


def cooccurrence(
    texts: Iterable[str], graph: KnowledgeGraph, corpus: str, min_count: int = 5, min_lift: float = 1.5
) -> list[Edge]:
    """Counts findings that are present together.

    Args:
        texts: one report each.
        graph: whose findings are read.
        corpus: name of the corpus, for the provenance.
        min_count: reports in which both must be present, at least 1.
        min_lift: how many times more often than by chance, above 1.

    Returns:
        Edges by falling weight; the provenance states counts and lift.

    Raises:
        KnowledgeError: no text, or limits out of range.
    """
    if min_count < 1 or min_lift <= 1.0:
        raise KnowledgeError(f"min_count {min_count} must be at least 1 and min_lift {min_lift:g} above 1")
    reader = ReportReader(graph)
    counted = graph.concepts.keys() - set(NOT_COUNTED)
    single: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    total = 0
    for text in texts:
        total += 1
        said = {
            m.concept
            for m in reader.read(text)
            if m.certainty is Certainty.PRESENT and m.change != "past" and m.concept in counted
        }
        single.update(said)
        pairs.update(combinations(sorted(said), 2))
    if not total:
        raise KnowledgeError(f"{corpus}: holds no report to count in")
    edges = []
    for (a, b), both in pairs.items():
        lift = both * total / (single[a] * single[b])
        if both < min_count or lift < min_lift or a in graph.ancestors(b) or b in graph.ancestors(a):
            continue
        weight = 1.0 if both == total else math.log(lift) / -math.log(both / total)
        counts = f"both in {both}, {a} in {single[a]}, {b} in {single[b]} of {total} reports, lift {lift:.2f}"
        edge = Edge(a, b, Relation.ASSOCIATED_WITH, round(min(1.0, weight), 4), f"co-occurrence in {corpus}: {counts}")
        edges.append(edge)
    return sorted(edges, key=lambda e: (-e.weight, e.source, e.target))
