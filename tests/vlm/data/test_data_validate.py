"""Validation finds what was planted, and nothing in a clean set; the command's exit code says so."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from vlm.cli.data import app
from vlm.data.layouts.tabular import write_studies
from vlm.data.sources import FORMATS
from vlm.data.validate import validate
from vlm.types import Box, Finding, Study, StudyImage, View

RUN = CliRunner()


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return KnowledgeGraph.load()


def study(folder: Path, name: str, seed: int, split: str = "train", **more: object) -> Study:
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (40, 60), dtype=np.uint8))
    more.setdefault("report", {"findings": f"A nodule of {seed} mm in the lung."})
    return Study(name, [StudyImage(path, view=View.FRONTAL)], split=split, **more)  # type: ignore[arg-type]


def clean(folder: Path) -> list[Study]:
    box = Box((10, 10, 20, 20), "nodule")
    known = (Finding("nodule", Certainty.PRESENT, side="right", boxes=(0,)),)
    return [study(folder, "a", 1, findings=known, boxes=(box,)), study(folder, "b", 2, "val")]


def test_a_clean_set_has_no_issue(tmp_path: Path, graph: KnowledgeGraph) -> None:
    result = validate(clean(tmp_path), graph)
    assert result.issues == []
    assert (result.counts["images"], result.counts["boxes"], result.splits["val"].studies) == (2, 1, 1)
    assert result.labels == {"nodule": 1}


def test_every_planted_fault_is_found(tmp_path: Path, graph: KnowledgeGraph) -> None:
    same = {"findings": "The heart is large. The lungs are clear."}
    studies = [
        study(tmp_path, "a", 1, patient="p", report=same),
        study(tmp_path, "b", 2, "val", patient="p", report=same),
        study(tmp_path, "c", 3, "train"),
        study(tmp_path, "d", 3, "val", report={"findings": "Other words."}),
        study(tmp_path, "e", 5, boxes=(Box((10, 10, 90, 20), "nodule"),)),
        study(tmp_path, "f", 6, boxes=(Box((2, 5, 9, 20), "left_lung"),)),
        study(tmp_path, "g", 7, findings=(Finding("wobbly flange", Certainty.PRESENT),)),
        study(tmp_path, "h", 8, report={"findings": "Replace this text."}),
        study(tmp_path, "i", 9, report={"findings": "Clear. IMPRESSION: normal."}),
        study(tmp_path, "j", 10, report={"impression": "Normal."}),
        study(tmp_path, "k", 11, report=None),
        study(tmp_path, "l", 12, report={"findings": "Fine."}),
        study(tmp_path, "l", 13, report={"findings": "Finer."}),
        study(tmp_path, "m", 14, report={"findings": "Same for two patients, word by word."}, patient="q"),
        study(tmp_path, "n", 15, report={"findings": "same for two patients word by word"}, patient="r"),
        Study("o", [StudyImage(tmp_path / "gone.png")], boxes=()),
        Study("p", [StudyImage(tmp_path / "black.png")], boxes=()),
        Study("q", [], boxes=()),
    ]
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((40, 40), np.uint8))
    result = validate(studies, graph)
    found = {(i.level, i.kind, i.study) for i in result.issues}
    assert found == {
        ("error", "patient in two splits", "p"),
        ("error", "picture in two splits", "c"),
        ("error", "box outside", "e"),
        ("warning", "side", "f"),
        ("warning", "unknown label", ""),
        ("warning", "placeholder", "h"),
        ("warning", "section in section", "i"),
        ("warning", "no findings section", "j"),
        ("warning", "nothing known", "k"),
        ("error", "same id", "l"),
        ("warning", "same picture", "l"),
        ("warning", "same report", "m"),
        ("error", "unreadable image", "o"),
        ("error", "uniform image", "p"),
        ("error", "no image", "q"),
    }
    messages = {i.kind: i.message for i in result.issues}
    assert messages["box outside"] == "box nodule [10, 10, 90, 20] leaves the image of 60x40 pixels"
    assert messages["picture in two splits"] == "the same picture in c, d: train, val"
    assert "gone.png: no such image file" in messages["unreadable image"]
    assert messages["unknown label"] == "label 'wobbly flange' (1 times) is not in the graph"


def test_exit_codes(tmp_path: Path) -> None:
    studies = clean(tmp_path)
    write_studies(tmp_path / "studies.jsonl", studies)
    done = RUN.invoke(app, ["validate", str(tmp_path), "--json", str(tmp_path / "issues.json")])
    assert done.exit_code == 0, done.output
    assert "0 errors, 0 warnings" in done.output
    assert json.loads((tmp_path / "issues.json").read_text())["issues"] == []
    studies[0].boxes = (Box((10, 10, 900, 20), "nodule"),)
    write_studies(tmp_path / "studies.jsonl", studies)
    done = RUN.invoke(app, ["validate", str(tmp_path)])
    assert done.exit_code == 1
    assert "box outside: 1" in done.output


def test_formats_are_listed_with_examples() -> None:
    done = RUN.invoke(app, ["formats"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert all(name in done.output for name in FORMATS)
    assert "indiana_projections.csv" in done.output
    assert "[annotation.json]" in done.output


def test_the_phantom_is_written_and_valid(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["phantom", "--n", "3", "--seed", "5", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".dcm", ".dcm", ".dcm", ".jsonl"]
    done = RUN.invoke(app, ["validate", str(tmp_path)])
    assert done.exit_code == 0, done.output


def test_the_real_sets_show_what_is_known_of_them(shared_data: Path, graph: KnowledgeGraph) -> None:
    from vlm.data.sources import read_studies

    openi = read_studies(shared_data / "openi")
    for item in openi:
        item.images = []
    repeated = [i for i in validate(openi, graph).issues if i.kind == "same report"]
    assert len(repeated) > 100
    assert repeated[0].message.startswith("41 studies have the findings 'the heart is normal in size")
    slake = validate(read_studies(shared_data / "slake"), graph)
    assert not slake.errors
    assert sum(i.kind == "nothing known" for i in slake.issues) == 53
