"""Other people's knowledge files -> graph content, and the merge of two graphs with every conflict reported.

| file | read as |
|---|---|
| `*.obo` | `knowledge.obo`: terms, exact synonyms, `is_a`, `part_of` |
| triples, `subject#relation#object` (also tab or comma) | edges; other attributes are counted and left out |
| keyword list, a label a line, synonyms after " / " | findings |
| mention phrases, a file a finding (`pleural_effusion.txt`) | one finding with the lines as synonyms |
| adjacency matrix beside a keyword list | `associated_with` |
| folder of tables, `*.json`, `*.csv`, `*.tsv` with the columns of `knowledge.tables` | everything |

What a file says about a concept that the graph already has joins it: by id, by cross-reference, or by an exact
term.
"""

from __future__ import annotations

import re
from pathlib import Path

from knowledge import tables
from knowledge.errors import at
from knowledge.graph import KnowledgeGraph
from knowledge.imported import Imported, slug
from knowledge.merging import Conflict, merged
from knowledge.obo import read_obo
from knowledge.ontology import Concept, Edge, Kind, Relation
from knowledge.tables import Content

RELATION_WORDS = {
    "is a": Relation.IS_A,
    "belong to": Relation.PART_OF,
    "part of": Relation.PART_OF,
    "locate in": Relation.LOCATED_IN,
    "located in": Relation.LOCATED_IN,
    "location": Relation.LOCATED_IN,
    "suggests": Relation.SUGGESTS,
    "suggest": Relation.SUGGESTS,
    "associated with": Relation.ASSOCIATED_WITH,
    "excludes": Relation.EXCLUDES,
}
"""Relation names of triple files; a relation that is not here is an attribute, and is counted."""
MATRIX_WEIGHT = 0.5
"""Weight of an edge from a 0/1 adjacency matrix, which says that two labels are related and not how strongly."""


def read_source(path: Path) -> list[Imported]:
    """Reads a file, or every readable file of a folder.

    Args:
        path: see the table in the module's docstring.

    Returns:
        One entry a file; a folder's licence and read-me files are passed over.

    Raises:
        KnowledgeError: the file is broken or of no known form; file and line are named.
    """
    path = Path(path)
    if not path.exists():
        raise at(path, None, "no such file or folder")
    if path.is_dir():
        if (path / "findings.tsv").exists():
            return [Imported(path, tables.read_folder(path), "tables")]
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.stem.upper() not in ("LICENSE", "README"))
        found = [imported for p in files for imported in read_source(p)]
        if not found:
            raise at(path, None, "holds no file that can be read as knowledge")
        return found
    return [_read_file(path)]


def _read_file(path: Path) -> Imported:
    suffix = path.suffix.lower()
    if suffix == ".obo":
        return read_obo(path)
    if suffix == ".json":
        return Imported(path, tables.read_graph_json(path), "json")
    text = tables.read_text(path)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise at(path, None, "is empty")
    if suffix in (".csv", ".tsv"):
        delimiter = next((d for d in ("#", "\t", ",") if d in lines[0]), ",")
        header = [c.strip().lower() for c in lines[0].split(delimiter)]
        if "id" in header and "name" in header:
            return _concept_table(path, delimiter)
        if len(header) == 3 or {"source", "relation", "target"} <= set(header):
            return read_triples(path, delimiter)
        raise at(path, 1, "neither a concept table (columns id, name, ...) nor triples (three columns)")
    if all(re.fullmatch(r"\s*[01](\s*,\s*[01])+\s*", line) for line in lines):
        return read_matrix(path)
    if any("{dependency:" in line or "{lemma:" in line for line in lines):
        imported = Imported(path, Content(), "patterns")
        imported.skipped["sentence patterns, not concepts"] = len(lines)
        return imported
    if "keyword" in path.name or any(" / " in line for line in lines):
        return read_keywords(path)
    if suffix == ".txt":
        return read_phrases(path)
    raise at(
        path, None, f"cannot read {suffix or 'a file without a suffix'} as knowledge; use .obo, .csv, .tsv, .json, .txt"
    )


def _concept_table(path: Path, delimiter: str) -> Imported:
    """A user's own table: the columns of `knowledge.tables`, and optionally `kind`."""
    imported = Imported(path, Content(), "concept table")
    for line, row in tables.read_rows(path, ("id", "name"), delimiter):
        kind = row.get("kind") or Kind.FINDING.value
        if kind not in list(Kind):
            raise at(path, line, f"kind {kind!r} must be one of {', '.join(Kind)}")
        row["source"] = row.get("source") or path.name
        tables.add_concept_row(imported.content, row, Kind(kind), path, line)
    return imported


