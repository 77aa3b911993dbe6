"""A sentence that names the other side than the finding's boxes is contradicted, and a candidate with the right side
wins."""

from __future__ import annotations

import pytest

from knowledge.graph import KnowledgeGraph
from vlm.generation.consistency import rerank
from vlm.generation.evidence import Evidence
from vlm.generation.structuring import Structurer
from vlm.types import Box


@pytest.fixture(scope="module")
def structurer() -> Structurer:
    return Structurer(KnowledgeGraph.load())


# The patient's left is at the viewer's right.
EVIDENCE = Evidence({"nodule": 0.95}, (Box((400.0, 200.0, 430.0, 230.0), "nodule", 0, 0.9),), (512,), None, 0.5)
RIGHT, LEFT = "There is a nodule in the right upper lobe.", "There is a nodule in the left upper lobe."


def test_the_wrong_side_is_contradicted_and_the_right_one_points_at_its_box(structurer: Structurer) -> None:
    (wrong,) = structurer.sentences({"findings": RIGHT}, EVIDENCE)
    (right,) = structurer.sentences({"findings": LEFT}, EVIDENCE)
    assert (wrong.status, wrong.boxes) == ("contradicted", ())
    assert (right.status, right.boxes) == ("supported", (0,))


def test_a_faint_box_is_no_evidence(structurer: Structurer) -> None:
    faint = Evidence({"nodule": 0.95}, (Box((400.0, 200.0, 430.0, 230.0), "nodule", 0, 0.2),), (512,), None, 0.5)
    (sentence,) = structurer.sentences({"findings": RIGHT}, faint)
    assert (sentence.status, sentence.boxes) == ("supported", ())


def test_the_candidate_with_the_right_side_wins(structurer: Structurer) -> None:
    assert rerank([RIGHT, LEFT], [-0.2, -0.5], structurer, EVIDENCE) == [1, 0]


def test_a_side_named_once_in_a_sentence_holds_for_its_findings(structurer: Structurer) -> None:
    evidence = Evidence(
        {"infiltrate": 0.99}, (Box((400.0, 200.0, 430.0, 230.0), "infiltrate", 0, 0.9),), (512,), None, 0.5
    )
    text = "There is a dense infiltrate with air bronchograms in the right lower lobe."
    (wrong,) = structurer.sentences({"findings": text}, evidence)
    (right,) = structurer.sentences({"findings": text.replace("right", "left")}, evidence)
    assert wrong.status == "contradicted"
    assert right.status == "supported"
