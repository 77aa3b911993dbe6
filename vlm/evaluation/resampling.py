"""Scores that know their per-study statistics, and what resampling studies says of them.

Every metric here is a function of sums over studies: BLEU of n-gram counts, F1 of true and false positives, ROUGE-L of
scores and a count. So a bootstrap is one matrix product: `weights (R, N) @ statistics (N, K)`, then the metric's
`finish` on (R, K).

Legend: N studies, K statistics, R resamples.
Bootstrap: Efron, Ann. Statist. 1979, percentile intervals. Paired tests: Koehn, EMNLP 2004; approximate randomisation:
Riezler and Maxwell, ACL workshop 2005. Several comparisons: Holm, Scand. J. Statist. 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

Finish = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One metric over a corpus.

    Args:
        name: key of the metric ("bleu4").
        value: corpus value; NaN where it is undefined.
        per_study: (N,) value of each study; NaN where undefined.
        sums: (N, K) statistics whose sum over studies determines the value.
        finish: (..., K) summed statistics -> (...) values.
        signature: what fixes the metric's definition.
        low: True where a lower value is better.
    """

    name: str
    value: float
    per_study: np.ndarray
    sums: np.ndarray
    finish: Finish
    signature: str
    low: bool = False

    def on(self, keep: np.ndarray) -> float:
        """Returns the value on some of the studies.

        Args:
            keep: (N,) bool.
        """
        return float(self.finish(self.sums[keep].sum(axis=0))) if keep.any() else float("nan")


def subset(scores: Sequence[Score], keep: np.ndarray) -> list[Score]:
    """Returns the scores on some of the studies; scores that shared statistics still do.

    Args:
        keep: (N,) bool.
    """
    arrays: dict[int, np.ndarray] = {}
    result = []
    for score in scores:
        sums = arrays.setdefault(id(score.sums), score.sums[keep])
        result.append(replace(score, value=score.on(keep), per_study=score.per_study[keep], sums=sums))
    return result


def mean_score(name: str, per_study: np.ndarray, signature: str, low: bool = False) -> Score:
    """Returns the score that is the mean of the studies' values.

    Args:
        per_study: (N,) values; a NaN takes no part.
    """
    known = ~np.isnan(per_study)
    sums = np.stack([np.where(known, per_study, 0.0), known.astype(float)], axis=1)  # (N, 2)
    return Score(name, float(mean_of_sums(sums.sum(axis=0))), per_study, sums, mean_of_sums, signature, low)


