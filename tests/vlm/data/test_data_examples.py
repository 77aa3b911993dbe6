"""What a model is told of a study: findings that are known, tokens that weigh more, views and classes looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import draw_study
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from vlm.config import Data
from vlm.data.examples import ExampleBuilder, choose_views, looked_for
from vlm.types import Box, Finding, Study, StudyImage, View

BOXES = ("nodule", "mass")
PRESENT, ABSENT, UNCERTAIN = Certainty.PRESENT, Certainty.ABSENT, Certainty.UNCERTAIN


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return KnowledgeGraph.load()


@pytest.fixture(scope="module")
def tokenizer(language_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(language_folder)


def make_builder(graph: KnowledgeGraph, tokenizer: PreTrainedTokenizerBase, **data: object) -> ExampleBuilder:
    config = Data.model_validate({"image_size": {"default": 64}, "max_report_tokens": 60, **data})
    return ExampleBuilder(config, tuple(graph.views["radscribe"]), BOXES, graph, tokenizer, concept_weight=3.0)


@pytest.fixture(scope="module")
def builder(graph: KnowledgeGraph, tokenizer: PreTrainedTokenizerBase) -> ExampleBuilder:
    return make_builder(graph, tokenizer)


def known(builder: ExampleBuilder, text: str = "", **findings: Certainty) -> dict[str, float]:
    """Label -> target, unknown ones left out. In names of findings "__" stands for " / " and "_" stays."""
    stated = tuple(Finding(name.replace("__", " / "), said) for name, said in findings.items())
    study = Study("s", [], report={"findings": text} if text else None, findings=stated)
    targets = builder.targets(study)
    return {name: float(t) for name, t in zip(builder.labels, targets, strict=True) if not np.isnan(t)}


def test_nothing_said_is_unknown_and_never_negative(builder: ExampleBuilder) -> None:
    assert known(builder) == {}
    assert known(builder, "There is a small nodule.") == {"normal": 0.0, "nodule": 1.0}


def test_a_possible_finding_is_unknown(builder: ExampleBuilder) -> None:
    said = known(builder, "Possible pneumonia. No pneumothorax.")
    assert said["pneumothorax"] == 0.0
    assert "pneumonia" not in said
    assert "normal" not in said


@pytest.mark.parametrize("said, expected", [(PRESENT, 1.0), (ABSENT, 0.0), (UNCERTAIN, None)])
def test_people_outweigh_the_text(builder: ExampleBuilder, said: Certainty, expected: float | None) -> None:
    for text in ("There is a mass.", "There is no mass."):
        assert known(builder, text, mass=said).get("mass") == expected


def test_the_text_resolves_a_label_that_lumps(builder: ExampleBuilder) -> None:
    said = known(builder, "A nodule in the left lung. No mass.", nodule__mass=PRESENT)
    assert said["nodule"] == 1.0
    assert "mass" not in said  # people say one of the two; what the text denies is then not certain
    assert known(builder, nodule__mass=PRESENT) == {}
    assert known(builder, "A nodule.", nodule__mass=ABSENT) == {"normal": 0.0, "nodule": 0.0, "mass": 0.0}


def test_a_label_that_stands_for_several_concepts(builder: ExampleBuilder) -> None:
    """The model's "pneumonia" stands for consolidation too: either makes it present, only both make it absent."""
    assert builder.coverage["Consolidation"] == ("pneumonia",)
    assert known(builder, Consolidation=PRESENT) == {"pneumonia": 1.0}
    assert known(builder, Consolidation=ABSENT) == {}
    assert known(builder, Consolidation=ABSENT, Pneumonia=ABSENT) == {"pneumonia": 0.0}
    for order in (("Consolidation", "Pneumonia"), ("Pneumonia", "Consolidation")):
        assert known(builder, **dict(zip(order, (PRESENT, ABSENT), strict=True))) == {"pneumonia": 1.0}
    assert known(builder, "There is pneumonia.", Consolidation=ABSENT)["pneumonia"] == 1.0


def test_every_label_of_every_view_has_its_coverage(builder: ExampleBuilder, graph: KnowledgeGraph) -> None:
    assert set(builder.coverage) >= {label for view in graph.views.values() for label in view}
    assert all(builder.coverage[name] == (name,) for name in builder.labels)
    assert builder.coverage["Lung Lesion"] == ("nodule", "mass")
    assert builder.coverage["Pneumothorax"] == ("pneumothorax",)  # hydropneumothorax is an effusion as well


def test_a_set_may_label_by_any_finding_of_the_graph(builder: ExampleBuilder) -> None:
    assert builder.coverage["consolidation"] == ("pneumonia",)
    assert builder.coverage["kidney_stone"] == ("other_finding",)
    assert builder.coverage["lung_lesion"] == builder.coverage["kidney_finding"] == ("other_finding",)
    assert "left_lung" not in builder.coverage
    assert known(builder, kidney_stone=PRESENT, normal=ABSENT) == {"other_finding": 1.0, "normal": 0.0}
    assert known(builder, kidney_stone=ABSENT) == {}  # another finding may be there


