"""Is a sentence's confidence worth its name? Expected calibration error, and Platt's two numbers that mend it.

A sentence is right when the reference report bears out each of its statements: a finding said to be present that the
reference says is present or possible, or one said to be absent that the reference does not say is present. Uncertain
statements are right either way, and what is denied of one side alone is not told from the reference: both are passed
over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from knowledge.extraction import Mention, label_mentions
from knowledge.ontology import Certainty
from vlm.generation.structuring import Structurer, calibrated
from vlm.types import InputError, Sentence

RIDGE = 1e-3
"""Keeps the fit finite where every sentence is right."""


def sentence_outcomes(
    sentences: Iterable[Sentence], reference: str, structurer: Structurer, section: str = "findings"
) -> list[tuple[float, bool]]:
    """(confidence, whether the reference bears it out) of each sentence with a confidence and a sure statement.

    Args:
        sentences: of one report, as `Structurer.sentences` gives them.
        reference: the study's own report. section: of the reference.
        structurer: reads both.
    """
    graph = structurer.graph
    truth = label_mentions(structurer.reader.read(reference, section), graph, structurer.view)
    out = []
    for sentence in sentences:
        if sentence.confidence is None:
            continue
        right = _borne_out(structurer.reader.read(sentence.text, sentence.section), truth, structurer)
        if right is not None:
            out.append((sentence.confidence, right))
    return out


def _borne_out(mentions: Sequence[Mention], truth: Mapping[str, Certainty], structurer: Structurer) -> bool | None:
    # What the sentence itself says: that a study is normal follows from all of its sentences, not from one.
    said = {
        (label, Certainty.ABSENT if mention.change == "resolved" else mention.certainty)
        for mention in mentions
        if mention.change != "past"
        and not (mention.certainty is Certainty.ABSENT and mention.side in ("left", "right"))
        for label in (*structurer.labels_of.get(mention.concept, ()), *structurer.statements.denied_labels(mention))
        if mention.certainty is not Certainty.UNCERTAIN
    }
    if not said:
        return None
    found = (Certainty.PRESENT, Certainty.UNCERTAIN)
    return all(
        truth.get(label) in found if certainty is Certainty.PRESENT else truth.get(label) is not Certainty.PRESENT
        for label, certainty in said
    )


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017), in [0, 1].

    Args:
        confidence: (n,) in [0, 1]. right: (n,).

    Raises:
        InputError: nothing to measure, or two lengths.
    """
    if len(confidence) != len(right) or not len(confidence):
        raise InputError(f"{len(confidence)} confidences and {len(right)} outcomes: give one or more pairs")
    p, hit = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    place = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [abs(p[place == b].mean() - hit[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
    return float(np.sum(gaps))


def fit_confidence(confidence: Sequence[float], right: Sequence[bool], steps: int = 50) -> tuple[float, float]:
    """Slope and offset of the confidence's logit (Platt 1999, his smoothed targets), by Newton's method."""
    p, hit = np.clip(np.asarray(confidence, dtype=float), 1e-4, 1 - 1e-4), np.asarray(right, dtype=float)
    if not len(p):
        raise InputError("no sentence to fit a calibration on")
    inputs = np.stack([np.log(p / (1 - p)), np.ones_like(p)], 1)
    n_right = hit.sum()
    target = np.where(hit > 0, (n_right + 1) / (n_right + 2), 1 / (len(p) - n_right + 2))
    weights = np.array([1.0, 0.0])
    loss = _loss(inputs, target, weights)
    for _ in range(steps):
        guess = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        gradient = inputs.T @ (guess - target) + RIDGE * weights
        hessian = (inputs * (guess * (1 - guess))[:, None]).T @ inputs + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while (next_loss := _loss(inputs, target, weights - step)) > loss and np.abs(step).max() > 1e-9:
            step = step / 2  # a whole step overshoots where confidences are extreme
        weights, loss = weights - step, next_loss
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[0]), float(weights[1])


def _loss(inputs: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    score = inputs @ weights
    return float((np.logaddexp(0.0, score) - target * score).sum() + RIDGE / 2 * weights @ weights)


def cross_fitted(confidence: Sequence[float], right: Sequence[bool], groups: Sequence[int]) -> list[float]:
    """Confidences calibrated by a fit on the other groups (of studies), so that the error measured is an honest one."""
    p, hit, group = np.asarray(confidence, dtype=float), np.asarray(right), np.asarray(groups)
    out = np.zeros(len(p))
    for own in np.unique(group):
        rest = group != own
        platt = fit_confidence(p[rest].tolist(), hit[rest].tolist())
        out[group == own] = [calibrated(value, platt) for value in p[group == own]]
    return out.tolist()
