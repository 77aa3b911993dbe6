"""Contradictions are found, with the rule and both spans; what only looks like one is left alone."""

from __future__ import annotations

import pytest

from knowledge.anatomy import side_of_place
from knowledge.extraction import ReportReader
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Concept, Edge, Kind, Relation
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
        (
            "Moderate infiltrate in the left lower lobe. No lesion is seen in the left lung.",
            "nothing_there",
            "infiltrate",
            "lesion",
        ),
        ("No focal lung lesion. Calcification of the right lung.", "nothing_there", "lung lesion", "Calcification"),
        ("Nodule in the left upper lobe. The lungs are clear.", "nothing_there", "Nodule", "lungs are clear"),
        ("Bilateral infiltrates. The left lung is clear.", "nothing_there", "infiltrates", "left lung is clear"),
        ("No lesion in the kidneys. Right renal cyst.", "nothing_there", "lesion", "renal cyst"),
        ("No abnormality on the left. Left effusion.", "nothing_there", "No abnormality", "effusion"),
        ("A lesion in the left lung base. Clear lungs.", "nothing_there", "lesion", "Clear lungs"),
        (
            "The lungs and pleural spaces show no acute abnormality. Left effusion.",
            "nothing_there",
            "no acute abnormality",
            "effusion",
        ),
        ("Normal chest. A lesion in the left lung.", "normal_beside_finding", "Normal chest", "lesion"),
        ("The bones are intact. Left rib fracture.", "present_and_absent", "bones are intact", "fracture"),
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
        "Infiltrate in the right lower lobe. No lesion is seen in the left lung.",
        "Calcified granuloma in the right upper lobe. The lungs are clear.",  # as radiologists write
        "Calcified granuloma in the right upper lobe. The lungs are normal. Calcified hilar nodes.",
        "Opacity on the right. The left lung is clear.",
        "Consolidation and atelectasis in the right lung base. Left lung is clear.",
        "Visualized osseous structures are without acute abnormality. Healed left clavicular fracture.",
        "Mass in the left lung. The remainder of the lungs are clear.",
        "Aortic calcification. No focal lesion.",
        "No large lesion. Small nodule on the left.",
        "No new lesion. Nodule on the left.",
        "No other lesion. Nodule on the left.",
        "No abnormality of the left kidney. Stone in the right kidney.",
        "The bony structures reveal no acute abnormality. Left pneumothorax.",
        "No acute abnormality of the lungs. Scar in the left lung.",
        "Possible lesion in the left lung. The left lung is clear.",
        "Mild scoliosis. Lungs are clear. No acute bony abnormality.",
        "",
    ],
)
def test_no_contradiction(text: str) -> None:
    assert contradictions(READER.read(text), GRAPH) == []


def test_what_the_same_words_deny_by_name_is_told_once() -> None:
    found = contradictions(READER.read("The lungs are clear. Left lower lobe opacity."), GRAPH)
    assert [c.rule for c in found] == ["present_and_absent"]


def test_a_graph_that_has_a_concept_of_that_name_says_itself_what_it_covers() -> None:
    lesion = Concept("lesion", "lesion", Kind.FINDING, source="me")
    own = KnowledgeGraph(
        {**{i: GRAPH.concepts[i] for i in ("nodule", "mass", "lung", "left_lung", "thorax", "body")}, "lesion": lesion},
        [Edge("nodule", "lesion", Relation.IS_A, 1.0, "me"), Edge("lesion", "lung", Relation.LOCATED_IN, 1.0, "me")],
        check=False,
    )
    reader = ReportReader(own)
    found = contradictions(reader.read("No lesion. A nodule. A mass."), own)
    assert [(c.rule, c.second and c.second.concept) for c in found] == [("parent_absent", "nodule")]


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
