"""What a system must beat: one report for everybody, its own reports shuffled across patients, and the nearest
neighbour's report.

On Open-i one constant sentence scores as high as published models on BLEU and CIDEr, so no score stands without these
beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm.evaluation.ngrams import Documents, Grams
from vlm.evaluation.resampling import Score
from vlm.evaluation.text import SIGMA, TextIndex, cider, index_texts

SHORTLIST = 200
MOST_REFERENCES = 3000
MOST_NEIGHBOURS = 5000
FEATURES = 2000


@dataclass(frozen=True, slots=True)
class Diversity:
    """How much a system's reports differ from study to study.

    Args:
        unique: distinct reports / studies.
        most_frequent: the report written most often.
        most_frequent_share: its share of the studies.
        length_ratio: words of all predictions / words of all references.
    """

    unique: float
    most_frequent: str
    most_frequent_share: float
    length_ratio: float


def diversity(predictions: Sequence[str], references: Sequence[str]) -> Diversity:
    """Measures how much reports differ.

    Args:
        predictions, references: N token strings each.
    """
    counts = Counter(predictions)
    text, times = counts.most_common(1)[0]
    words = sum(len(reference.split()) for reference in references)
    length = sum(len(prediction.split()) for prediction in predictions)
    return Diversity(
        len(counts) / len(predictions), text, times / len(predictions), length / words if words else float("nan")
    )


def best_constant(tokens: Sequence[str], seed: int = 0) -> int:
    """Finds the report that, written for everybody, has the highest CIDEr against all of them.

    `SHORTLIST` reports with the highest expected cosine times expected length penalty are scored exactly.

    Args:
        tokens: token strings of the training references; of more than `MOST_REFERENCES` a seeded sample is used.

    Returns:
        Position in `tokens` of the best report.
    """
    chosen = np.arange(len(tokens))
    if len(tokens) > MOST_REFERENCES:
        chosen = np.sort(np.random.default_rng(seed).choice(len(tokens), MOST_REFERENCES, replace=False))
    index, _ = index_texts([tokens[i] for i in chosen.tolist()], {})
    distinct, first = np.unique(index.reference, return_index=True)
    if index.studies < 2:
        return int(chosen[0])
    expected = _expected_cider(index)[distinct]
    order = np.argsort(-expected, kind="stable")[:SHORTLIST]
    exact = [cider(index, np.full(index.studies, distinct[i])).value for i in order]
    return int(chosen[first[order[int(np.argmax(exact))]]])


def _expected_cider(index: TextIndex) -> np.ndarray:
    """Returns (U,) the mean cosine of each document with all references, times the mean length penalty."""
    documents = index.documents
    cosine = np.zeros(len(documents.lengths))
    for order, grams in enumerate(documents.grams):
        norms = index.norms[order]
        inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        values = grams.counts * index.weights[order][grams.ids] * inverse[grams.rows]  # unit vectors
        times = np.bincount(index.reference, minlength=len(documents.lengths))
        centre = np.bincount(grams.ids, values * times[grams.rows], minlength=grams.size)
        cosine += np.bincount(grams.rows, values * centre[grams.ids], minlength=len(documents.lengths))
    lengths = np.maximum(0, documents.lengths - 1)
    counts = np.bincount(lengths[index.reference])
    present = np.flatnonzero(counts)
    penalty = (
        np.exp(-((lengths[:, None] - present[None]) ** 2.0) / (2 * SIGMA**2)) @ counts[present] / len(index.reference)
    )
    return cosine * penalty


def permutations(n: int, seed: int = 0) -> list[np.ndarray]:
    """Returns seeded permutations of N studies without a fixed point: ten, fewer above 2,000 studies."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(int(np.clip(20_000 // max(n, 1), 1, 10))):
        order = rng.permutation(n)
        target = np.empty(n, dtype=np.int64)
        target[order] = np.roll(order, 1)  # a cycle through all studies moves every one of them
        result.append(target)
    return result


