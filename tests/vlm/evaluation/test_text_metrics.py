"""BLEU, ROUGE-L and CIDEr against pycocoevalcap on the same tokens, METEOR by hand, and undefined cases."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.evaluation.meteor import align, meteor
from vlm.evaluation.resampling import Score
from vlm.evaluation.text import index_texts, lcs_length, text_scores

WORDS = ["the", "heart", "is", "normal", "lungs", "are", "clear", "no", "effusion", "left", "right", "pneumothorax"]


def scores_of(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, Score]:
    index, systems = index_texts(references, {"p": predictions})
    return {score.name: score for score in text_scores(index, systems["p"])}


def assert_equal_to_pycocoevalcap(predictions: list[str], references: list[str] | list[list[str]]) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    gts = {i: [entry] if isinstance(entry, str) else entry for i, entry in enumerate(references)}
    res = {i: [entry] for i, entry in enumerate(predictions)}
    mine = scores_of(predictions, references)
    corpus, each = bleu.Bleu(4).compute_score(gts, res, verbose=0)
    for order in range(4):
        score = mine[f"bleu{order + 1}"]
        assert score.value == pytest.approx(corpus[order], abs=1e-9)
        np.testing.assert_allclose(score.per_study, each[order], atol=1e-9)
    for name, scorer in (("rougeL", rouge.Rouge()), ("cider", cider.Cider())):
        value, values = scorer.compute_score(gts, res)
        assert mine[name].value == pytest.approx(value, abs=1e-9)
        np.testing.assert_allclose(mine[name].per_study, values, atol=1e-9)


def test_equal_to_pycocoevalcap_on_real_reports(openi_reports: list[str]) -> None:
    shuffled = openi_reports[:]
    random.Random(0).shuffle(shuffled)
    mixed = [text if i % 3 else " ".join(text.split()[::2]) for i, text in enumerate(openi_reports)]
    for predictions in (shuffled, mixed, [openi_reports[3]] * len(openi_reports)):
        assert_equal_to_pycocoevalcap(predictions, openi_reports)


def test_equal_to_pycocoevalcap_with_several_references(openi_reports: list[str]) -> None:
    several = [[text, openi_reports[(7 * i + 3) % len(openi_reports)]] for i, text in enumerate(openi_reports)]
    assert_equal_to_pycocoevalcap(openi_reports[::-1], several)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.lists(st.sampled_from(WORDS), min_size=1, max_size=9)] * 2), min_size=2, max_size=8))
def test_equal_to_pycocoevalcap_on_any_words(pairs: list[tuple[list[str], list[str]]]) -> None:
    assert_equal_to_pycocoevalcap([" ".join(p) for p, _ in pairs], [" ".join(r) for _, r in pairs])


def test_an_empty_prediction_scores_zero_and_leaves_the_others() -> None:
    references = ["the heart is normal in size", "the lungs are clear of disease", "no effusion is seen today"]
    full, holed = scores_of(references, references), scores_of(["", *references[1:]], references)
    for name, score in holed.items():
        assert score.per_study[0] == pytest.approx(0.0, abs=1e-6), name
        assert score.per_study[1] == pytest.approx(full[name].per_study[1]), name


def test_cider_of_one_study_is_undefined_not_zero() -> None:
    scores = scores_of(["the heart is normal"], ["the heart is normal"])
    assert np.isnan(scores["cider"].value)
    assert np.isnan(scores["cider_plain"].value)
    assert scores["bleu4"].value == pytest.approx(1.0, abs=1e-6)


def test_plain_cider_neither_clips_nor_penalises_length() -> None:
    references = ["the heart is normal", "the lungs are clear", "no effusion"]
    repeated = ["the heart is normal the heart is normal the heart is normal", "the lungs are clear", "no effusion"]
    scores = scores_of(repeated, references)
    assert scores["cider"].per_study[0] < 0.6 * scores["cider_plain"].per_study[0]
    assert scores["cider_plain"].per_study[1] == pytest.approx(10.0)
    assert "variant:D" in scores["cider"].signature


def test_rouge_f1_option_is_the_harmonic_mean() -> None:
    index, systems = index_texts(["a b c d", "x"], {"p": ["a c", "x"]})
    score = next(s for s in text_scores(index, systems["p"], rouge_beta=1.0) if s.name == "rougeL")
    assert score.per_study[0] == pytest.approx(2 * 1.0 * 0.5 / 1.5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
def test_bit_parallel_lcs_equals_the_table(first: list[int], second: list[int]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(first, second) == table[-1][-1]


def test_a_report_of_100_000_words_is_scored() -> None:
    long = " ".join(WORDS[i % 12] for i in range(100_000))
    index, systems = index_texts(["the heart is normal", "the lungs are clear"], {"p": [long, "the lungs are clear"]})
    scores = [*text_scores(index, systems["p"]), meteor(index, systems["p"])]
    assert all(np.isfinite(score.value) for score in scores)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=10), st.lists(st.integers(0, 5), max_size=10))
def test_alignment_is_one_to_one_and_as_large_as_possible(first: list[int], second: list[int]) -> None:
    pairs = align(first, second)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(first[i] == second[j] for i, j in pairs)
    assert len(pairs) == sum(min(first.count(x), second.count(x)) for x in set(first))


def test_meteor_by_hand() -> None:
    index, systems = index_texts(["the heart is normal", "opacity"], {"p": ["the heart is normal", "opacities"]})
    score = meteor(index, systems["p"])
    assert score.per_study[0] == pytest.approx(1.0)  # equal to the reference: one chunk, no penalty
    # one stem match of weight 0.6, precision = recall = 0.6; one chunk that is the whole report
    assert score.per_study[1] == pytest.approx(0.6)
    assert "exact stem" in score.signature
