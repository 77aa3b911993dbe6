"""Validation finds what was planted, and nothing in a clean set; the command's exit code says so."""

from __future__ import annotations

import json
import re
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
from vlm.types import Box, Finding, Modality, Study, StudyImage, View

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
        Study("o", [StudyImage(tmp_path / "gone.png")], report={"findings": "Any."}),
        Study("p", [StudyImage(tmp_path / "black.png")], report={"findings": "Thing."}),
        Study("q", [], report={"findings": "At all."}),
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
        ("warning", "without report", "k"),
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


def test_exit_codes_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = clean(tmp_path)
    write_studies(tmp_path / "studies.jsonl", studies)
    monkeypatch.chdir(tmp_path)
    done = RUN.invoke(app, ["validate", str(tmp_path), "--json", str(tmp_path / "issues.json")])
    assert done.exit_code == 0, done.output
    assert "0 errors, 0 warnings" in done.output
    assert json.loads((tmp_path / "issues.json").read_text())["issues"] == []
    page = (tmp_path / f"validation-{tmp_path.name}.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "area of a box" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script""", page)
    studies[0].boxes = (Box((10, 10, 900, 20), "nodule"),)
    write_studies(tmp_path / "studies.jsonl", studies)
    (tmp_path / f"validation-{tmp_path.name}.html").unlink()
    done = RUN.invoke(app, ["validate", str(tmp_path), "--no-html"])
    assert done.exit_code == 1
    assert "box outside: 1" in done.output
    assert not list(tmp_path.glob("*.html"))


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
    done = RUN.invoke(app, ["validate", str(tmp_path), "--no-html"])
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
    assert sum(i.kind == "without boxes" for i in slake.issues) == 53
    medpix = read_studies(shared_data / "medpix")
    for item in medpix:
        item.images = []
    assert sum(i.kind == "without report" for i in validate(medpix, graph).issues) == 21


def texts(name: str, seed: int, folder: Path, **report: str) -> Study:
    return study(folder, name, seed, report=report)


def test_texts_that_are_in_the_wrong_place_or_contradict(tmp_path: Path, graph: KnowledgeGraph) -> None:
    seen = "The heart is normal in size. No pleural effusion. The lungs are clear. No pneumothorax is seen."
    left = (Finding("pleural_effusion", Certainty.PRESENT, side="left"),)
    studies = [
        texts("a", 1, tmp_path, findings="1. Pneumonia.", impression=seen),
        texts("b", 2, tmp_path, findings="54-year-old man with cough, rule out pneumonia."),
        texts("c", 3, tmp_path, findings="The heart isn\u00c3\u00a9 large."),
        texts("d", 4, tmp_path, findings="XXXX XXXX the XXXX is large XXXX."),
        texts("e", 5, tmp_path, findings="Single lateral view of the chest."),
        texts("f", 6, tmp_path, findings="Axial CT image of a liver mass."),
        study(tmp_path, "g", 7, findings=left, report={"findings": "There is a small right pleural effusion."}),
        study(tmp_path, "h", 8, findings=left, report={"findings": "There is a small left pleural effusion."}),
        texts("i", 9, tmp_path, findings="Frontal and lateral views. No CT is at hand."),
    ]
    studies[5].images[0].modality = Modality.XRAY
    found = {(i.kind, i.study) for i in validate(studies, graph).issues}
    assert found == {
        ("sections swapped", "a"),
        ("sections swapped", "b"),
        ("broken characters", "c"),
        ("mostly masked", "d"),
        ("view", "e"),
        ("modality", "f"),
        ("side in text", "g"),
    }


def test_copies_that_are_not_quite_copies(tmp_path: Path, graph: KnowledgeGraph) -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.random((9, 9)).astype(np.float32), (90, 120), interpolation=cv2.INTER_CUBIC)
    original = (smooth.clip(0, 1) * 255).astype(np.uint8)
    darker = (original * 0.8 + 7).astype(np.uint8)
    report = "The heart is normal in size and shape. The lungs are clear of any focal airspace disease today."
    studies = []
    for name, pixels, text in (
        ("original", original, report),
        ("smaller", cv2.resize(darker, (60, 80), interpolation=cv2.INTER_AREA), report.replace("today", "now")),
        (
            "mirrored",
            np.ascontiguousarray(original[:, ::-1]),
            "Something else entirely is said here of another patient.",
        ),
        ("other", (rng.random((120, 90)) * 255).astype(np.uint8), "Large left pneumothorax."),
    ):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        studies.append(Study(name, [StudyImage(tmp_path / f"{name}.png")], report={"findings": text}, split="train"))
    studies[1].split = "val"
    result = validate(studies, graph)
    messages = {i.kind: i.message for i in result.issues if i.study in ("original", "smaller")}
    alike = "2 studies show nearly the same picture (original, smaller): train, val"
    assert messages["like picture in two splits"] == alike
    assert "mirror images of one another" in messages["mirrored picture in two splits"]
    assert "in 2 wordings" in messages["like report"]
    assert {s for s, _, _, kind in result.pictures if kind == "like picture in two splits"} == {"original", "smaller"}


def test_letters_in_a_picture_are_suspected(tmp_path: Path, graph: KnowledgeGraph) -> None:
    pixels = np.full((300, 300), 60, np.uint8)
    cv2.circle(pixels, (150, 150), 90, 140, -1)
    clean_copy = cv2.putText(pixels.copy(), "L", (250, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    named = cv2.putText(pixels.copy(), "DOE JANE 1970", (10, 280), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    studies = []
    for name, picture in (("marker", clean_copy), ("named", named)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
        studies.append(Study(name, [StudyImage(tmp_path / f"{name}.png")], report={"findings": f"{name} is fine."}))
    issues = [i for i in validate(studies, graph).issues if i.kind == "burnt-in text"]
    assert [i.study for i in issues] == ["named"]
    assert "letters at the left bottom" in issues[0].message


def test_workers_find_the_same(tmp_path: Path, graph: KnowledgeGraph) -> None:
    studies = [study(tmp_path, f"s{i}", i % 150) for i in range(160)]
    alone, two = validate(studies, graph), validate(studies, graph, workers=2)
    assert alone.issues == two.issues
    assert [name for name, *_ in alone.pictures] == [name for name, *_ in two.pictures]
    assert sum(i.kind == "same picture" for i in two.issues) == 10
