"""OBO ontologies (Disease Ontology, UBERON) -> graph content, through obonet.

Before obonet parses, every line is checked, because obonet's own errors name no line. Terms of other ontologies that an
import file carries along (GO, CL, CHEBI, ...) are left out and counted; so are obsolete terms.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from knowledge import tables
from knowledge.errors import at
from knowledge.imported import Imported, slug
from knowledge.ontology import Concept, Edge, Kind, Relation

KINDS = {"DOID": Kind.FINDING, "HP": Kind.FINDING, "MONDO": Kind.FINDING, "UBERON": Kind.ANATOMY, "FMA": Kind.ANATOMY}
"""Id prefix -> what its terms are."""
RELATIONS = {"is_a": Relation.IS_A, "BFO:0000050": Relation.PART_OF, "part_of": Relation.PART_OF,
             "located_in": Relation.LOCATED_IN, "RO:0001025": Relation.LOCATED_IN}  # fmt: skip
_TAG = re.compile(r"[A-Za-z_][\w-]*:(\s|$)")


def read_obo(path: Path) -> Imported:
    """Reads an OBO 1.2 or 1.4 file.

    Args:
        path: the file.

    Returns:
        Terms as concepts (id: the name as a slug; the OBO id as cross-reference), `is_a` and `part_of` edges.

    Raises:
        KnowledgeError: not OBO, or broken; the line is named.
    """
    import obonet

    text = tables.read_text(path)
    lines = check_obo(text, path)
    try:
        graph = obonet.read_obo(io.StringIO(text), ignore_obsolete=True)
    except (ValueError, KeyError, AssertionError) as error:
        raise at(path, None, f"broken OBO: {error}") from error
    imported = Imported(path, tables.Content(version=str(graph.graph.get("data-version", "0"))), "obo")
    ids: dict[str, str] = {}
    for node, data in graph.nodes(data=True):
        kind = KINDS.get(node.split(":")[0])
        if kind is None or "name" not in data:
            imported.skip("term of another ontology" if kind is None else "term without a name")
            continue
        id = slug(data["name"])
        if id in imported.content.concepts:
            id = slug(node)
        ids[node] = id
        name = data["name"].lower()
        synonyms = [m.group(1).lower() for s in data.get("synonym", []) if (m := re.match(r'"(.*?)"\s+EXACT', s))]
        synonyms = [s for s in dict.fromkeys(synonyms) if s != name and s]
        concept = Concept(id, name, kind, tuple(synonyms), xrefs=(node,), source=f"{path.name} {node}")
        imported.content.add_concept(concept, path, lines.get(node))
    for source, target, key in graph.edges(keys=True):
        relation = RELATIONS.get(key)
        if relation is None or source not in ids or target not in ids or ids[source] == ids[target]:
            imported.skip("relation of another kind" if relation is None else "edge to a term left out")
            continue
        imported.content.add_edge(Edge(ids[source], ids[target], relation, 1.0, path.name), path, lines.get(source))
    return imported


def check_obo(text: str, path: Path) -> dict[str, int]:
    """Checks the form of every line.

    Args:
        text: the file's content.
        path: for messages.

    Returns:
        Term id -> 1-based line of its `id:`.

    Raises:
        KnowledgeError: a line is neither a stanza, a `tag: value` pair nor a comment; a term has no id or a second one.
    """
    lines: dict[str, int] = {}
    stanza: str | None = None
    opened, has_id = 0, True
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("!"):
            continue
        if line.startswith("["):
            if not has_id:
                raise at(path, opened, f"stanza {stanza} has no id")
            if not line.endswith("]"):
                raise at(path, number, f"broken OBO: stanza {line[:40]!r} is not closed")
            stanza, opened, has_id = line, number, False
        elif not _TAG.match(line):
            raise at(path, number, f"broken OBO: expected 'tag: value', found {line[:60]!r}")
        elif line.startswith("id:") and stanza is not None:
            id = line[3:].split("!")[0].strip()
            has_id = bool(id)
            if stanza == "[Term]":
                if id in lines:
                    raise at(path, number, f"duplicate id {id!r} (first in line {lines[id]})")
                lines[id] = number
    if stanza is None:
        raise at(path, None, "not an OBO file: it has no [Term]")
    if not has_id:
        raise at(path, opened, f"stanza {stanza} has no id")
    return lines