def read_triples(path: Path, delimiter: str = "#") -> Imported:
    """Triples `subject, relation, object`, with a header line; unknown ends become concepts.

    Raises:
        KnowledgeError: a line has another number of cells, or no relation of the file is known.
    """
    imported = Imported(path, Content(), "triples")
    lines = tables.read_text(path).splitlines()
    edges = 0
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = [c.strip() for c in line.split(delimiter)]
        if delimiter == "#" and len(cells) > 3:
            cells = [cells[0], cells[1], delimiter.join(cells[2:])]
        if len(cells) not in (3, 4, 5) or not cells[0] or not cells[2]:
            raise at(path, number, f"expected subject{delimiter}relation{delimiter}object, found {line[:60]!r}")
        relation = RELATION_WORDS.get(cells[1].lower().replace("_", " "))
        if relation is None:
            imported.skip(f"attribute {cells[1]!r}")
            continue
        weight = tables.weight_of(cells[3], path, number) if len(cells) > 3 else 1.0
        for target in re.split(r",\s*|;\s*", cells[2]) if relation is not Relation.EXCLUDES else [cells[2]]:
            edges += _add_triple(imported.content, cells[0], relation, target, weight, path, number)
    if not edges and not any(reason.startswith("attribute") for reason in imported.skipped):
        raise at(path, 1, "holds no triple")
    return imported


def _add_triple(
    content: Content, subject: str, relation: Relation, target: str, weight: float, path: Path, line: int
) -> int:
    ids = []
    for end, term in (("source", subject), ("target", target)):
        id = slug(term)
        if not id:
            return 0
        place = relation is Relation.PART_OF or (relation is Relation.LOCATED_IN and end == "target")
        if id not in content.concepts:
            kind = Kind.ANATOMY if place else Kind.FINDING
            content.add_concept(Concept(id, term.lower(), kind, source=path.name), path, line)
        ids.append(id)
    if ids[0] == ids[1]:
        return 0
    content.add_edge(Edge(ids[0], ids[1], relation, weight, path.name), path, line)
    return 1


def read_keywords(path: Path) -> Imported:
    """A label a line, its synonyms after " / "."""
    imported = Imported(path, Content(), "keywords")
    for number, line in enumerate(tables.read_text(path).splitlines(), 1):
        terms = [t.strip().lower() for t in line.split(" / ") if t.strip()]
        if terms:
            concept = Concept(slug(terms[0]), terms[0], Kind.FINDING, tuple(terms[1:]), source=path.name)
            imported.content.add_concept(concept, path, number)
    return imported


def read_phrases(path: Path) -> Imported:
    """A file a finding: its name is the finding's, its lines are the ways to write it."""
    imported = Imported(path, Content(), "phrases")
    name = path.stem.replace("_", " ").lower()
    terms = []
    for number, line in enumerate(tables.read_text(path).splitlines(), 1):
        term = line.strip().lower()
        if len(term) > 100:
            raise at(path, number, "a phrase of more than 100 characters; is this a list of phrases?")
        if not term:
            continue
        if re.fullmatch(r"[a-z0-9][a-z0-9 /-]*", term):
            terms.append(term)
        else:
            imported.skip("a phrase with a pattern character")
    if path.parent.name == "unmention":
        imported.skipped["phrases that do not mention the finding"] = len(terms)
        return imported
    synonyms = tuple(dict.fromkeys(t for t in terms if t != name))
    imported.content.add_concept(Concept(slug(name), name, Kind.FINDING, synonyms, source=path.name), path, 1)
    return imported


def read_matrix(path: Path) -> Imported:
    """A 0/1 adjacency matrix over the labels of the keyword list in the same folder; a first extra node is the root."""
    lists = sorted(p for p in path.parent.glob("*keyword*.txt"))
    if not lists:
        raise at(path, None, "an adjacency matrix needs the keyword list (*keyword*.txt) of its labels beside it")
    labels = [slug(t.split(" / ")[0]) for t in tables.read_text(lists[0]).splitlines() if t.strip()]
    rows = [[int(x) for x in re.findall(r"\d+", line)] for line in tables.read_text(path).splitlines() if line.strip()]
    extra = len(rows) - len(labels)
    imported = Imported(path, Content(), "matrix")
    imported.content.concepts = dict(read_keywords(lists[0]).content.concepts)
    if extra not in (0, 1):  # which row is whose cannot be told, so no edge is guessed
        imported.skipped[f"{len(rows)} rows for the {len(labels)} labels of {lists[0].name}"] = sum(map(sum, rows))
        return imported
    for i, row in enumerate(rows):
        if len(row) != len(rows):
            raise at(path, i + 1, f"{len(row)} columns in a matrix of {len(rows)} rows")
        for j, related in enumerate(row):
            if related and i >= extra and j > i:
                edge = Edge(labels[i - extra], labels[j - extra], Relation.ASSOCIATED_WITH, MATRIX_WEIGHT, path.name)
                imported.content.add_edge(edge, path, i + 1)
    return imported


def merge(base: KnowledgeGraph, other: KnowledgeGraph | Content) -> tuple[KnowledgeGraph, list[Conflict]]:
    """Adds another graph's concepts and edges to this one; where they disagree this one stands.

    Args:
        base: the graph that wins.
        other: a graph, or content as read from a source.

    Returns:
        The merged graph, which has no fault that `base` had not, and every conflict with what was done about it.
    """
    content, conflicts = merged(base, other)
    return KnowledgeGraph(content.concepts, content.edges, content.views, content.version, check=False), conflicts
