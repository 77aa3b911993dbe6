"""The shipped graph is what it promises, and every broken graph file is refused with its file and line."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from knowledge.errors import KnowledgeError
from knowledge.general import general_concepts
from knowledge.graph import RESOURCES, KnowledgeGraph
from knowledge.lexicon import Lexicon
from knowledge.ontology import Concept, Edge, Kind, Relation
from knowledge.tables import read_rows

RADSCRIBE = (
    "normal", "cardiomegaly", "pleural_effusion", "pneumothorax", "edema", "pneumonia", "infiltrate",
    "airspace_disease", "opacity", "atelectasis", "nodule", "mass", "calcification", "scar", "emphysema",
    "pleural_thickening", "hypoinflation", "hyperinflation", "degenerative_change", "scoliosis", "fracture",
    "hiatal_hernia", "device", "tuberculosis", "other_finding",
)  # fmt: skip
HEADER = "id\tname\tsynonyms\tadjectives\txrefs\tis_a\tpart_of\tlocated_in\tsource\n"


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return KnowledgeGraph.load()


def test_size_and_soundness(graph: KnowledgeGraph) -> None:
    assert graph.validate() == []
    assert len(graph.of_kind(Kind.FINDING)) >= 80
    assert len(graph.of_kind(Kind.ANATOMY)) >= 120
    assert {e.relation for e in graph.edges} == set(Relation)
    weights = [e.weight for e in graph.edges if e.relation is Relation.ASSOCIATED_WITH]
    assert len(set(weights)) > 1
    assert all(0 < w <= 1 for w in weights)
    prefixes = Counter(x.split(":")[0] for c in graph.concepts.values() for x in c.xrefs)
    assert prefixes["UBERON"] > 100
    assert prefixes["DOID"] > 0


@pytest.mark.parametrize(
    "finding",
    ["nodule", "mass", "calcification", "infiltrate", "kidney_cyst", "kidney_stone", "kidney_tumour", "hydronephrosis",
     "intracranial_hemorrhage", "cerebral_infarct", "hydrocephalus", "midline_shift"],
)  # fmt: skip
def test_named_findings_are_there_with_a_place(graph: KnowledgeGraph, finding: str) -> None:
    assert graph.concepts[finding].kind is Kind.FINDING
    assert all(graph.concepts[p].kind is Kind.ANATOMY for p in graph.places(finding))
    assert graph.places(finding)


def test_every_source_is_explained(graph: KnowledgeGraph) -> None:
    known = {row["key"] for _, row in read_rows(RESOURCES / "sources.tsv", ("key", "citation"))}
    used = {s for c in graph.concepts.values() for s in c.source.split("; ")}
    used |= {s for e in graph.edges for s in e.provenance.split("; ")}
    assert used <= known


def test_views(graph: KnowledgeGraph) -> None:
    assert tuple(graph.views["radscribe"]) == RADSCRIBE
    assert len(graph.views["openi20"]) == 20
    assert len(graph.views["chexpert14"]) == 14
    labels = graph.label_of("radscribe")
    assert labels["consolidation"] == ("pneumonia",)
    assert labels["pacemaker"] == ("device",)
    doubled = {c: names for c, names in labels.items() if len(names) > 1}
    assert set(doubled) <= {"hydropneumothorax", "calcified_nodule", "pleural_plaque"}


def test_hierarchy(graph: KnowledgeGraph) -> None:
    assert "empyema" in graph.descendants("pleural_effusion")
    assert graph.ancestors("tension_pneumothorax") >= {"tension_pneumothorax", "pneumothorax", "pleural_finding"}
    assert graph.places("tension_pneumothorax") == ("pleural_cavity",)
    assert ("hyperinflation", "hypoinflation") in graph.exclusions()
    assert ("hypoinflation", "hyperinflation") in graph.exclusions()
    assert "emphysematous" in graph.terms("emphysema")


def test_hash_is_of_the_content_alone(graph: KnowledgeGraph, tmp_path: Path) -> None:
    graph.save(tmp_path / "g.json")
    again = KnowledgeGraph.load(tmp_path / "g.json")
    assert again.hash == graph.hash
    assert again.version == graph.version
    edges = list(graph.edges)[::-1]
    concepts = dict(reversed(graph.concepts.items()))
    assert KnowledgeGraph(concepts, edges, graph.views, "other").hash == graph.hash
    fewer = KnowledgeGraph(graph.concepts, [e for e in edges if e.relation is not Relation.SUGGESTS], graph.views)
    assert fewer.hash != graph.hash


def test_networkx_form(graph: KnowledgeGraph) -> None:
    assert graph.nx.number_of_nodes() == len(graph.concepts)
    assert graph.nx.number_of_edges() == len(graph.edges)
    assert graph.nx["consolidation"]["pneumonia"]["suggests"]["weight"] == 0.7


def test_subgraph_and_merge(graph: KnowledgeGraph) -> None:
    part = graph.subgraph(["pneumonia", "lung", "consolidation"])
    assert set(part.concepts) == {"pneumonia", "lung", "consolidation"}
    assert all({e.source, e.target} <= set(part.concepts) for e in part.edges)
    assert part.merge(graph).concepts.keys() == graph.concepts.keys()


def test_a_fault_in_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text(
        '{\n "concepts": [\n'
        '  {"id": "a", "name": "thing", "kind": "finding", "synonyms": ["x, ]"]},\n\n  {"id": "b", "name": "x, ]",'
        '"kind": "finding"}],\n "edges": [\n  {"source": "a", "target": "b", "relation": "is_a"},'
        '\n  {"source": "b", "target": "a", "relation": "frobs"}]}'
    )
    with pytest.raises(KnowledgeError, match=r"g\.json:8: unknown relation .frobs"):
        KnowledgeGraph.load(path)
    path.write_text(path.read_text().replace("frobs", "is_a"))
    with pytest.raises(KnowledgeError, match=r"g\.json:8: cycle in is_a"):
        KnowledgeGraph.load(path)


def test_loads_quickly() -> None:
    def seconds() -> float:
        started = time.process_time()
        Lexicon(KnowledgeGraph.load())
        return time.process_time() - started

    assert min(seconds() for _ in range(5)) < 0.9  # 0.1 s on an idle core


def write(folder: Path, findings: str, anatomy: str = "", relations: str = "") -> Path:
    (folder / "findings.tsv").write_text(HEADER + findings)
    (folder / "anatomy.tsv").write_text(HEADER + (anatomy or "lung\tlung\t\t\t\t\t\t\tme\n"))
    if relations:
        (folder / "relations.tsv").write_text("source\trelation\ttarget\tweight\tprovenance\n" + relations)
    return folder


A = "a\tfirst\t\t\t\t\t\tlung\tme\n"


@pytest.mark.parametrize(
    ("findings", "relations", "file", "line", "says"),
    [
        (A + "b\tsecond\t\t\t\tc\t\tlung\tme\nc\tthird\t\t\t\tb\t\tlung\tme\n", "", "findings.tsv", 4, "cycle in is_a"),
        (A + A, "", "findings.tsv", 3, "duplicate id 'a' (first in"),
        (A + "b\tsecond\tFirsts\t\t\t\t\tlung\tme\n", "", "findings.tsv", 3, "synonym clash: 'Firsts' names both"),
        (A + "b\tsecond\t\t\t\t\t\t\tme\n", "", "findings.tsv", 3, "has no place"),
        (A + "b\tsecond\t\t\t\tz\t\tlung\tme\n", "", "findings.tsv", 3, "no concept 'z'"),
        (A + "b\tsecond\t\t\t\t\t\tlung\t\n", "", "findings.tsv", 3, "states no source"),
        (A + "\tnameless\t\t\t\t\t\tlung\tme\n", "", "findings.tsv", 3, "needs an id and a name"),
        (A, "a\tcauses\ta\t\tme\n", "relations.tsv", 2, "unknown relation 'causes'"),
        (A, "a\tsuggests\tb\t\tme\n", "relations.tsv", 2, "no concept 'b'"),
        (A, "a\tsuggests\tlung\tnan\tme\n", "relations.tsv", 2, "outside (0, 1]"),
        (A, "a\tsuggests\tlung\tx\tme\n", "relations.tsv", 2, "is not a number"),
    ],
)
def test_a_broken_folder_is_refused_with_its_line(
    tmp_path: Path, findings: str, relations: str, file: str, line: int, says: str
) -> None:
    folder = write(tmp_path, findings, relations=relations)
    with pytest.raises(KnowledgeError) as caught:
        KnowledgeGraph.load(folder)
    assert str(caught.value).startswith(f"{folder / file}:{line}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", ":1: broken JSON"),
        ("[]", "not a knowledge graph"),
        ('{"concepts": [{"id": "a"}], "edges": []}', "concepts[0] needs"),
        ('{"concepts": [{"id": "a", "name": "a", "kind": "thing"}]}', "kind must be one of"),
        ('{"concepts": [{"id": "a", "name": "a", "kind": "anatomy", "synonyms": [3]}]}', "list of strings"),
        (
            '{"concepts": [], "edges": [{"source": "a", "target": "b", "relation": "likes"}]}',
            "unknown relation 'likes'",
        ),
        ('{"concepts": [], "views": {"v": {"l": "a"}}}', "expected a list of concept ids"),
        ('{"concepts": [], "views": {"v": {"l": ["a"]}}}', "no concept 'a'"),
    ],
)
def test_a_broken_json_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(content)
    with pytest.raises(KnowledgeError) as caught:
        KnowledgeGraph.load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_absent_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match="no such file"):
        KnowledgeGraph.load(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KnowledgeError, match="not UTF-8"):
        KnowledgeGraph.load(tmp_path / "b.json")
    (tmp_path / "findings.tsv").write_text("id\tlabel\n")
    with pytest.raises(KnowledgeError, match=r"findings\.tsv:1: column 'name' is missing"):
        KnowledgeGraph.load(tmp_path)


def test_a_missing_end_is_refused_without_a_file() -> None:
    concepts = {"a": Concept("a", "a", Kind.ANATOMY, source="me")}
    with pytest.raises(KnowledgeError, match="no concept 'b'"):
        KnowledgeGraph(concepts, [Edge("a", "b", Relation.PART_OF, 1.0, "me")])


def test_composites_name_known_concepts(graph: KnowledgeGraph) -> None:
    names = set()
    for line in (RESOURCES / "composites.tsv").read_text().splitlines():
        cells = line.split("\t")
        if len(cells) == 4 and cells[0] != "concept":
            names |= {cells[0], *(h for h in cells[2].split("; ") if not h.startswith('"'))}
    assert names <= {*graph.concepts, *general_concepts()}


def test_general_concepts_speak_of_known_findings(graph: KnowledgeGraph) -> None:
    for name, row in general_concepts().items():
        ids = {*row.stands_for, *(row.denies or ()), *row.spares}
        assert ids <= set(graph.of_kind(Kind.FINDING))
        assert name not in graph.concepts


def test_saving_is_whole_or_not_at_all(graph: KnowledgeGraph, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "g.json"
    graph.save(target)
    assert json.loads(target.read_text())["hash"] == graph.hash
    assert [p.name for p in target.parent.iterdir()] == ["g.json"]
