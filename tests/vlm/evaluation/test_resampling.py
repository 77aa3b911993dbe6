"""Intervals, paired tests and corrections, against direct computation and known answers."""

from __future__ import annotations

import numpy as np
import pytest

from vlm.evaluation.floors import average, best_constant, nearest_by_text, nearest_by_vector, permutations, vectors_of
from vlm.evaluation.resampling import bootstrap, compare, holm, intervals, mean_score, resample, subset
from vlm.evaluation.text import bleu, index_texts, text_scores

REFERENCES = [
    "the heart is normal in size and the lungs are clear",
    "there is a left pleural effusion with atelectasis",
    "the lungs are clear without pneumothorax or effusion",
    "a calcified granuloma is seen in the right upper lobe",
    "the heart is enlarged with pulmonary edema and effusion",
    "the lungs are clear",
]
PREDICTIONS = [
    "the heart is normal and the lungs are clear",
    "there is a right pleural effusion",
    "no pneumothorax or effusion",
    "granuloma in the right upper lobe",
    "the heart is normal in size",
    "the lungs are clear",
]


def test_bootstrap_of_bleu_equals_scoring_each_resample() -> None:
    index, systems = index_texts(REFERENCES, {"p": PREDICTIONS})
    score = bleu(index, systems["p"])[3]
    values = bootstrap([score], resamples=5, seed=3)[:, 0]
    weights = np.concatenate(list(resample(6, 5, 3)))
    for row, value in zip(weights.astype(int), values, strict=True):
        rows = np.repeat(np.arange(6), row)
        again, hypotheses = index_texts([REFERENCES[i] for i in rows], {"p": [PREDICTIONS[i] for i in rows]})
        assert value == pytest.approx(bleu(again, hypotheses["p"])[3].value, abs=1e-12)


def test_resample_draws_n_studies_and_is_seeded() -> None:
    weights = np.concatenate(list(resample(50, 230, 7)))
    assert weights.shape == (230, 50)
    assert (weights.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(weights, np.concatenate(list(resample(50, 230, 7))))
    assert abs(weights.var() - 0.98) < 0.1  # multinomial: 1 - 1/N


def test_interval_of_a_mean_covers_as_the_normal_theory_says() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = intervals([mean_score("m", values, "m")], 2000, 1)["m"]
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_paired_test_tells_a_difference_from_none() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 5, 300)
    better = mean_score("m", base + 0.5 + rng.normal(0, 0.5, 300), "m")
    same = mean_score("m", base + rng.normal(0, 0.5, 300), "m")
    plain = mean_score("m", base, "m")
    clear = compare([better], [plain], 500)["m"]
    assert clear.clear
    assert clear.p < 0.01
    assert clear.value == pytest.approx(better.value - plain.value)
    none = compare([same], [plain], 500)["m"]
    assert none.p > 0.05
    assert not none.clear


def test_one_study_has_no_interval() -> None:
    found = intervals([mean_score("m", np.array([1.0]), "m")])["m"]
    assert np.isnan(found.low)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])


def test_subset_keeps_shared_statistics_shared() -> None:
    index, systems = index_texts(REFERENCES, {"p": PREDICTIONS})
    scores = text_scores(index, systems["p"])
    part = subset(scores, np.array([True, True, False, False, True, False]))
    assert part[0].sums is part[3].sums
    assert part[5].value == pytest.approx(scores[5].per_study[[0, 1, 4]].mean())


def test_the_best_constant_beats_every_other_candidate() -> None:
    texts = REFERENCES * 2 + ["the lungs are clear without effusion"] * 3
    best = texts[best_constant(texts)]
    values = {}
    for text in set(texts):
        index, systems = index_texts(texts, {"c": [text] * len(texts)})
        values[text] = text_scores(index, systems["c"])[5].value
    assert values[best] == max(values.values())


def test_permutations_move_every_study() -> None:
    for order in permutations(17, 2):
        assert sorted(order) == list(range(17))
        assert (order != np.arange(17)).all()


def test_average_of_shuffles_is_the_mean_for_means() -> None:
    first, second = mean_score("m", np.array([1.0, 3.0]), "m"), mean_score("m", np.array([5.0, 7.0]), "m")
    assert average([[first], [second]])[0].value == 4.0


def test_nearest_neighbours() -> None:
    assert nearest_by_text(["left pleural effusion", "heart is enlarged"], REFERENCES).tolist() == [1, 4]
    train = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    assert nearest_by_vector(np.array([[9.0, 1.0], [1.0, 8.0]]), train).tolist() == [1, 2]


def test_vectors_need_every_record() -> None:
    findings = [{"label": "b", "probability": 0.5}, {"label": "a", "probability": 0.9}]
    vectors = vectors_of([{"findings": findings}, {"findings": findings[::-1]}])
    assert vectors is not None
    np.testing.assert_allclose(vectors[0], vectors[1])
    assert vectors_of([{"findings": findings}, {"text": "x"}]) is None
    assert vectors_of([{"features": [1, 2]}, {"features": [3, 4]}]).shape == (2, 2)  # type: ignore[union-attr]
