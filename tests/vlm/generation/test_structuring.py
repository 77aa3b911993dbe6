"""Sentences point at their evidence, contradictions are flagged, candidates are reranked."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from knowledge.graph import KnowledgeGraph
from vlm.generation.checking import unmet_in
from vlm.generation.compiling import compile_constraints
from vlm.generation.consistency import agreement, consensus_rerank, rerank
from vlm.generation.evidence import Evidence
from vlm.generation.steering import Threshold, choose_thresholds, steer, term_automaton
from vlm.generation.structuring import Structurer, abstain
from vlm.generation.wording import Wording, wording_of
from vlm.types import Box, InputError

PROBABILITIES = {
    "cardiomegaly": 0.95,
    "pleural_effusion": 0.9,
    "pneumothorax": 0.01,
    "edema": 0.3,
    "opacity": 0.02,
    "normal": 0.02,
}
BOXES = (Box((10, 10, 40, 40), "pleural_effusion", 0, 0.8), Box((70, 10, 95, 40), "pleural_effusion", 0, 0.6))


@cache
def structurer() -> Structurer:
    return Structurer(KnowledgeGraph.load())


@cache
def wording() -> Wording:
    return wording_of(KnowledgeGraph.load())


def evidence() -> Evidence:
    return Evidence(PROBABILITIES, BOXES, widths=(100,))


def test_each_sentence_gets_its_status_labels_and_boxes() -> None:
    text = "The heart is enlarged. There is a right pleural effusion. There is a pneumothorax. No effusion. A red tie."
    found = structurer().sentences({"findings": text}, evidence())
    assert [s.status for s in found] == ["supported", "supported", "contradicted", "contradicted", "unsupported"]
    assert found[0].labels == ("cardiomegaly",)
    assert found[1].boxes == (0,)  # the patient's right is at the viewer's left
    assert found[0].confidence == pytest.approx(0.95)
    assert found[3].confidence == pytest.approx(0.1)
    assert found[4].confidence is None
    assert " ".join(s.text for s in found) == text


def test_a_contradiction_inside_the_report_is_flagged_on_the_less_probable_side() -> None:
    mild = Evidence({"edema": 0.3})
    found = structurer().sentences({"findings": "There is pulmonary edema. No pulmonary edema is seen."}, mild)
    assert [s.status for s in found] == ["contradicted", "unsupported"]
    both = structurer().sentences({"findings": "There is pulmonary edema.", "impression": "No pulmonary edema."}, mild)
    assert [s.status for s in both] == ["contradicted", "unsupported"]


def test_abstaining_leaves_out_what_is_not_sure_and_says_so() -> None:
    found = structurer().sentences({"findings": "The heart is enlarged. There is a pneumothorax. Fine."}, evidence())
    kept, left_out = abstain(found, 0.5)
    assert [s.text for s in kept] == ["The heart is enlarged.", "Fine."]
    assert [s.text for s in left_out] == ["There is a pneumothorax."]


def test_agreement_prefers_the_report_that_fits() -> None:
    good = "The heart is enlarged. There is a small pleural effusion. No pneumothorax."
    bad = "The heart is normal in size. No pleural effusion. There is a pneumothorax."
    assert agreement(good, structurer(), evidence()).value > agreement(bad, structurer(), evidence()).value
    assert "pneumothorax" in agreement(bad, structurer(), evidence()).contradicted
    assert set(agreement(bad, structurer(), evidence()).omitted) == {"cardiomegaly", "pleural_effusion"}
    assert rerank([bad, good], [-0.5, -0.6], structurer(), evidence()) == [1, 0]


def test_consensus_is_highest_in_the_middle() -> None:
    values = consensus_rerank(["the heart is large", "the heart is large .", "the lungs are clear today"])
    assert values[2] == min(values)
    assert consensus_rerank(["one"]) == [1.0]
    with pytest.raises(InputError, match="2 weights for 1"):
        consensus_rerank(["one"], [1.0, 2.0])


def test_steering_requires_what_is_seen_and_forbids_what_is_not() -> None:
    from generation_text import byte_level

    constraints = steer(PROBABILITIES, wording())
    assert [entry.name for entry in constraints.must_appear if entry.weight is None] == [
        "cardiomegaly",
        "pleural_effusion",
    ]
    forbidden = {entry.name for entry in constraints.must_not_assert if entry.weight is None}
    assert forbidden >= {"pneumothorax", "opacity", "cardiomegaly normal"}
    compiled = compile_constraints(constraints, byte_level(), 80, automaton=term_automaton(wording()))
    alone = compile_constraints(constraints, byte_level(), 80)
    for text, unmet in (
        ("Heart size is enlarged. Small effusions. No pneumothorax, consolidation or opacity.", ()),
        ("Enlarged heart. Clear lungs.", ("pleural_effusion",)),
        ("Enlarged heart. Small effusion. No effusion.", ("must_not_assert",)),
        ("Cardiomegaly. Small effusion. The heart size is normal.", ("must_not_assert",)),
        ("Cardiomegaly. Small effusion. Heart size within normal limits.", ("must_not_assert",)),
        ("Cardiomegaly with effusion. There is a pneumothorax.", ("must_not_assert",)),
        ("Cardiomegaly with effusion. No change in the right lung opacity.", ("must_not_assert",)),
        ("Cardiomegaly with effusion. Pneumothorax is not seen. No opacities.", ()),
    ):
        assert unmet_in(compiled, text) == unmet, text
        assert unmet_in(alone, text) == unmet, text
    with pytest.raises(InputError, match="must lie in"):
        steer({"edema": 1.5}, wording())


def test_thresholds_keep_their_promises() -> None:
    draw = np.random.default_rng(0)
    truths = (draw.random(2000) < 0.2).astype(float)
    scores = np.clip(0.2 + 0.4 * truths + 0.2 * draw.standard_normal(2000), 0, 1)
    cut = choose_thresholds(scores, truths, sensitivity=0.95, precision=0.8)
    assert (scores[truths == 1] > cut.lower).mean() >= 0.95
    assert truths[scores >= cut.upper].mean() >= 0.8
    assert choose_thresholds(scores[:20], np.zeros(20)).upper > 1
    with pytest.raises(InputError, match="lower must be below"):
        Threshold(0.5, 0.5)
