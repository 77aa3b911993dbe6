"""Denials and assertions of anything at all are held against every box and probability that they speak of."""

from __future__ import annotations

from functools import cache

import pytest

from knowledge.graph import KnowledgeGraph
from vlm.generation.consistency import agreement
from vlm.generation.evidence import Evidence
from vlm.generation.structuring import Structurer
from vlm.types import Box

LEFT, RIGHT = (400.0, 200.0, 430.0, 230.0), (80.0, 200.0, 110.0, 230.0)
"""The patient's left is at the viewer's right."""


@cache
def structurer() -> Structurer:
    return Structurer(KnowledgeGraph.load())


def seen(probabilities: dict[str, float], **boxes: tuple[float, float, float, float]) -> Evidence:
    return Evidence(probabilities, tuple(Box(xyxy, label, 0, 0.9) for label, xyxy in boxes.items()), (512,), None, 0.5)


def status(text: str, evidence: Evidence) -> str:
    (sentence,) = structurer().sentences({"findings": text}, evidence)
    return sentence.status


INFILTRATE = seen({"infiltrate": 0.99, "nodule": 0.02, "mass": 0.02, "calcification": 0.02}, infiltrate=LEFT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No lesion is seen in the left lung.", "contradicted"),
        ("No lesion is seen in the right lung.", "supported"),
        ("No lesion is seen.", "contradicted"),
        ("No focal lung lesion.", "contradicted"),
        ("The lungs are clear.", "contradicted"),
        ("The left lung is clear.", "contradicted"),
        ("The right lung is clear.", "supported"),
        ("No abnormality in the left lung.", "contradicted"),
        ("No acute abnormality in the left lung.", "contradicted"),
        ("No acute abnormality in the lungs.", "contradicted"),
        ("Normal slice.", "contradicted"),
        ("No lesion is seen in the left lower lobe.", "unsupported"),  # a box tells a side and no lobe
        ("No lesion in the left kidney.", "unsupported"),
        ("There is a lesion in the left lung.", "supported"),
        ("There is a lesion in the right lung.", "contradicted"),
        ("There may be a lesion in the right lung.", "unsupported"),
    ],
)
def test_a_box_speaks_against_the_denial_of_everything_there(text: str, expected: str) -> None:
    assert status(text, INFILTRATE) == expected


def test_the_sentence_names_the_labels_that_speak_against_it_and_the_assertion_points_at_its_box() -> None:
    denied, said = structurer().sentences(
        {"findings": "No lesion is seen in the left lung. There is a lesion in the left lung."}, INFILTRATE
    )
    assert "infiltrate" in denied.labels
    assert denied.confidence == pytest.approx(0.1)
    assert (said.labels, said.boxes, said.confidence) == (("infiltrate",), (0,), pytest.approx(0.99))


def test_a_calcified_lesion_is_denied_by_clear_lungs_when_a_box_marks_it() -> None:
    evidence = seen({"nodule": 0.01, "calcification": 0.9}, calcification=LEFT)
    assert status("The lungs are clear.", evidence) == "contradicted"
    assert status("The right lung is clear.", evidence) == "supported"
    # Without a box it may lie in the aorta or a node.
    assert status("The lungs are clear.", seen({"nodule": 0.01, "calcification": 0.9})) == "supported"
    assert status("No lesion in the lungs.", seen({"nodule": 0.01, "calcification": 0.9})) == "supported"


def test_a_high_probability_without_a_box_contradicts_the_whole_and_not_a_side() -> None:
    evidence = seen({"nodule": 0.95, "mass": 0.01})
    assert status("The lungs are clear.", evidence) == "contradicted"
    assert status("No focal lung lesion.", evidence) == "contradicted"
    assert status("The left lung is clear.", evidence) == "unsupported"
    assert status("No nodule in the left lung.", evidence) == "unsupported"
    assert status("No nodule.", evidence) == "contradicted"


def test_a_denial_of_one_side_is_borne_out_by_boxes_on_the_other() -> None:
    evidence = seen({"nodule": 0.95}, nodule=LEFT)
    assert status("No nodule in the right lung.", evidence) == "supported"
    assert status("No nodule in the left lung.", evidence) == "contradicted"