def average(shuffles: Sequence[Sequence[Score]]) -> list[Score]:
    """Averages the statistics of several shuffles, so that a floor is not the luck of one draw.

    Args:
        shuffles: the same scores of each shuffle.
    """
    averaged: dict[tuple[int, ...], np.ndarray] = {}
    result = []
    for same in zip(*shuffles, strict=True):
        key = tuple(id(score.sums) for score in same)
        if key not in averaged:
            averaged[key] = np.mean([score.sums for score in same], axis=0)
        sums, first = averaged[key], same[0]
        per_study = np.mean([score.per_study for score in same], axis=0)
        value = float(first.finish(sums.sum(axis=0)))
        result.append(Score(first.name, value, per_study, sums, first.finish, first.signature, first.low))
    return result


def vectors_of(records: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Returns (N, D) `features` of the records, else the log odds of `findings`; None where a record has neither."""
    if all(isinstance(record.get("features"), list) for record in records):
        rows = [record["features"] for record in records]
    else:
        rows = []
        for record in records:
            findings = record.get("findings")
            if not isinstance(findings, list) or not findings:
                return None
            known = {str(f.get("label")): f.get("probability") for f in findings if isinstance(f, Mapping)}
            if any(value is None for value in known.values()):
                return None
            p = np.clip([float(known[label]) for label in sorted(known)], 1e-4, 1 - 1e-4)  # type: ignore[arg-type]
            rows.append(np.log(p / (1 - p)).tolist())
    if len({len(row) for row in rows}) != 1:
        return None
    return np.asarray(rows, dtype=np.float64)


def nearest_by_vector(query: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Returns (N,) the training study with the highest cosine, features standardised by the training part.

    Args:
        query: (N, D); train: (M, D).
    """
    centre, spread = train.mean(axis=0), train.std(axis=0) + 1e-9
    query, train = (query - centre) / spread, (train - centre) / spread
    query = query / (np.linalg.norm(query, axis=1, keepdims=True) + 1e-12)
    train = train / (np.linalg.norm(train, axis=1, keepdims=True) + 1e-12)
    return _argmax_product(query.astype(np.float32), train.astype(np.float32))


def nearest_by_text(predictions: Sequence[str], train: Sequence[str], seed: int = 0) -> np.ndarray:
    """Returns (N,) the training report whose words and word pairs are most like the prediction's (tf-idf cosine).

    Args:
        predictions: N token strings.
        train: M token strings; of more than `MOST_NEIGHBOURS` a seeded sample is used.
    """
    chosen = np.arange(len(train))
    if len(train) > MOST_NEIGHBOURS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(train), MOST_NEIGHBOURS, replace=False))
    index, systems = index_texts([train[i] for i in chosen.tolist()], {"p": predictions})
    matrix = _dense(index.documents, index.weights)
    distinct, inverse = np.unique(systems["p"], return_inverse=True)
    best = _argmax_product(matrix[distinct], matrix[index.reference])
    return chosen[best][inverse]


def _dense(documents: Documents, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Returns (U, F) unit vectors over the words and word pairs that are in most documents."""
    blocks = [_block(grams, weight) for grams, weight in zip(documents.grams[:2], weights[:2], strict=True)]
    matrix = np.concatenate(blocks, axis=1)
    return matrix / (np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-12)


def _block(grams: Grams, weight: np.ndarray) -> np.ndarray:
    frequency = np.bincount(grams.ids, minlength=grams.size)
    kept = np.argsort(-frequency, kind="stable")[: FEATURES // 2]
    column = np.full(grams.size, -1)
    column[kept] = np.arange(len(kept))
    matrix = np.zeros((len(grams.indptr) - 1, len(kept)), dtype=np.float32)
    place = column[grams.ids]
    here = place >= 0
    matrix[grams.rows[here], place[here]] = (grams.counts * weight[grams.ids])[here]
    return matrix


def _argmax_product(query: np.ndarray, train: np.ndarray) -> np.ndarray:
    parts = [np.argmax(query[start : start + 1000] @ train.T, axis=1) for start in range(0, len(query), 1000)]
    return np.concatenate(parts)