def pieces(builder: ExampleBuilder, ids: np.ndarray) -> list[str]:
    return [builder.tokenizer.decode([i]) for i in ids]


def test_tokens_of_a_mention_weigh_more(builder: ExampleBuilder) -> None:
    ids, labels, weights = builder._tokens({"findings": "Seen there: a nodule.", "impression": "Nodule  again."})
    assert builder.tokenizer.decode(ids[:-1]) == " Seen there: a nodule.\nImpression: Nodule again."
    heavy = "".join(piece for piece, w in zip(pieces(builder, ids), weights, strict=True) if w == 3.0)
    light = "".join(piece for piece, w in zip(pieces(builder, ids), weights, strict=True) if w == 1.0)
    assert heavy.lower().split() == ["nodule", "nodule"] or heavy.lower().replace(" ", "") == "nodulenodule"
    assert "odule" not in light
    assert ids[-1] == labels[-1] == builder.tokenizer.eos_token_id
    assert np.array_equal(ids, labels)


def test_the_mark_of_the_de_identifier_carries_no_loss(builder: ExampleBuilder) -> None:
    ids, labels, weights = builder._tokens({"findings": "Mild cardiomegaly XXXX seen."})
    mark = builder.tokenizer.convert_tokens_to_ids("XXXX")
    assert (ids == mark).sum() == 1
    assert np.array_equal(labels == -100, ids == mark)
    assert len(ids) == len(labels) == len(weights)


def test_a_cut_report_is_not_taught_to_end(graph: KnowledgeGraph, tokenizer: PreTrainedTokenizerBase) -> None:
    text = {"findings": "The lungs are clear. " * 6}
    whole, _, _ = make_builder(graph, tokenizer, max_report_tokens=200)._tokens(text)
    assert whole[-1] == tokenizer.eos_token_id
    exact, _, _ = make_builder(graph, tokenizer, max_report_tokens=len(whole))._tokens(text)
    assert np.array_equal(exact, whole)
    cut, labels, weights = make_builder(graph, tokenizer, max_report_tokens=len(whole) - 1)._tokens(text)
    assert np.array_equal(cut, whole[: len(cut)])
    assert len(cut) == len(labels) == len(weights) == len(whole) - 2
    assert tokenizer.eos_token_id not in cut


def test_no_report_has_no_tokens(builder: ExampleBuilder, tmp_path: Path) -> None:
    example = builder.build(replace(draw_study(tmp_path, 1), report=None))
    assert len(example.report_ids) == len(example.report_labels) == len(example.report_weights) == 0


def test_a_study_becomes_an_example(builder: ExampleBuilder, tmp_path: Path) -> None:
    """An 80x96 picture fills a square of 64 to 53x64, 5 columns from the left."""
    example = builder.build(draw_study(tmp_path, 1))
    assert example.pixels.shape == (2, 64, 64)
    assert example.boxes_xyxy[0] == pytest.approx(np.array([[12.95, 21.33, 23.55, 32.0]]), abs=0.02)
    assert len(example.boxes_xyxy[1]) == 0
    assert example.box_known.tolist() == [[True, False], [True, False]]


def views(*names: View | None) -> list[StudyImage]:
    return [StudyImage(path=Path(f"{i}.png"), view=name) for i, name in enumerate(names)]


def test_one_of_each_view_comes_first() -> None:
    images = views(View.FRONTAL, View.FRONTAL, View.LATERAL)
    assert choose_views(images, 1) == (0,)
    assert choose_views(images, 2) == (0, 2)
    assert choose_views(images, 3) == choose_views(images, 9) == (0, 1, 2)
    assert choose_views([], 2) == ()
    assert choose_views(views(View.AXIAL, *[None] * 3), 2) == (0, 1)


def test_slices_of_one_view_are_spread() -> None:
    assert choose_views(views(*[View.AXIAL] * 8), 2) == (2, 6)
    assert choose_views(views(*[View.AXIAL] * 3), 4) == (0, 1, 2)


def test_classes_that_somebody_looked_for(tmp_path: Path) -> None:
    study = Study("s", [], boxes=(), findings=(Finding("mass", ABSENT), Finding("nodule", UNCERTAIN)))
    assert looked_for(study, BOXES) == [1]
    boxed = replace(study, boxes=(Box((0, 0, 4, 4), "nodule"),), findings=(Finding("nodule", PRESENT),))
    assert looked_for(boxed, BOXES) == [0]
    assert looked_for(replace(boxed, boxes=()), BOXES) == [], "present without a box: somewhere"
    assert looked_for(replace(study, boxes=None), BOXES) == []
    for name in ("normal", "normal / no indexing"):
        healthy = replace(study, boxes=None, findings=(Finding(name, PRESENT),))
        assert looked_for(healthy, BOXES) == [0, 1]
        assert looked_for(replace(healthy, findings=(Finding(name, ABSENT),)), BOXES) == []