def mean_of_sums(sums: np.ndarray) -> np.ndarray:
    """Turns (..., 2) of summed values and their number into means; NaN where nothing was counted."""
    return ratio(sums[..., 0], sums[..., 1])


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below, NaN where below is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile interval.

    Args:
        low, high: its ends; NaN where undefined.
        level: share of resamples inside.
    """

    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """One system minus another on one metric.

    Args:
        value: difference of the corpus values.
        interval: of the difference, studies resampled in pairs.
        p: two-sided approximate randomisation.
        p_holm: after Holm's correction over the comparisons of one call; None before it.
    """

    value: float
    interval: Interval
    p: float
    p_holm: float | None = None

    @property
    def clear(self) -> bool:
        """True when the interval does not hold zero."""
        return bool(self.interval.low > 0 or self.interval.high < 0)


def resample(n: int, resamples: int, seed: int, chunk: int = 100) -> Iterator[np.ndarray]:
    """Yields (chunk, N) float64 counts of how often each study was drawn, with replacement, N draws a resample."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        draws = rng.integers(0, n, size=(rows, n), dtype=np.int32) + np.arange(rows, dtype=np.int64)[:, None] * n
        yield np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def bootstrap(scores: Sequence[Score], resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Returns (R, M) values of M scores over the same R resamples of the studies.

    Args:
        scores: of the same N studies; scores that share one `sums` array cost one matrix product.
    """
    if not scores:
        return np.zeros((resamples, 0))
    arrays = {id(score.sums): score.sums for score in scores}
    starts, width = {}, 0
    for key, array in arrays.items():
        starts[key] = width
        width += array.shape[1]
    stacked = np.concatenate(list(arrays.values()), axis=1)  # (N, sum of K)
    sums = np.concatenate([weights @ stacked for weights in resample(len(stacked), resamples, seed)])  # (R, sum of K)
    columns = []
    for score in scores:
        start = starts[id(score.sums)]
        columns.append(score.finish(sums[:, start : start + score.sums.shape[1]]))
    return np.stack(columns, axis=1)


def interval_of(values: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the percentile interval of (R,) values; NaN when more than a tenth of them are undefined."""
    known = values[~np.isnan(values)]
    if len(known) < 0.9 * len(values) or len(known) < 2:
        return Interval(float("nan"), float("nan"), level)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def intervals(
    scores: Sequence[Score],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    drawn: np.ndarray | None = None,
) -> dict[str, Interval]:
    """Returns the bootstrap interval of each score, by name; undefined for a single study.

    Args:
        scores: M scores of the same N studies.
        drawn: (R, M) what `bootstrap` returned for them; None: it is called here.
    """
    if scores and len(scores[0].sums) < 2:
        return {score.name: Interval(float("nan"), float("nan"), level) for score in scores}
    values = bootstrap(scores, resamples, seed) if drawn is None else drawn
    return {score.name: interval_of(values[:, i], level) for i, score in enumerate(scores)}


def randomisation(first: Sequence[Score], second: Sequence[Score], resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Returns (M,) two-sided p-values of approximate randomisation: each study's pair is swapped with probability one
    half.

    Args:
        first, second: the same M metrics of two systems on the same N studies.
    """
    rng = np.random.default_rng(seed)
    n = len(first[0].sums)
    observed = np.array([abs(a.value - b.value) for a, b in zip(first, second, strict=True)])
    reached = np.zeros(len(first))
    # Scores share arrays of statistics: each sum and each difference is taken once.
    totals = {id(score.sums): score.sums.sum(axis=0) for score in (*first, *second)}
    gaps = {(id(a.sums), id(b.sums)): b.sums - a.sums for a, b in zip(first, second, strict=True)}
    for start in range(0, resamples, 100):
        swap = rng.integers(0, 2, size=(min(100, resamples - start), n)).astype(np.float64)  # (r, N)
        moved = {key: swap @ gap for key, gap in gaps.items()}  # (r, K)
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            step = moved[id(a.sums), id(b.sums)]
            difference = a.finish(totals[id(a.sums)] + step) - b.finish(totals[id(b.sums)] - step)
            reached[i] += (np.abs(difference) >= observed[i] - 1e-12).sum()
    p = (reached + 1) / (resamples + 1)
    return np.where(np.isnan(observed), np.nan, p)


def compare(
    first: Sequence[Score],
    second: Sequence[Score],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    drawn: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Difference]:
    """Compares two systems metric by metric on the same studies, resampled in pairs.

    Args:
        first, second: scores of both on the same N studies.
        drawn: what `bootstrap` returned for each with one seed, hence for the same draws; None: it is called here.

    Returns:
        Metric name -> `Difference` (first minus second), for the metrics that both have.
    """
    places = {score.name: i for i, score in enumerate(second)}
    mine = [score for score in first if score.name in places]
    other = [second[places[score.name]] for score in mine]
    if not mine:
        return {}
    if len(mine[0].sums) < 2:
        unknown = Interval(float("nan"), float("nan"), level)
        return {a.name: Difference(a.value - b.value, unknown, float("nan")) for a, b in zip(mine, other, strict=True)}
    left, right = drawn or (bootstrap(first, resamples, seed), bootstrap(second, resamples, seed))
    kept = [i for i, score in enumerate(first) if score.name in places]
    gaps = left[:, kept] - right[:, [places[score.name] for score in mine]]  # the same seed draws the same studies
    p = randomisation(mine, other, resamples, seed + 1)
    return {
        a.name: Difference(a.value - b.value, interval_of(gaps[:, i], level), float(p[i]))
        for i, (a, b) in enumerate(zip(mine, other, strict=True))
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values, in the order given; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted.tolist()
