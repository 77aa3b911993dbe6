"""The verbs of `vlm knowledge` do what their help says, and say in one line what is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
from typer.testing import CliRunner

from knowledge.graph import KnowledgeGraph
from vlm.cli.knowledge import app
from vlm.types import InputError


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_show_finds_any_way_to_write_it() -> None:
    for term in ("pleural_effusion", "Pleural Effusions", "hydrothorax"):
        assert "hydrothorax" in run("show", term)
    assert "UBERON:0002048" in run("show", "UBERON:0002048")
    with pytest.raises(InputError, match=r"no concept is called 'pnuemonai'; did you mean"):
        run("show", "pnuemonai")


def test_path_stats_validate() -> None:
    assert run("path", "consolidation", "pneumonia").strip() == "consolidation suggests pneumonia"
    assert KnowledgeGraph.load().hash in run("stats")
    assert run("validate").startswith("sound: ")


def test_validate_lists_every_fault(tmp_path: Path) -> None:
    (tmp_path / "findings.tsv").write_text("id\tname\tsource\nx\tone\tme\ny\tone\tme\n")
    (tmp_path / "anatomy.tsv").write_text("id\tname\tsource\nlung\tlung\tme\n")
    result = CliRunner().invoke(app, ["validate", str(tmp_path)])
    assert result.exit_code == 1
    assert "findings.tsv:3: synonym clash: 'one' names both 'x' and 'y'" in result.output
    assert result.output.count("has no place") == 2


def test_diff(tmp_path: Path) -> None:
    graph = KnowledgeGraph.load()
    graph.subgraph(set(graph.concepts) - {"rib_notching"}).save(tmp_path / "less.json")
    lines = run("diff", "shipped", tmp_path / "less.json").splitlines()
    assert "- finding rib_notching: rib notching" in lines
    assert "- edge rib_notching located_in rib" in lines
    assert lines[-1] == "3 changes"


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_draw(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"d{suffix}"
    run("draw", "--around", "consolidation", "--out", out)
    if suffix == ".svg":
        text = "".join(ElementTree.parse(out).getroot().itertext())
        assert all(word in text for word in ("consolidation", "pneumonia", "air bronchogram", "suggests"))
    else:
        assert out.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"draw to \.svg"):
        run("draw", "--around", "consolidation", "--out", tmp_path / "d.gif")


def test_export(tmp_path: Path) -> None:
    graph = KnowledgeGraph.load()
    run("export", tmp_path / "g.graphml")
    again = nx.read_graphml(tmp_path / "g.graphml")
    assert (again.number_of_nodes(), again.number_of_edges()) == (len(graph.concepts), len(graph.edges))
    run("export", tmp_path / "g.jsonld")
    document = json.loads((tmp_path / "g.jsonld").read_text())
    (lung,) = [n for n in document["@graph"] if n.get("@id") == "radscribe:lung"]
    assert lung["skos:exactMatch"] == [{"@id": "http://purl.obolibrary.org/obo/UBERON_0002048"}]
    with pytest.raises(InputError, match=r"export to \.graphml"):
        run("export", tmp_path / "g.xls")


def test_build(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,name,synonyms,located_in\nmy_sign,my sign,pneumonia,lung\n")
    reports = tmp_path / "r.jsonl"
    rows = [{"id": str(i), "text": "Cardiomegaly and effusion." if i < 6 else "Clear."} for i in range(20)]
    reports.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = run("build", tmp_path / "mine.csv", "--reports", reports, "--out", tmp_path / "g.json")
    assert "conflict (term): 'pneumonia' names 'pneumonia' here and 'my_sign' in mine.csv" in out
    built = KnowledgeGraph.load(tmp_path / "g.json")
    assert "my_sign" in built.concepts
    assert "my sign" in run("show", "my sign", "--graph", tmp_path / "g.json")


def labels(out: Path) -> dict[str, dict[str, str]]:
    with out.open(encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_label_conventions(tmp_path: Path) -> None:
    reports, out = tmp_path / "r.csv", tmp_path / "l.csv"
    reports.write_text("id,text\na,No effusion. Possible pneumonia. Left pneumothorax.\nb,\n")
    run("label", reports, "--out", out, "--view", "chexpert14")
    row = labels(out)["a"]
    assert (row["Pleural Effusion"], row["Pneumonia"], row["Pneumothorax"], row["Edema"]) == ("0", "", "1", "")
    assert set(labels(out)["b"].values()) == {"b", ""}
    run("label", reports, "--out", out, "--view", "chexpert14", "--uncertain=-1")
    assert labels(out)["a"]["Pneumonia"] == "-1"
    run("label", reports, "--out", out, "--view", "all")
    assert labels(out)["a"]["pneumothorax"] == "1"
    assert labels(out)["a"]["pleural_finding"] == "1"


def test_label_reads_both_sections_of_openi(tmp_path: Path) -> None:
    reports, out = tmp_path / "indiana_reports.csv", tmp_path / "l.csv"
    header = "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
    reports.write_text(header + '7,x,x,x,"Pneumonia",None,"No effusion.","Cardiomegaly."\n')
    run("label", reports, "--out", out)
    row = labels(out)["7"]
    assert list(row)[1:] == list(KnowledgeGraph.load().views["openi20"])
    assert (row["pleural effusion"], row["cardiomegaly"]) == ("0", "1")
    assert row["pneumonia / infiltrate / consolidation"] == ""


def test_label_bad_input(tmp_path: Path) -> None:
    reports = tmp_path / "r.csv"
    reports.write_text("id,text\na,No effusion.\n")
    with pytest.raises(InputError, match="no view 'x'; choose one of"):
        run("label", reports, "--out", tmp_path / "l.csv", "--view", "x")
    with pytest.raises(InputError, match="--uncertain 'maybe'"):
        run("label", reports, "--out", tmp_path / "l.csv", "--uncertain", "maybe")
    with pytest.raises(InputError, match="is not a file"):
        run("label", tmp_path / "none.csv", "--out", tmp_path / "l.csv")
    assert not (tmp_path / "l.csv").exists()
