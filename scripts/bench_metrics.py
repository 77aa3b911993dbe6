"""Times the text metrics beside pycocoevalcap's on report pairs made from real reports, and checks that they are equal.

Then everything at once, as `vlm evaluate --train` does it: text metrics with METEOR, findings, floors (constant,
shuffled, nearest neighbour), the studies whose reference is new, bootstrap and tests. Seconds are of the wall clock;
beside them the processor's, which hold on a busy machine too. Ours are taken before and after pycocoevalcap's.

Pairs: a reference, and as its prediction another study's report whose sentences are mixed with the reference's, so that
n-grams overlap as generated reports' do and nearly every prediction is a text of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vlm.evaluation.inputs import Joined, Reports, read_reports
from vlm.evaluation.resampling import Score, intervals
from vlm.evaluation.run import Settings, evaluate_reports
from vlm.evaluation.text import bleu, cider, index_texts, rouge_l
from vlm.evaluation.tokens import make_profile

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Predictions and references, as written and as token strings."""

    predictions: list[str]
    references: list[str]
    predicted: list[str]
    referred: list[str]


def make_pairs(reports: Sequence[str], count: int, seed: int) -> Pairs:
    """Returns `count` pairs."""
    rng, profile = random.Random(seed), make_profile("canonical")
    sentences = [[part for part in report.split(". ") if part] for report in reports]
    predictions, references = [], []
    for i in range(count):
        reference, other = sentences[i % len(sentences)], rng.choice(sentences)
        predictions.append(". ".join(rng.choice((part, *other)) for part in reference))
        references.append(". ".join(reference))
    return Pairs(
        predictions, references, [*map(profile.prediction, predictions)], [*map(profile.reference, references)]
    )


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> np.ndarray:
        """Returns (2,) wall and processor seconds."""
        return np.array([time.perf_counter() - self._start[0], time.process_time() - self._start[1]])


def ours(pairs: Pairs) -> tuple[list[Score], np.ndarray]:
    """Returns our scores and the seconds they took, counting included."""
    clock = Clock()
    index, systems = index_texts(pairs.referred, {"p": pairs.predicted})
    hypothesis = systems["p"]
    scores = [*bleu(index, hypothesis), rouge_l(index, hypothesis), cider(index, hypothesis)]
    return scores, clock.read()


def theirs(pairs: Pairs) -> tuple[dict[str, tuple[float, np.ndarray]], np.ndarray]:
    """Returns pycocoevalcap's corpus and per-study values, and the seconds they took."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = {i: [text] for i, text in enumerate(pairs.referred)}
    res = {i: [text] for i, text in enumerate(pairs.predicted)}
    clock = Clock()
    corpus, each = Bleu(4).compute_score(gts, res, verbose=0)
    values = {f"bleu{n + 1}": (corpus[n], np.array(each[n])) for n in range(4)}
    values["rougeL"] = Rouge().compute_score(gts, res)
    values["cider"] = Cider().compute_score(gts, res)
    return values, clock.read()


def everything(pairs: Pairs, reports: Sequence[str]) -> np.ndarray:
    """Returns the seconds of a whole evaluation, half of the reports being training references."""
    ids = [str(i) for i in range(len(pairs.references))]
    blank: list[dict[str, object]] = [{} for _ in ids]
    joined = Joined(ids, pairs.references, {"p": pairs.predictions}, {"p": blank, "reference": blank})
    train = Reports(Path("train"), {str(i): text for i, text in enumerate(reports[::2])})
    clock = Clock()
    evaluate_reports(joined, Settings(), train)
    return clock.read()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("RADSCRIBE_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--reports", type=Path, default=Path(data) / "openi" / "r2gen_annotation.json")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2, help="our own timings before and after pycocoevalcap's")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    reports = list(read_reports(arguments.reports, split=arguments.split).texts.values())
    pairs = make_pairs(reports, arguments.pairs, arguments.seed)
    timed = [ours(pairs) for _ in range(arguments.repeats)]
    expected, reference_seconds = theirs(pairs)
    timed += [ours(pairs) for _ in range(arguments.repeats)]
    scores, seconds = timed[0][0], np.median([t for _, t in timed], axis=0)
    clock = Clock()
    intervals(scores, 1000, arguments.seed)
    resampling = clock.read()
    whole = everything(pairs, reports)
    gap = max(
        max(abs(score.value - expected[name][0]), float(np.abs(score.per_study - expected[name][1]).max()))
        for name, score in zip(METRICS, scores, strict=True)
    )
    result = {
        "pairs": arguments.pairs,
        "distinct_predictions": len(set(pairs.predicted)),
        **_both("seconds", seconds),
        **_both("pycocoevalcap_seconds", reference_seconds),
        **_both("speedup", reference_seconds / seconds),
        "largest_difference": gap,
        **_both("bootstrap_1000_seconds", resampling),
        **_both("everything_seconds", whole),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
        **{name: score.value for name, score in zip(METRICS, scores, strict=True)},
    }
    table = Table("what", "value", title="Text metrics beside pycocoevalcap, and everything")
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(width=100).print(table)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _both(name: str, seconds: np.ndarray) -> dict[str, float]:
    return {name: float(seconds[0]), f"{name}_cpu": float(seconds[1])}


if __name__ == "__main__":
    main()
