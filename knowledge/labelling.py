"""Report texts -> a table of labels, in the conventions of torchxrayvision and CheXpert."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from knowledge.errors import KnowledgeError
from knowledge.extraction import ReportReader, label_mentions
from knowledge.graph import KnowledgeGraph, write_atomic
from knowledge.ontology import Certainty, Kind
from knowledge.tables import Views

UNCERTAIN = {"empty": "", "-1": "-1", "1": "1", "0": "0"}
"""How an uncertain finding may be written; torchxrayvision leaves it empty (NaN), CheXpert's labeler writes -1."""
ALL = "all"


def label_table(texts: Mapping[str, str], graph: KnowledgeGraph, view: str, uncertain: str, out: Path) -> int:
    """Writes a CSV with a row a report and a column a label.

    Args:
        texts: report by id.
        graph: whose terms and views are used.
        view: a view of the graph, or "all" for every finding by its id.
        uncertain: "empty", "-1", "1" or "0".
        out: CSV file; first column `id`, then the labels as the view names them.

    Returns:
        How many reports were labelled.

    Raises:
        KnowledgeError: no such view or convention.
    """
    if uncertain not in UNCERTAIN:
        raise KnowledgeError(f"--uncertain {uncertain!r}: choose one of {', '.join(UNCERTAIN)}")
    graph = with_view_of_all(graph) if view == ALL else graph
    if view not in graph.views:
        raise KnowledgeError(f"no view {view!r}; choose one of {', '.join([*graph.views, ALL])}")
    labels = list(graph.views[view])
    value = {Certainty.PRESENT: "1", Certainty.ABSENT: "0", Certainty.UNCERTAIN: UNCERTAIN[uncertain], None: ""}
    reader = ReportReader(graph)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", *labels])
    for id, text in texts.items():
        said = label_mentions(reader.read(text), graph, view)
        writer.writerow([id, *(value[said.get(label)] for label in labels)])
    write_atomic(out, buffer.getvalue())
    return len(texts)


def with_view_of_all(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The graph with a view "all" of every finding by id; a finding counts for what it is a kind of, too."""
    views: Views = {**graph.views, ALL: {id: (id,) for id in graph.of_kind(Kind.FINDING)}}
    return KnowledgeGraph(graph.concepts, graph.edges, views, graph.version, check=False)
