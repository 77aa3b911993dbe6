"""Other people's knowledge files: read, merged with every conflict told, refused with file and line when broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from knowledge.building import build
from knowledge.cooccurrence import cooccurrence
from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Kind, Relation
from knowledge.sources import merge, read_source

DATA = Path(os.environ.get("RADSCRIBE_DATA", Path(__file__).parents[2] / "../shared/data")) / "knowledge"
OBO = """format-version: 1.2
data-version: 7

[Term]
id: DOID:1
name: big disease
synonym: "large disease" EXACT []
synonym: "huge" BROAD []

[Term]
id: DOID:2
name: small disease
synonym: "pneumonia" EXACT []
is_a: DOID:1 ! big disease

[Term]
id: GO:3
name: a process

[Term]
id: UBERON:4
name: lung tip
relationship: part_of UBERON:0002048 ! lung

[Term]
id: UBERON:0002048
name: lung
"""


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return KnowledgeGraph.load()


def test_obo(graph: KnowledgeGraph, tmp_path: Path) -> None:
    path = tmp_path / "x.obo"
    path.write_text(OBO)
    (imported,) = read_source(path)
    concepts = imported.content.concepts
    assert concepts["big_disease"].synonyms == ("large disease",)
    assert concepts["small_disease"].xrefs == ("DOID:2",)
    assert concepts["lung_tip"].kind is Kind.ANATOMY
    assert imported.skipped["term of another ontology"] == 1
    merged, conflicts = merge(graph, imported.content)
    assert merged.validate() == []
    assert "small_disease" in merged.descendants("big_disease")
    assert any("'pneumonia' names" in c.message for c in conflicts)
    assert "pneumonia" not in merged.concepts["small_disease"].synonyms
    part_of = [e for e in merged.edges if e.source == "lung_tip" and e.relation is Relation.PART_OF]
    assert [e.target for e in part_of] == ["lung"]  # joined by the cross-reference


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (OBO.replace("name: small disease", "name small disease"), 12, "expected 'tag: value'"),
        (OBO.replace("id: DOID:2\n", ""), 10, "has no id"),
        (OBO.replace("id: DOID:2\n", "id: DOID:1\n"), 11, "duplicate id 'DOID:1' (first in line 5)"),
        (OBO.replace("[Term]\nid: DOID:1", "[Term\nid: DOID:1"), 4, "is not closed"),
    ],
)
def test_broken_obo(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = tmp_path / "x.obo"
    path.write_text(text)
    with pytest.raises(KnowledgeError) as caught:
        read_source(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)


def test_not_obo_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.obo"
    path.write_text("format-version: 1.2\n")
    with pytest.raises(KnowledgeError, match="not an OBO file"):
        read_source(path)


def test_circle_in_a_source_is_refused(graph: KnowledgeGraph, tmp_path: Path) -> None:
    path = tmp_path / "x.obo"
    path.write_text(OBO.replace("name: big disease\n", "name: big disease\nis_a: DOID:2\n"))
    with pytest.raises(KnowledgeError, match=r"x\.obo:\d+: cycle in is_a"):
        build(graph, [path])


def test_circle_across_sources_is_left_out_and_told(graph: KnowledgeGraph, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("source,relation,target\nparenchymal finding,is a,atelectasis\n")
    built = build(graph, [path])
    assert [c.kind for c in built.conflicts] == ["cycle"]
    assert built.graph.validate() == []


def test_own_table(graph: KnowledgeGraph, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("id,name,synonyms,located_in,kind\nmy_sign,my sign,the sign; signum,lung,finding\n")
    built = build(graph, [path], version="9")
    assert built.graph.terms("my_sign") == ("my sign", "the sign", "signum")
    assert built.graph.places("my_sign") == ("lung",)
    assert built.graph.version == "9"
    assert built.graph.concepts["my_sign"].source == "mine.csv"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "id,name\nx,one\nx,two\n", "a.csv:3: duplicate id 'x'"),
        ("a.csv", "id,name,synonyms\nx,one,same\ny,two,same\n", "a.csv:3: synonym clash: 'same'"),
        ("a.csv", "id,name,kind\nx,one,thing\n", "a.csv:2: kind 'thing'"),
        ("a.csv", "id,name\nx,one,more,cells\n", "a.csv:2: 2 more cells"),
        ("a.csv", "s#r#o\nno separators here\n", "a.csv:2: expected subject#relation#object"),
        ("a.csv", "one,two\n1,2\n", "a.csv:1: neither a concept table"),
        ("a.csv", "source,relation,target,weight\na,is a,b,7\n", "a.csv:2: weight 7 is outside"),
        ("a.csv", "", "a.csv: is empty"),
        (
            "a.csv",
            "id,name,located_in\nx,one,lung\ny,two,nowhere\n",
            "a.csv:3: edge y located_in nowhere: no concept 'nowhere'",
        ),
        ("a.bin", "x", "cannot read .bin"),
        ("a.txt", "x" * 101, "a.txt:1: a phrase of more than 100"),
        ("keywords.txt", "a / b\na / c\n", "keywords.txt:2: duplicate id 'a'"),
        ("m.txt", "0, 1\n1, 0\n", "needs the keyword list"),
    ],
)
def test_broken_sources(graph: KnowledgeGraph, tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(KnowledgeError) as caught:
        build(graph, [tmp_path / name])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_triples_and_their_attributes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("organ#attribute#value\nLung#belong to#Chest\nLung#function#gas exchange, # and more\n")
    (imported,) = read_source(path)
    (edge,) = imported.content.edges
    assert (edge.source, edge.relation, edge.target) == ("lung", Relation.PART_OF, "chest")
    assert imported.skipped == {"attribute 'function'": 1}


def test_keywords_phrases_and_matrix(tmp_path: Path) -> None:
    (tmp_path / "keywords.txt").write_text("big heart / large heart\nwet lung\n")
    (tmp_path / "matrix.txt").write_text("0,1,1\n0,0,1\n0,1,0\n")
    (tmp_path / "wet_lung.txt").write_text("wet lungs\nwater\nnot{a}phrase\n")
    found = {i.path.name: i for i in read_source(tmp_path)}
    assert found["keywords.txt"].content.concepts["big_heart"].synonyms == ("large heart",)
    (edge,) = found["matrix.txt"].content.edges
    assert (edge.source, edge.target, edge.relation) == ("big_heart", "wet_lung", Relation.ASSOCIATED_WITH)
    assert found["wet_lung.txt"].content.concepts["wet_lung"].synonyms == ("wet lungs", "water")
    assert sum(found["wet_lung.txt"].skipped.values()) == 1


def test_an_empty_or_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match="holds no file"):
        read_source(tmp_path)
    with pytest.raises(KnowledgeError, match="no such file"):
        read_source(tmp_path / "x")


def test_cooccurrence_by_hand(graph: KnowledgeGraph) -> None:
    texts = ["Cardiomegaly and pleural effusion."] * 3 + ["Cardiomegaly."] + ["No pleural effusion."] * 4
    (edge,) = cooccurrence(texts, graph, "mine", min_count=2, min_lift=1.5)
    assert (edge.source, edge.target, edge.relation) == ("cardiomegaly", "pleural_effusion", Relation.ASSOCIATED_WITH)
    # lift = 3 * 8 / (4 * 3) = 2; weight = ln 2 / -ln(3/8)
    assert edge.weight == pytest.approx(0.7067, abs=1e-4)
    assert "both in 3, cardiomegaly in 4, pleural_effusion in 3 of 8 reports, lift 2.00" in edge.provenance
    assert cooccurrence(texts, graph, "mine", min_count=4) == []
    with pytest.raises(KnowledgeError, match="holds no report"):
        cooccurrence([], graph, "mine")
    with pytest.raises(KnowledgeError, match="min_lift"):
        cooccurrence(texts, graph, "mine", min_lift=1.0)


@pytest.mark.skipif(not DATA.exists(), reason=f"the knowledge files are not at {DATA}")
def test_every_real_file_imports(graph: KnowledgeGraph) -> None:
    built = build(graph, [DATA], (["Cardiomegaly with effusion."] * 9 + ["Clear lungs."] * 9, "nine reports"))
    assert built.graph.validate() == []
    assert len(built.graph.concepts) > 5000
    assert set(graph.concepts) <= set(built.graph.concepts)
    assert built.conflicts
    assert len(built.summary) == 32  # 31 files and the reports
    assert built.graph.views["radscribe"] == graph.views["radscribe"]
