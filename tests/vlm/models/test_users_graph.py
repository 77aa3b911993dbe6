"""A user's own graph and label list in place of the shipped ones, and every other graph refused afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import draw_study, tiny_config

from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Concept, Edge, Kind, Relation
from vlm.assembly import starting_point
from vlm.checkpoint import load_checkpoint, save_checkpoint
from vlm.config import Config
from vlm.pipeline import GenerationSettings, Pipeline
from vlm.run_folder import own_folder
from vlm.types import InputError, Report

LABELS = ("healthy", "abnormal", "nodule")


def small_graph(weight: float = 1.0) -> KnowledgeGraph:
    """Three findings in a chest; `weight` is that of one edge."""
    concepts = {
        i: Concept(i, name, kind, synonyms, (), (), "test")
        for i, name, kind, synonyms in (
            ("healthy", "no abnormality", Kind.FINDING, ("clear lungs",)),
            ("abnormal", "abnormality", Kind.FINDING, ()),
            ("nodule", "nodule", Kind.FINDING, ("lung nodule",)),
            ("chest", "chest", Kind.ANATOMY, ()),
        )
    }
    edges = [Edge(i, "chest", Relation.LOCATED_IN, 1.0, "test") for i in LABELS]
    edges += [Edge("nodule", "abnormal", Relation.IS_A, 1.0, "test")]
    edges += [
        Edge(*pair, Relation.EXCLUDES, weight, "test") for pair in (("healthy", "abnormal"), ("abnormal", "healthy"))
    ]
    return KnowledgeGraph(concepts, edges, {"mine": {i: (i,) for i in LABELS}}, "1")


def config_with(language_folder: Path, graph: Path) -> Config:
    tree = tiny_config(language_folder).model_dump(mode="json")
    tree["model"]["knowledge"] |= {"graph": str(graph), "view": "mine"}
    tree["model"]["detection"]["labels"] = ["nodule"]
    return Config.model_validate(tree)


def test_a_graph_of_ones_own_writes_reports_and_explains_them(language_folder: Path, tmp_path: Path) -> None:
    graph, other = tmp_path / "graph.json", tmp_path / "other.json"
    small_graph().save(graph)
    small_graph(0.5).save(other)
    made = starting_point(config_with(language_folder, graph), None)
    assert made.labels == LABELS
    save_checkpoint(tmp_path / "checkpoint", made)
    graph.unlink()  # the checkpoint carries its own
    pipeline = Pipeline(load_checkpoint(tmp_path / "checkpoint"))
    ((_, report),) = pipeline.reports([draw_study(tmp_path, 1)], GenerationSettings(explain=True))
    assert isinstance(report, Report), report
    assert report.explanation is not None
    own = report.explanation["findings"]["nodule"]
    assert {(n["concept"], n["via"]) for n in own["neighbours"]} == {
        ("chest", "edge"), ("abnormal", "edge"), ("healthy", "evidence"), ("abnormal", "evidence"),
    }  # fmt: skip
    assert next(n for n in own["neighbours"] if n["concept"] == "abnormal")["relations"] == ["is a"]
    assert own["gate"] == 0.0, "untrained"
    # Weights belong to the graph that they learnt with.
    with pytest.raises(InputError, match=r"other.json: has the hash \w{12}, the checkpoint .* leave the key out"):
        starting_point(config_with(language_folder, other), tmp_path / "checkpoint")
    small_graph().save(graph)
    assert starting_point(config_with(language_folder, graph), tmp_path / "checkpoint").labels == LABELS


def test_a_run_is_not_resumed_with_another_graph(language_folder: Path, tmp_path: Path) -> None:
    config, out = tiny_config(language_folder), tmp_path / "run"
    own_folder(out, config, True, "a" * 64)
    (out / "state").mkdir()
    (out / "state" / "latest.json").write_text(json.dumps({"state": "00-00000001"}))
    own_folder(out, config, True, "a" * 64)
    with pytest.raises(InputError, match=r"another knowledge graph \(hash aaaaaaaaaaaa, now bbbbbbbbbbbb\)"):
        own_folder(out, config, True, "b" * 64)
    own_folder(out, config, False, "b" * 64)
