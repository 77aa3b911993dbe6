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
        ("Mass in the right upper lobe. Normal slice.", "normal_beside_finding", "Mass", "Normal slice"),
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


@pytest.mark.parametrize(
    "text",
    [
        "No lesion in the left or right lung. Left nodule.",
        "No abnormality in the left or right lung. Nodule in the right lung.",
        "No abnormality of the right lung or the left kidney. Left kidney stone.",
        "No abnormality in the left lung and right lung. Nodule in the right lung.",
        "No abnormality of the left lung or heart. Cardiomegaly.",
        "No lesion in the right upper lobe or left lower lobe. Nodule in the left lower lobe.",
        "No cardiac or left pulmonary abnormality. Cardiomegaly.",
        "No abnormality of the bones. Rib fracture.",
        "No lesion in the bones. Lytic lesion in the left rib.",
        "No abnormality of the pleura. Left pneumothorax.",
        "No acute cardiopulmonary or osseous abnormality. Pneumonia.",
        "No lesion; right pleural effusion. Left nodule.",
        "Left kidney: No lesion. Cyst in the left kidney.",
        "No lesion or effusion on the right. Right nodule.",
        "Lungs: No lesion. Mass in the left lung.",
        "No lesion is seen and there is an effusion on the right. Left nodule.",
    ],
)
def test_lists_and_headings_give_a_denial_its_places(text: str) -> None:
    assert contradictions(READER.read(text), GRAPH)


@pytest.mark.parametrize(
    "text",
    [
        "No nodules in the lung. Nodule in the right kidney.",
        "No edema in the lungs. Edema in the brain.",
        "Lungs are clear. There is a round opacity within the posterior mediastinum.",
        "The lungs are clear except for an infiltrate in the left lung.",
        "Apart from the left infiltrate, no lesion is seen.",
        "No lesion other than an infiltrate in the left lung.",
        "The left lung is clear with the exception of an infiltrate.",
        "Infiltrate in the left lung. No lesion elsewhere.",
        "Infiltrate in the left lung. The left lung is otherwise without lesion.",
        "Infiltrate. The remaining lungs show no abnormality.",
        "Nodule on the left; the left lung is clear otherwise.",
        "Liver: No focal lesion. Nodule in the left lung.",
        "Bones: No suspicious lesion. Calcified granuloma in the left lung.",
        "No suspicious lesion. Nodule.",
        "No malignant disease in the lungs. Pneumonia in the left lung.",
        "No lesion suspicious for malignancy. Calcified granuloma in the left lung.",
        "No finding in the left lung to suggest pneumonia. Nodule in the left lung.",
        "No lesion or effusion on the right. Left nodule.",
        "No enhancing lesion. Nodule on the left.",
        "Infiltrate in the left lung. No other lesion in the left lung.",
        "The previously seen lesion in the left lung has resolved. Nodule in the left lung.",
    ],
)
def test_a_denial_of_some_or_elsewhere_contradicts_nothing(text: str) -> None:
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
