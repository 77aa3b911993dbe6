"""Times the text metrics beside pycocoevalcap's on report pairs made from real reports, and checks that they are equal.

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
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vlm.evaluation.inputs import read_reports
from vlm.evaluation.resampling import Score, intervals
from vlm.evaluation.text import bleu, cider, index_texts, rouge_l
from vlm.evaluation.tokens import make_profile

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider")


def make_pairs(reports: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """Returns `count` predictions and references as token strings."""
    rng, profile = random.Random(seed), make_profile("canonical")
    sentences = [[part for part in report.split(". ") if part] for report in reports]
    predictions, references = [], []
    for i in range(count):
        reference, other = sentences[i % len(sentences)], rng.choice(sentences)
        mixed = [rng.choice((part, *other)) for part in reference]
        predictions.append(profile.prediction(". ".join(mixed)))
        references.append(profile.reference(". ".join(reference)))
    return predictions, references


def ours(predictions: list[str], references: list[str]) -> tuple[list[Score], float]:
    """Returns our scores and the seconds they took, counting included."""
    start = time.perf_counter()
    index, systems = index_texts(references, {"p": predictions})
    hypothesis = systems["p"]
    scores = [*bleu(index, hypothesis), rouge_l(index, hypothesis), cider(index, hypothesis)]
    return scores, time.perf_counter() - start


def theirs(predictions: list[str], references: list[str]) -> tuple[dict[str, tuple[float, np.ndarray]], float]:
    """Returns pycocoevalcap's corpus and per-study values, and the seconds they took."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = {i: [text] for i, text in enumerate(references)}
    res = {i: [text] for i, text in enumerate(predictions)}
    start = time.perf_counter()
    corpus, each = Bleu(4).compute_score(gts, res, verbose=0)
    values = {f"bleu{n + 1}": (corpus[n], np.array(each[n])) for n in range(4)}
    values["rougeL"] = Rouge().compute_score(gts, res)
    values["cider"] = Cider().compute_score(gts, res)
    return values, time.perf_counter() - start


def everything(predictions: list[str], references: list[str]) -> float:
    """Returns the seconds of a whole text evaluation: METEOR, floors, intervals and paired tests with it."""
    from vlm.evaluation.inputs import Joined
    from vlm.evaluation.run import Settings, evaluate_reports

    ids = [str(i) for i in range(len(references))]
    blank: list[dict[str, object]] = [{} for _ in ids]
    joined = Joined(ids, references, {"p": predictions}, {"p": blank, "reference": blank})
    start = time.perf_counter()
    evaluate_reports(joined, Settings(clinical=False))
    return time.perf_counter() - start


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("RADSCRIBE_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--reports", type=Path, default=Path(data) / "openi" / "r2gen_annotation.json")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="our own timing is the median of so many")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    reports = list(read_reports(arguments.reports, split=arguments.split).texts.values())
    predictions, references = make_pairs(reports, arguments.pairs, arguments.seed)
    timed = [ours(predictions, references) for _ in range(arguments.repeats)]
    scores, seconds = timed[0][0], float(np.median([t for _, t in timed]))
    start = time.perf_counter()
    intervals(scores, 1000, arguments.seed)
    resampling = time.perf_counter() - start
    whole = everything(predictions, references)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    expected, reference_seconds = theirs(predictions, references)
    gap = max(
        max(abs(score.value - expected[name][0]), float(np.abs(score.per_study - expected[name][1]).max()))
        for name, score in zip(METRICS, scores, strict=True)
    )
    result = {
        "pairs": arguments.pairs,
        "distinct_predictions": len(set(predictions)),
        "seconds": seconds,
        "pycocoevalcap_seconds": reference_seconds,
        "speedup": reference_seconds / seconds,
        "largest_difference": gap,
        "bootstrap_1000_seconds": resampling,
        "everything_seconds": whole,
        "peak_gib": memory,
        **{name: score.value for name, score in zip(METRICS, scores, strict=True)},
    }
    table = Table("what", "value", title="Text metrics beside pycocoevalcap")
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(width=100).print(table)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
