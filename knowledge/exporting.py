"""The graph for other programs: GraphML (Gephi, yEd, networkx) and JSON-LD in the SKOS vocabulary."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import networkx as nx

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph, write_atomic
from knowledge.ontology import Relation

SKOS = {Relation.IS_A: "skos:broader", Relation.ASSOCIATED_WITH: "skos:related"}
OBO_PURL = "http://purl.obolibrary.org/obo/"


def export(graph: KnowledgeGraph, out: Path) -> None:
    """Writes a graph in the form that the file's suffix names.

    Args:
        graph: what to write.
        out: `.graphml`, `.jsonld` or `.json` (the project's own form).

    Raises:
        KnowledgeError: another suffix.
    """
    writers = {".graphml": graphml, ".jsonld": jsonld}
    suffix = out.suffix.lower()
    if suffix == ".json":
        graph.save(out)
    elif suffix in writers:
        write_atomic(out, writers[suffix](graph))
    else:
        raise KnowledgeError(f"{out}: export to .graphml, .jsonld or .json")


def graphml(graph: KnowledgeGraph) -> str:
    """GraphML text: nodes with name, kind, terms and source; edges with relation, weight and provenance."""
    plain = nx.MultiDiGraph(version=graph.version, hash=graph.hash)
    for c in graph.concepts.values():
        lists = {"synonyms": "; ".join((*c.synonyms, *c.adjectives)), "xrefs": "; ".join(c.xrefs)}
        plain.add_node(c.id, name=c.name, kind=c.kind.value, source=c.source, **lists)
    for e in graph.edges:
        attributes = {"relation": e.relation.value, "weight": float(e.weight), "provenance": e.provenance}
        plain.add_edge(e.source, e.target, **attributes)
    buffer = io.BytesIO()
    nx.write_graphml(plain, buffer)
    return buffer.getvalue().decode("utf-8")


def jsonld(graph: KnowledgeGraph) -> str:
    """JSON-LD text: `skos:Concept` with labels, matches and relations; a statement an edge holds its weight."""
    nodes = []
    for c in graph.concepts.values():
        node: dict[str, Any] = {
            "@id": f"radscribe:{c.id}",
            "@type": "skos:Concept",
            "radscribe:kind": c.kind.value,
            "skos:prefLabel": c.name,
            "skos:altLabel": list(c.synonyms),
            "radscribe:adjective": list(c.adjectives),
            "skos:exactMatch": [{"@id": OBO_PURL + x.replace(":", "_")} for x in c.xrefs],
            "dcterms:source": c.source,
        }
        nodes.append({k: v for k, v in node.items() if v not in ([], "")})
    by_id = {node["@id"]: node for node in nodes}
    edges = []
    for e in graph.edges:
        name = SKOS.get(e.relation, f"radscribe:{e.relation.value}")
        by_id[f"radscribe:{e.source}"].setdefault(name, []).append({"@id": f"radscribe:{e.target}"})
        statement = {"rdf:subject": {"@id": f"radscribe:{e.source}"}, "rdf:predicate": {"@id": name},
                     "rdf:object": {"@id": f"radscribe:{e.target}"}}  # fmt: skip
        extra = {"radscribe:weight": e.weight, "dcterms:source": e.provenance}
        edges.append({"@type": "rdf:Statement", **statement, **extra})
    context = {
        "skos": "http://www.w3.org/2004/02/skos/core#",
        "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
        "dcterms": "http://purl.org/dc/terms/",
        "radscribe": "urn:radscribe:knowledge:",
    }
    document = {"@context": context, "@id": f"urn:sha256:{graph.hash}", "radscribe:version": graph.version,
                "@graph": [*nodes, *edges]}  # fmt: skip
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"
