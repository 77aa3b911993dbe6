"""What makes a study worth annotating: how unsure a model is, how far members of a committee disagree, how unlike it
is what is labelled. Numbers alone; nothing here knows a model.

    uncertainty    u_f = H(p_f'), p_f' the probability moved so that the label's cut lies at one half:
                   logit p' = logit p - logit cut. At the cut, where the model could say either, it is 1 bit. Lewis and
                   Gale 1994 take the example that is nearest to the cut, Settles 2009 (eq. for entropy sampling) the
                   one with the highest entropy; the move makes them one for labels whose cuts are not one half.
                   A box of confidence q counts as H(q) for its label, where that is more.
    disagreement   d_f = H(mean_m p_mf) - mean_m H(p_mf): the Jensen-Shannon divergence of the members, which is BALD's
                   mutual information (Houlsby et al. 2011, eq. 2) and a committee's disagreement (Seung et al. 1992).
    diversity      k-centre greedy (Sener and Savarese 2018, arXiv:1708.00489, algorithm 1): the study farthest from
                   all that is labelled or chosen, again and again.

A study's score is the mean of its labels', over those that the checkpoint speaks of in its modality. Entropies are in
bits, so that 1 is a coin.

Legend: M members, N studies, F findings, D features, L studies that are labelled already.
"""

from __future__ import annotations

import numpy as np

TINY = 1e-6
"""Probabilities are kept this far from 0 and 1: an entropy there is 0 in the limit."""


def entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy of a yes or no in bits, elementwise; NaN stays NaN.

    Args:
        probability: any shape, in [0, 1].
    """
    p = np.clip(probability, TINY, 1 - TINY)
    bits: np.ndarray = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return bits


def around_cut(probability: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Moves probabilities along the logit so that a label's cut becomes one half.

    Args:
        probability: (..., F) in [0, 1]. cut: (F,) in (0, 1).
    """
    p, c = np.clip(probability, TINY, 1 - TINY), np.clip(cut, TINY, 1 - TINY)
    moved: np.ndarray = p * (1 - c) / (p * (1 - c) + c * (1 - p))
    return moved


def uncertainty(probability: np.ndarray, cut: np.ndarray, boxes: np.ndarray | None = None) -> np.ndarray:
    """How unsure a model is of each finding: (N, F) bits.

    Args:
        probability: (M, N, F), NaN for labels that nothing is said of; members are averaged first.
        cut: (F,) the probability from which a label is taken as present.
        boxes: (N, F) entropy of the least certain box of each label, 0 without one; None without a detector.
    """
    own = entropy(around_cut(probability.mean(0), cut))
    return own if boxes is None else np.where(np.isnan(own), own, np.maximum(own, boxes))


def disagreement(probability: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of the members' answers to each finding: (N, F) bits, 0 where they agree.

    Args:
        probability: (M, N, F), NaN for labels that nothing is said of.
    """
    gap: np.ndarray = entropy(probability.mean(0)) - entropy(probability).mean(0)
    return np.maximum(gap, 0.0)


def over_labels(values: np.ndarray) -> np.ndarray:
    """Mean over the labels that are known: (N, F) with NaN -> (N,); every row knows one."""
    mean: np.ndarray = np.nanmean(values, axis=1)
    return mean


def k_centre(
    features: np.ndarray, n: int, labelled: np.ndarray | None = None, first: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses rows far from the labelled ones and from each other (k-centre greedy).

    Args:
        features: (N, D). n: how many to choose, at most N. labelled: (L, D) centres that are there already.
        first: the row to begin with when nothing is labelled; None for the one nearest to the mean. Ties go to the
            earlier row.

    Returns:
        Chosen rows (n,) in order; the distance at which each was chosen (n,), infinite for the first without centres;
        and the nearest centre then (n,): a row of `features`, or -1 - l for row l of `labelled`; a row is its own
        where there was none.
    """
    features = features.astype(np.float64)
    distance, nearest = np.full(len(features), np.inf), np.arange(len(features))
    for at, centre in enumerate(() if labelled is None else labelled.astype(np.float64)):
        _nearer(features, centre, -1 - at, distance, nearest)
    chosen: list[int] = []
    apart: list[float] = []
    of: list[int] = []
    free = np.ones(len(features), bool)
    for _ in range(n):
        if np.isinf(distance).all() and not chosen:
            middle = np.linalg.norm(features - features.mean(0), axis=1)
            row = int(middle.argmin()) if first is None else first
        else:
            row = int(np.where(free, distance, -1.0).argmax())
        chosen.append(row)
        apart.append(float(distance[row]))
        of.append(int(nearest[row]))
        free[row] = False
        _nearer(features, features[row], row, distance, nearest)
    return np.array(chosen, int), np.array(apart), np.array(of, int)


def _nearer(features: np.ndarray, centre: np.ndarray, name: int, distance: np.ndarray, nearest: np.ndarray) -> None:
    """Takes a new centre into each row's distance to, and name of, the nearest one."""
    own = np.linalg.norm(features - centre, axis=1)
    closer = own < distance
    distance[closer], nearest[closer] = own[closer], name
