"""How well probabilities rank and how far they can be believed: ROC, AUC, precision-recall, operating points,
calibration.

AUC is the share of (positive, negative) pairs in the right order, ties one half; a bootstrap weighs studies, so that
all resamples are one cumulative sum. Expected calibration error: Guo et al., ICML 2017, equal-width bins.

Legend: N studies, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlm.evaluation.resampling import Interval, interval_of, ratio, resample


def auc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the area under the ROC curve, NaN without positives or negatives.

    Args:
        truth: (N,) bool.
        scores: (N,), higher is more likely positive.
        weights: (R, N) times that each study counts; None for once.

    Returns:
        (R,) or, without weights, a scalar array.
    """
    order = np.argsort(scores, kind="stable")
    truth, ordered = truth[order].astype(float), scores[order]
    weight = np.ones((1, len(truth))) if weights is None else weights[:, order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positive = np.add.reduceat(weight * truth, starts, axis=1)  # (R, distinct scores)
    negative = np.add.reduceat(weight * (1 - truth), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    right = (positive * (below + negative / 2)).sum(axis=1)
    area = ratio(right, positive.sum(axis=1) * negative.sum(axis=1))
    return area if weights is not None else area[0]


@dataclass(frozen=True, slots=True)
class MeanAuc:
    """AUC of several labels.

    Args:
        by_label: label -> (AUC, its interval, positives).
        mean: mean over the labels.
        interval: of the mean; studies are resampled, the labels share each draw.
    """

    by_label: dict[str, tuple[float, Interval, int]]
    mean: float
    interval: Interval


def mean_auc(
    truth: dict[str, np.ndarray], scores: dict[str, np.ndarray], least: int = 10, resamples: int = 1000, seed: int = 0
) -> MeanAuc:
    """Scores the labels that have at least `least` positives and one negative.

    Args:
        truth, scores: label -> (N,); only labels in both are scored.
        least: fewest positives of a label that counts.
    """
    kept = [name for name in truth if name in scores and truth[name].sum() >= least and not truth[name].all()]
    if not kept:
        nothing = Interval(float("nan"), float("nan"))
        return MeanAuc({}, float("nan"), nothing)
    n = len(truth[kept[0]])
    drawn = [np.stack([auc(truth[k], scores[k], w) for k in kept], axis=1) for w in resample(n, resamples, seed)]
    values = np.concatenate(drawn)  # (R, labels)
    exact = {name: float(auc(truth[name], scores[name])) for name in kept}
    rows = {name: (exact[name], interval_of(values[:, i]), int(truth[name].sum())) for i, name in enumerate(kept)}
    known = ~np.isnan(values)
    means = ratio(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))
    return MeanAuc(rows, float(np.mean(list(exact.values()))), interval_of(means))


def roc_curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns false positive rate, true positive rate and threshold, from (0, 0) to (1, 1).

    Args:
        truth: (N,) bool; scores: (N,). A study is called positive when its score reaches the threshold.
    """
    order = np.argsort(-scores, kind="stable")
    truth, ordered = truth[order].astype(float), scores[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    hit, false = np.cumsum(truth)[ends], np.cumsum(1 - truth)[ends]
    tpr = np.r_[0.0, ratio(hit, np.full(len(hit), truth.sum()))]
    fpr = np.r_[0.0, ratio(false, np.full(len(false), len(truth) - truth.sum()))]
    return fpr, tpr, np.r_[np.inf, ordered[ends]]


def precision_recall(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns recall and precision at each distinct score, by falling score."""
    order = np.argsort(-scores, kind="stable")
    truth, ordered = truth[order].astype(float), scores[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    hit = np.cumsum(truth)[ends]
    return ratio(hit, np.full(len(hit), truth.sum())), hit / (ends + 1)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Rates at one threshold; NaN where undefined.

    Args:
        threshold: a study is called positive when its score reaches it.
    """

    threshold: float
    sensitivity: float
    specificity: float
    precision: float
    accuracy: float
    f1: float


def at_threshold(truth: np.ndarray, scores: np.ndarray, threshold: float = 0.5) -> OperatingPoint:
    """Returns the rates when scores from `threshold` up are called positive."""
    truth, called = truth.astype(bool), scores >= threshold
    hit, false = float((truth & called).sum()), float((~truth & called).sum())
    missed, right = float((truth & ~called).sum()), float((~truth & ~called).sum())
    values = ratio(
        np.array([hit, right, hit, hit + right, 2 * hit]),
        np.array([hit + missed, right + false, hit + false, len(truth), 2 * hit + false + missed]),
    )
    return OperatingPoint(threshold, *(float(value) for value in values))


def reliability(
    truth: np.ndarray, probability: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean probability, share of positives and number of cases in equal-width bins; NaN in empty bins."""
    place = np.clip((probability * bins).astype(int), 0, bins - 1)
    number = np.bincount(place, minlength=bins).astype(float)
    mean = ratio(np.bincount(place, probability, minlength=bins), number)
    return mean, ratio(np.bincount(place, truth.astype(float), minlength=bins), number), number


def calibration_error(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Returns the expected calibration error, the mean gap between probability and share of positives over cases."""
    mean, share, number = reliability(truth, probability, bins)
    filled = number > 0
    return float((np.abs(mean - share)[filled] * number[filled]).sum() / number.sum()) if filled.any() else float("nan")


def calibration_of(truth: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> float:
    """Returns the calibration error over all (study, label) of the labels that both sides have."""
    shared = [label for label in truth if label in scores]
    if not shared:
        return float("nan")
    return calibration_error(np.concatenate([truth[n] for n in shared]), np.concatenate([scores[n] for n in shared]))
