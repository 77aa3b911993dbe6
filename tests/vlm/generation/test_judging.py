"""Contradictions cost while searching: wrong sides, what was not seen, and a report against itself."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from generation_text import byte_level, draw_prompt, random_model

from knowledge.graph import KnowledgeGraph
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.confidence import calibration_error, cross_fitted, fit_confidence, sentence_outcomes
from vlm.generation.evidence import Evidence
from vlm.generation.judging import FORBIDDING, EvidenceJudge, Judges, watched_words
from vlm.generation.planning import beam_plan
from vlm.generation.structuring import Structurer, withhold
from vlm.generation.tokens import TokenTable
from vlm.types import Box, InputError, Report


@cache
def structurer() -> Structurer:
    return Structurer(KnowledgeGraph.load())


def evidence() -> Evidence:
    """A nodule on the patient's left, no effusion, maybe edema."""
    probabilities = {"nodule": 0.9, "pleural_effusion": 0.01, "edema": 0.3}
    return Evidence(probabilities, (Box((70, 10, 95, 40), "nodule", 0, 0.9),), widths=(100,))


@pytest.mark.parametrize(
    ("text", "finished", "count"),
    [
        ("There is a nodule in the left upper lobe.", True, 0),
        ("There is a nodule in the right", False, 1),
        ("There is a nodule in the right upper lobe.", True, 1),
        ("No nodule.", True, 1),
        ("There is a pleural effusion", False, 0),  # it may be denied yet
        ("There is a pleural effusion.", True, 1),
        ("Pulmonary edema. No pulmonary edema.", True, 1),
        ("No lesion is seen", False, 0),  # of which side, it does not say yet
        ("No lesion is seen in the right", False, 0),
        ("No lesion is seen in the left", False, 1),
        ("No lesion is seen in the left lung.", True, 1),
        ("No lesion is seen in the right lung.", True, 0),
        ("No lesion is seen.", True, 1),
        ("The lungs are clear", False, 1),
        ("The lungs show no abnormality", False, 1),
        ("The bones show no abnormality", False, 0),
        ("The right lung is clear.", True, 0),
        ("The heart is normal.", True, 0),
    ],
)
def test_what_a_text_pays_for(text: str, finished: bool, count: int) -> None:
    judge = EvidenceJudge(structurer(), evidence(), 2.0)
    assert judge.count(text, finished) == count
    denied = text.startswith(("No nodule", "No lesion is seen in the left", "The lungs"))
    cut = FORBIDDING * (count > 0 and (denied or "nodule in the right" in text))
    assert judge.penalty(text, finished) == 2.0 * count + cut


@pytest.mark.parametrize(
    "text",
    [
        "Heart size within normal",
        "The heart is normal",
        "The cardiomediastinal silhouette and pulmonary vasculature are within normal",
        "The heart and lungs are unremarkable",
        "No cardiomegaly",
    ],
)
def test_a_denial_of_what_was_seen_cuts_a_beam_before_its_sentence_ends(text: str) -> None:
    judge = EvidenceJudge(structurer(), Evidence({"cardiomegaly": 0.95}), 2.0)
    assert judge.penalty(text, False) >= FORBIDDING
    assert EvidenceJudge(structurer(), Evidence({"cardiomegaly": 0.3}), 2.0).penalty(text, False) == 0.0
    last = text.split()[-1].lower()
    assert last in watched_words(["cardiomegaly"], KnowledgeGraph.load())


class Denier:
    """Cuts whatever holds an "e"."""

    def penalty(self, text: str, finished: bool) -> float:
        return FORBIDDING * ("e" in text.lower())


def test_what_moves_up_behind_cut_offers_is_read_too() -> None:
    tokenizer, model = byte_level(), random_model("byte")
    settings = BeamSettings(2, 12, 12, eos_token_ids=(2,), pad_token_id=0)
    words = [piece.decode("latin-1").strip().lower() for piece in TokenTable.of(tokenizer).pieces if b"e" in piece]
    prompt = draw_prompt(model, 3, random.Random(2))
    found = beam_search(model, settings, input_ids=prompt, judges=Judges([Denier()] * 3, tokenizer, words))
    for rows in found:
        assert all("e" not in tokenizer.decode(list(c.tokens)).lower() for c in rows)


