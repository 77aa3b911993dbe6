"""Reads and writes a graph's files: a folder of tab-separated tables, or one JSON file.

A folder holds `findings.tsv`, `anatomy.tsv`, `attributes.tsv` (one concept a row, the edges `is_a`, `part_of` and
`located_in` in columns of their own, several values joined by "; "), `relations.tsv` (the weighted edges), `views.json`
(named label lists) and `VERSION`. The JSON form is what `KnowledgeGraph.save` writes and what a checkpoint carries.
Both are text that a person can review line by line; every concept and every edge states its source.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knowledge.errors import at
from knowledge.json_lines import entry_lines
from knowledge.ontology import Concept, Edge, Kind, Relation

CONCEPT_TABLES = {"findings.tsv": Kind.FINDING, "anatomy.tsv": Kind.ANATOMY, "attributes.tsv": Kind.ATTRIBUTE}
CONCEPT_COLUMNS = ("id", "name", "synonyms", "adjectives", "xrefs", "is_a", "part_of", "located_in", "source")
RELATION_COLUMNS = ("source", "relation", "target", "weight", "provenance")
INLINE_RELATIONS = (Relation.IS_A, Relation.PART_OF, Relation.LOCATED_IN)
MAX_BYTES = 200 * 1024 * 1024

Views = dict[str, dict[str, tuple[str, ...]]]


@dataclass(slots=True)
class Content:
    """What a graph file holds, before it is checked.

    Args:
        concepts, edges, views, version: as in `KnowledgeGraph`.
        lines: where each concept (by id) and each edge (by index) was read, as (file, line); for messages.
    """

    concepts: dict[str, Concept] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    views: Views = field(default_factory=dict)
    version: str = "0"
    lines: dict[str | int, tuple[str, int]] = field(default_factory=dict)

    def add_concept(self, concept: Concept, path: Path | str | None = None, line: int | None = None) -> None:
        """Adds a concept; a second one of the same id is an error that names both lines."""
        if concept.id in self.concepts:
            before = self.lines.get(concept.id)
            first = f" (first in {before[0]}:{before[1]})" if before else ""
            raise at(path, line, f"duplicate id {concept.id!r}{first}; rename or remove one of them")
        self.concepts[concept.id] = concept
        if path is not None and line is not None:
            self.lines[concept.id] = (str(path), line)

    def add_edge(self, edge: Edge, path: Path | str | None = None, line: int | None = None) -> None:
        """Adds an edge and remembers its line."""
        if path is not None and line is not None:
            self.lines[len(self.edges)] = (str(path), line)
        self.edges.append(edge)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file of bounded size; errors name the file."""
    if path.is_dir():
        raise at(path, None, "is a folder; expected a file")
    if not path.is_file():
        raise at(path, None, "no such file")
    if path.stat().st_size > MAX_BYTES:
        raise at(path, None, f"larger than {MAX_BYTES // 2**20} MiB; split it")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise at(path, None, f"not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def split_values(cell: str | None) -> tuple[str, ...]:
    """The values of a cell: "a; b" -> ("a", "b"), in order, without repeats."""
    return tuple(dict.fromkeys(v.strip() for v in (cell or "").split(";") if v.strip()))


def read_rows(path: Path, required: tuple[str, ...], delimiter: str = "\t") -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with their 1-based line; a missing column or a broken row is an error that names it."""
    reader = csv.DictReader(io.StringIO(read_text(path)), delimiter=delimiter, restkey="__rest__")
    header = reader.fieldnames or []
    missing = [c for c in required if c not in header]
    if missing:
        raise at(path, 1, f"column {missing[0]!r} is missing; found {', '.join(header) or 'nothing'}")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise at(path, reader.line_num, f"broken table: {error}") from error
        if "__rest__" in row:
            raise at(path, reader.line_num, f"{len(row['__rest__'])} more cells than the header has")
        yield reader.line_num, {key: (value or "").strip() for key, value in row.items()}


def relation_of(name: str, path: Path | str | None, line: int | None) -> Relation:
    """The relation of a name; an unknown one lists the choices."""
    try:
        return Relation(name.strip().lower().replace(" ", "_"))
    except ValueError as error:
        raise at(path, line, f"unknown relation {name!r}; one of {', '.join(r.value for r in Relation)}") from error


def weight_of(text: str, path: Path | str | None, line: int | None) -> float:
    """A weight in (0, 1]; empty text is 1."""
    try:
        weight = float(text) if text else 1.0
    except ValueError as error:
        raise at(path, line, f"weight {text!r} is not a number") from error
    if not math.isfinite(weight) or not 0.0 < weight <= 1.0:
        raise at(path, line, f"weight {text} is outside (0, 1]")
    return weight


def add_concept_row(content: Content, row: dict[str, str], kind: Kind, path: Path, line: int) -> None:
    """Adds a row of a concept table: the concept and the edges of its columns."""
    if not row["id"] or not row["name"]:
        raise at(path, line, "a concept needs an id and a name")
    source = row.get("source", "")
    concept = Concept(
        id=row["id"],
        name=row["name"],
        kind=kind,
        synonyms=split_values(row.get("synonyms")),
        adjectives=split_values(row.get("adjectives")),
        xrefs=split_values(row.get("xrefs")),
        source=source,
    )
    content.add_concept(concept, path, line)
    for relation in INLINE_RELATIONS:
        for target in split_values(row.get(relation.value)):
            content.add_edge(Edge(concept.id, target, relation, 1.0, source), path, line)


def read_folder(folder: Path) -> Content:
    """Reads the tables of a folder (layout: the module's docstring)."""
    content = Content()
    for name, kind in CONCEPT_TABLES.items():
        path = folder / name
        if name != "attributes.tsv" or path.exists():
            for line, row in read_rows(path, ("id", "name")):
                add_concept_row(content, row, kind, path, line)
    relations = folder / "relations.tsv"
    if relations.exists():
        for line, row in read_rows(relations, ("source", "relation", "target")):
            relation = relation_of(row["relation"], relations, line)
            weight = weight_of(row.get("weight", ""), relations, line)
            edge = Edge(row["source"], row["target"], relation, weight, row.get("provenance", ""))
            content.add_edge(edge, relations, line)
    views = folder / "views.json"
    if views.exists():
        content.views = parse_views(read_json(views), views)
    version = folder / "VERSION"
    content.version = read_text(version).strip() if version.exists() else "0"
    return content


def read_json(path: Path) -> Any:
    """Parses a JSON file; a fault names its line."""
    return parse_text(read_text(path), path)


def parse_text(text: str, path: Path) -> Any:
    """Parses the text of a JSON file; a fault names its line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise at(path, error.lineno, f"broken JSON: {error.msg}") from error
    except RecursionError as error:
        raise at(path, None, "JSON nested too deeply") from error


def parse_views(raw: Any, path: Path | None) -> Views:
    """Checks the shape of views: {view: {label: [concept id, ...]}}."""
    if not isinstance(raw, dict):
        raise at(path, None, "views must be an object {view: {label: [concept id, ...]}}")
    views: Views = {}
    for view, labels in raw.items():
        if not isinstance(labels, dict):
            raise at(path, None, f"view {view!r} must be an object {{label: [concept id, ...]}}")
        for label, ids in labels.items():
            if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
                raise at(path, None, f"view {view!r}, label {label!r}: expected a list of concept ids")
        views[view] = {label: tuple(ids) for label, ids in labels.items()}
    return views


def read_graph_json(path: Path) -> Content:
    """Content of a file in the JSON form."""
    text = read_text(path)
    raw = parse_text(text, path)
    return parse_json(raw, path, entry_lines(text))


def parse_json(raw: Any, path: Path | None, lines: Mapping[str, Sequence[int]] | None = None) -> Content:
    """Content of the JSON form.

    Args:
        raw: as `json` parsed it. path: for messages. lines: of the entries, from `entry_lines`.
    """
    concept_lines, edge_lines = ((lines or {}).get(key, ()) for key in ("concepts", "edges"))
    if not isinstance(raw, dict) or not isinstance(raw.get("concepts"), list):
        raise at(path, None, "not a knowledge graph: expected an object with the lists 'concepts' and 'edges'")
    content = Content(version=str(raw.get("version", "0")), views=parse_views(raw.get("views", {}), path))
    for index, entry in enumerate(raw["concepts"]):
        line = concept_lines[index] if index < len(concept_lines) else None
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("id"), str)
            or not isinstance(entry.get("name"), str)
        ):
            raise at(path, line, f"concepts[{index}] needs the strings 'id' and 'name'")
        if entry.get("kind") not in list(Kind):
            raise at(path, line, f"concepts[{index}] ({entry['id']}): kind must be one of {', '.join(Kind)}")
        lists = {key: entry.get(key, []) for key in ("synonyms", "adjectives", "xrefs")}
        for key, values in lists.items():
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise at(path, line, f"concepts[{index}] ({entry['id']}): {key} must be a list of strings")
        tuples = {key: tuple(values) for key, values in lists.items()}
        kind, source = Kind(entry["kind"]), str(entry.get("source", ""))
        content.add_concept(Concept(entry["id"], entry["name"], kind, source=source, **tuples), path, line)
    edges = raw.get("edges", [])
    if not isinstance(edges, list):
        raise at(path, None, "'edges' must be a list")
    for index, entry in enumerate(edges):
        line = edge_lines[index] if index < len(edge_lines) else None
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(k), str) for k in ("source", "target", "relation")
        ):
            raise at(path, line, f"edges[{index}] needs the strings 'source', 'relation', 'target'")
        relation = relation_of(entry["relation"], path, line)
        weight = weight_of(str(entry.get("weight", "")), path, line)
        provenance = str(entry.get("provenance", ""))
        content.add_edge(Edge(entry["source"], entry["target"], relation, weight, provenance), path, line)
    return content


def to_json(concepts: dict[str, Concept], edges: tuple[Edge, ...], views: Views, version: str) -> dict[str, Any]:
    """The JSON form, in a canonical order; what the hash is taken over."""
    return {
        "format": "radscribe-knowledge-1",
        "version": version,
        "concepts": [
            {
                "id": c.id,
                "name": c.name,
                "kind": c.kind.value,
                "synonyms": list(c.synonyms),
                "adjectives": list(c.adjectives),
                "xrefs": list(c.xrefs),
                "source": c.source,
            }
            for c in sorted(concepts.values(), key=lambda c: c.id)
        ],
        "edges": [
            {
                "source": e.source,
                "relation": e.relation.value,
                "target": e.target,
                "weight": e.weight,
                "provenance": e.provenance,
            }
            for e in sorted(edges, key=lambda e: (e.source, e.relation, e.target))
        ],
        "views": {view: {label: list(ids) for label, ids in labels.items()} for view, labels in views.items()},
    }