def test_a_normal_study_is_contradicted_by_a_box_of_what_it_does_not_have() -> None:
    evidence = seen({"normal": 0.5, "nodule": 0.5}, nodule=LEFT)
    assert status("Normal chest.", evidence) == "contradicted"
    assert status("No acute abnormality.", evidence) == "unsupported"
    assert status("No acute abnormality.", seen({"normal": 0.5}, infiltrate=LEFT)) == "contradicted"


def test_a_denial_of_much_earns_no_more_than_a_denial_of_one() -> None:
    low = {"nodule": 0.02, "mass": 0.02, "infiltrate": 0.02, "airspace_disease": 0.02}
    one = agreement("No nodule.", structurer(), seen(low)).value
    assert agreement("No lesion is seen.", structurer(), seen(low)).value == pytest.approx(one)
    assert agreement("No lesion is seen.", structurer(), INFILTRATE).value < 0


def test_a_list_shares_its_side() -> None:
    assert status("No lesion or effusion on the right.", INFILTRATE) == "supported"


def test_a_view_may_have_the_general_word_as_a_label() -> None:
    own = Structurer(KnowledgeGraph.load(), view="chexpert14")
    label = next(name for name, ids in own.graph.views["chexpert14"].items() if "lung_lesion" in ids)
    for text, expected in (("No lung lesion.", "contradicted"), ("There is a lung lesion.", "supported")):
        (sentence,) = own.sentences({"findings": text}, seen({label: 0.9}))
        assert (sentence.status, sentence.labels) == (expected, (label,))


def test_the_confidence_of_a_denial_on_one_side_is_about_that_side() -> None:
    for text in ("The right lung is clear.", "No lesion is seen in the right lung.", "No infiltrate on the right."):
        (sentence,) = structurer().sentences({"findings": text}, INFILTRATE)
        assert sentence.status == "supported"
        assert sentence.confidence == pytest.approx(0.98)
    faint = Evidence({"nodule": 0.99}, (Box(LEFT, "nodule", 0, 0.9), Box(RIGHT, "nodule", 0, 0.3)), (512,), None, 0.5)
    (sentence,) = structurer().sentences({"findings": "No nodule in the right lung."}, faint)
    assert (sentence.status, sentence.confidence) == ("supported", pytest.approx(0.7))
    (sentence,) = structurer().sentences({"findings": "No nodule in the left lung."}, faint)
    assert (sentence.status, sentence.confidence) == ("contradicted", pytest.approx(0.1))


def test_a_verdict_does_not_hang_on_what_was_judged_before() -> None:
    right = seen({"nodule": 0.95}, nodule=RIGHT)
    own = Structurer(KnowledgeGraph.load())
    for text in ("No lesion in the left or right lung.", "No lesion is seen in the right lung."):
        (sentence,) = own.sentences({"findings": text}, right)
        assert sentence.status == "contradicted"


def test_clear_lungs_have_no_edema() -> None:
    assert status("The left lung is clear.", seen({"edema": 0.5}, edema=LEFT)) == "contradicted"
    assert status("The right lung is clear.", seen({"edema": 0.5}, edema=LEFT)) == "supported"


@pytest.mark.parametrize(
    "text",
    [
        "The lungs are clear except for an infiltrate in the left lung.",
        "Apart from the left infiltrate, no lesion is seen.",
        "No lesion other than an infiltrate in the left lung.",
        "Infiltrate in the left lung. No lesion elsewhere.",
        "No other lesion.",
        "No new lesion in the left lung.",
        "No large lesion in the left lung.",
        "No enhancing lesion.",
        "No chronic lesion in the left lung.",
        "The previously seen lesion in the left lung has resolved.",
        "Kidneys: No lesion.",
        "No suspicious lesion in the left lung.",
    ],
)
def test_what_is_denied_of_some_or_elsewhere_is_not_contradicted(text: str) -> None:
    found = structurer().sentences({"findings": text}, INFILTRATE)
    assert all(sentence.status != "contradicted" for sentence in found)


def test_an_organ_without_sides_takes_none() -> None:
    evidence = seen({"cardiomegaly": 0.97})
    assert status("No cardiac or left pulmonary abnormality.", evidence) == "contradicted"
