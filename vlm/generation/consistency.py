"""Which of several candidate reports to keep: the one that agrees with the image, with itself, and with the other
candidates.

    value = score + agreement_weight * agreement + consensus_weight * consensus

`agreement` holds a candidate's statements against the evidence: the log-odds of each present or absent statement being
right, clipped, less a fixed price for each contradiction inside the report (`knowledge.rules`) and for each confident
finding left out. `consensus` is the expected similarity to the other candidates under the model's own
distribution (minimum Bayes risk; Kumar and Byrne 2004), by the cosine of tf-idf n-grams on which CIDEr (Vedantam et al.
2015) rests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knowledge.extraction import label_mentions
from knowledge.ontology import Certainty
from knowledge.rules import contradictions
from vlm.generation.evidence import Evidence
from vlm.generation.structuring import Structurer, share_sides
from vlm.types import InputError

CLIP = 3.0
"""Log-odds that one statement can earn or lose, so that no single probability decides."""

SELF_CONTRADICTION = 3.0
OMISSION = 2.0
WRONG_SIDE = 10.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a report agrees with what was measured.

    Args:
        contradicted: labels said against their probability.
        inner: contradictions inside the report, one line each.
        omitted: labels at or above their upper threshold that are not said to be present or possible.
        value: sum of clipped log-odds, less the prices.
    """

    contradicted: tuple[str, ...]
    inner: tuple[str, ...]
    omitted: tuple[str, ...]
    value: float


def agreement(text: str, structurer: Structurer, evidence: Evidence, section: str = "findings") -> Agreement:
    """How one report text agrees with the evidence and with itself."""
    mentions = share_sides(structurer.reader.read(text, section))
    said = label_mentions(mentions, structurer.graph, structurer.view)
    # That nothing is there, a statement about many labels, is as likely as the least likely of them.
    likely: dict[tuple[str, Certainty], float] = {}
    against: set[tuple[str, Certainty]] = set()
    for _, statement in structurer.said(mentions, evidence):
        if statement.verdict < 0:
            against.add((statement.label, statement.certainty))
        if statement.confidence is not None and statement.certainty is not Certainty.UNCERTAIN:
            key = (statement.about, statement.certainty)
            likely[key] = min(likely.get(key, 1.0), statement.confidence)
    value = sum(max(-CLIP, min(CLIP, _log_odds(confidence))) for confidence in likely.values())
    inner = tuple(found.message for found in contradictions(mentions, structurer.graph))
    omitted = tuple(
        label
        for label, probability in evidence.probabilities.items()
        if label not in ("normal", "other_finding")
        and probability >= evidence.cut(label).upper
        and said.get(label) not in (Certainty.PRESENT, Certainty.UNCERTAIN)
    )
    contradicted = tuple(sorted({label for label, _ in against}))
    value -= SELF_CONTRADICTION * len(inner) + OMISSION * len(omitted)
    # A contradicted statement whose probability is high has the wrong side: worse than an omission.
    sided = {label for label, said_as in against if said_as is Certainty.PRESENT}
    value -= WRONG_SIDE * sum(evidence.probabilities.get(label, 0.0) >= evidence.cut(label).lower for label in sided)
    return Agreement(contradicted, inner, omitted, value)


def consensus_rerank(texts: Sequence[str], weights: Sequence[float] | None = None, n: int = 4) -> list[float]:
    """Expected similarity of each text to the others.

    Args:
        texts: candidates, one or more.
        weights: log probabilities (any constant offset) or None for equal; the expectation's distribution.
        n: longest n-gram, in words.

    Returns:
        Values in [0, 1] in the order of `texts`; highest is the consensus.

    Raises:
        InputError: weights of another length.
    """
    if weights is not None and len(weights) != len(texts):
        raise InputError(f"{len(weights)} weights for {len(texts)} candidates: give one for each")
    if len(texts) < 2:
        return [1.0] * len(texts)
    logits = np.zeros(len(texts)) if weights is None else np.asarray(weights, dtype=float)
    share = np.exp(logits - logits.max())
    total = np.zeros((len(texts), len(texts)))
    for size in range(1, n + 1):
        total += _cosines([_ngrams(text, size) for text in texts])
    similarity = total / n
    np.fill_diagonal(similarity, 0.0)
    others = share.sum() - share
    return (similarity @ share / np.maximum(others, 1e-12)).tolist()


def expected_similarity(texts: Sequence[str], pool: Sequence[str], n: int = 4) -> list[float]:
    """Mean similarity, in [0, 1], of each text to the texts of a pool; a text is not compared to its own copy in it.

    Args:
        texts: candidates. pool: samples of the model's distribution. n: longest n-gram, in words.
    """
    both = [*texts, *pool]
    total = np.zeros((len(texts), len(pool)))
    for size in range(1, n + 1):
        total += _cosines([_ngrams(text, size) for text in both])[: len(texts), len(texts) :]
    similarity = total / n
    # A sample that is a candidate too would vote for itself: one copy of it is left out.
    for row, text in enumerate(texts):
        if text in pool:
            similarity[row, list(pool).index(text)] = 0.0
    others = np.array([max(1, len(pool) - (text in pool)) for text in texts])
    return (similarity.sum(1) / others).tolist()


def rerank(
    texts: Sequence[str],
    scores: Sequence[float],
    structurer: Structurer,
    evidence: Evidence,
    agreement_weight: float = 0.05,
    consensus_weight: float = 0.0,
    pool: Sequence[str] = (),
) -> list[int]:
    """Order of the candidates, best first.

    Args:
        texts: candidate reports of one study.
        scores: what the search gave them (log probability a token, about -3..0).
        structurer, evidence: what to agree with.
        agreement_weight, consensus_weight: see the module's docstring; choose them on validation.
        pool: texts drawn from the model's own distribution, over which the consensus is an expectation; empty for the
            candidates themselves.
    """
    consensus = [0.0] * len(texts)
    if consensus_weight:
        consensus = expected_similarity(texts, pool) if pool else consensus_rerank(texts)
    values = [
        score + agreement_weight * agreement(text, structurer, evidence).value + consensus_weight * common
        for text, score, common in zip(texts, scores, consensus, strict=True)
    ]
    return sorted(range(len(texts)), key=lambda index: -values[index])


def _log_odds(probability: float) -> float:
    clipped = min(max(probability, 1e-4), 1 - 1e-4)
    return math.log(clipped / (1 - clipped))


def _ngrams(text: str, size: int) -> Counter[tuple[str, ...]]:
    words = text.lower().replace(".", " . ").replace(",", " , ").split()
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _cosines(counts: Sequence[Counter[tuple[str, ...]]]) -> np.ndarray:
    """Cosines of n-gram counts, those that every candidate has weighing least."""
    vocabulary = {gram: place for place, gram in enumerate(dict.fromkeys(gram for count in counts for gram in count))}
    if not vocabulary:
        return np.zeros((len(counts), len(counts)))
    matrix = np.zeros((len(counts), len(vocabulary)))
    for row, count in enumerate(counts):
        for gram, times in count.items():
            matrix[row, vocabulary[gram]] = times
    matrix *= np.log((1 + len(counts)) / (1 + (matrix > 0).sum(0))) + 1.0
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix /= np.maximum(norms, 1e-12)
    return matrix @ matrix.T
