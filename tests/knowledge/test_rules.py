"""Contradictions are found, with the rule and both spans; what only looks like one is left alone."""

from __future__ import annotations

import pytest

from knowledge.anatomy import side_of_place
from knowledge.extraction import ReportReader
from knowledge.graph import KnowledgeGraph
from knowledge.rules import contradictions

GRAPH = KnowledgeGraph.load()
READER = ReportReader(GRAPH)


@pytest.mark.parametrize(
    ("text", "rule", "first", "second"),
    [
        ("No pneumothorax. Small left apical pneumothorax.", "present_and_absent", "pneumothorax", "pneumothorax"),
        (
            "The heart is enlarged. Heart size is normal.",
            "present_and_absent",
            "heart is enlarged",
            "Heart size is normal",
        ),
        ("No fracture. Acute compression fracture of T12.", "parent_absent", "fracture", "compression fracture"),
        ("Low lung volumes. The lungs are hyperinflated.", "exclusive", "Low lung volumes", "lungs are hyperinflated"),
        ("Normal chest. Left effusion.", "normal_beside_finding", "Normal chest", "effusion"),
        ("No acute disease. Left pneumothorax.", "normal_beside_finding", "No acute disease", "pneumothorax"),
        ("Nodule in the left middle lobe.", "side_against_place", "Nodule", None),
        ("Opacity in the right lingula.", "side_against_place", "Opacity", None),
    ],
)
def test_contradiction(text: str, rule: str, first: str, second: str | None) -> None:
    found = contradictions(READER.read(text), GRAPH)
    assert [c.rule for c in found] == [rule]
    (c,) = found
    assert text[c.first.start : c.first.end] == first
    assert (c.second and text[c.second.start : c.second.end]) == second
    assert c.message


@pytest.mark.parametrize(
    "text",
    [
        "No pneumothorax on the left. Right pneumothorax.",
        "No large effusion. Small left effusion.",
        "No acute abnormality. Mild scoliosis. Stable cardiomegaly.",
        "Left pneumothorax has resolved. No pneumothorax.",
        "Possible pneumonia. No pneumonia.",
        "No new infiltrate. Chronic infiltrate in the right upper lobe.",
        "History of pneumothorax. No pneumothorax.",
        "Right middle lobe nodule.",
        "Right basilar opacity. The lungs are otherwise clear.",
        "No acute disease. Old rib fracture.",
        "Low volumes on the left. Hyperinflated right lung.",
        "",
    ],
)
def test_no_contradiction(text: str) -> None:
    assert contradictions(READER.read(text), GRAPH) == []


def test_each_pair_is_told_once() -> None:
    text = "No effusion. Left effusion. No effusion. Left effusion."
    assert len(contradictions(READER.read(text), GRAPH)) == 1


@pytest.mark.parametrize(
    ("place", "side"),
    [("middle_lobe", "right"), ("lingula", "left"), ("left_lung", "left"), ("lung", None), ("left_ventricle", None),
     ("right_upper_quadrant", "right"), ("minor_fissure", "right")],
)  # fmt: skip
def test_side_of_place(place: str, side: str | None) -> None:
    assert side_of_place(place, GRAPH) == side