class Hater:
    """Charges for a letter: a judge needs no more than `penalty`."""

    def penalty(self, text: str, finished: bool) -> float:
        return 50.0 * ("e" in text.lower())


def test_a_judge_moves_the_search_and_its_price_is_in_the_score() -> None:
    tokenizer, model = byte_level(), random_model("byte")
    settings = BeamSettings(4, 16, eos_token_ids=(2,), pad_token_id=0, length_penalty=0.0)
    prompt = draw_prompt(model, 3, random.Random(1))
    judges = Judges([Hater(), None, Hater()], tokenizer, watched=["the", "heart", "is", "seen"])
    judged = beam_search(model, settings, input_ids=prompt, judges=judges)
    plain = beam_search(model, settings, input_ids=prompt)
    assert [c.tokens for c in judged[1]] == [c.tokens for c in plain[1]]
    for rows in (judged[0], judged[2]):
        for candidate in rows:
            assert candidate.score - candidate.logprob == pytest.approx(0.0, abs=1e-3) or (
                candidate.score - candidate.logprob == pytest.approx(-50.0, abs=1e-2)
            )


def test_a_weight_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        EvidenceJudge(structurer(), evidence(), 0.0)


def test_beams_follow_what_was_seen() -> None:
    base = BeamSettings(4, 100, eos_token_ids=(1,))
    normal = beam_plan(Evidence({"nodule": 0.001, "edema": 0.002, "normal": 0.9}), base)
    one = beam_plan(evidence(), base)
    assert (normal.width, normal.banks, normal.min_new_tokens) == (2, 1, 0)
    assert (one.width, one.banks, one.min_new_tokens) == (5, 3, 6)
    assert one.apply(base).num_beams == 5
    many = Evidence(dict.fromkeys(("nodule", "mass", "edema", "opacity", "scar", "device", "fracture"), 0.95))
    assert beam_plan(many, base).width == 16


def test_confidence_is_measured_and_mended() -> None:
    draw = torch.Generator().manual_seed(0)
    honest = torch.rand(4000, generator=draw)
    right = (torch.rand(4000, generator=draw) < honest).tolist()
    assert calibration_error(honest.tolist(), right) < 0.03
    boastful = (honest.logit() * 3 + 1).sigmoid().tolist()
    assert calibration_error(boastful, right) > 0.1
    slope, offset = fit_confidence(boastful, right)
    assert slope == pytest.approx(1 / 3, abs=0.05)
    assert offset == pytest.approx(-1 / 3, abs=0.1)
    mended = cross_fitted(boastful, right, [i % 5 for i in range(4000)])
    assert calibration_error(mended, right) < 0.03
    with pytest.raises(InputError, match="give one or more pairs"):
        calibration_error([], [])


def test_a_reference_bears_sentences_out_or_not() -> None:
    found = structurer().sentences({"findings": "There is a left nodule. No edema. No pleural effusion."}, evidence())
    outcomes = sentence_outcomes(found, "Nodule in the left lung. Small pleural effusion.", structurer())
    assert [right for _, right in outcomes] == [True, False]  # edema is neither: nothing was measured for or against it


def test_withheld_sentences_are_named() -> None:
    text = "There is a left nodule. There is a pleural effusion. A red tie."
    sentences = structurer().sentences({"findings": text}, evidence())
    report = Report("a", {"findings": text, "impression": "Nodule."}, sentences, (), ())
    kept = withhold(report, 0.5)
    assert kept.sections == {"findings": "There is a left nodule. A red tie.", "impression": "Nodule."}
    assert [s.text for s in kept.abstained] == ["There is a pleural effusion."]
    with pytest.raises(InputError, match="abstain is 2"):
        withhold(report, 2.0)
