"""What an ablation compares: variants of one configuration on one budget, and how their runs are summed up.

scripts/ablate.py trains and measures them.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

from vlm.config import Config, lay_over

WITHOUT: dict[str, dict[str, Any]] = {
    "knowledge": {
        "model": {"knowledge": {"enabled": False}},
        "training": {"loss": {"implication": 0.0, "exclusion": 0.0, "alignment": 0.0, "concept_weight": 1.0}},
    },
    "hierarchy": {"model": {"hierarchy": {"enabled": False}}},
    "detection": {"model": {"detection": {"strides": [16]}}},
}
"""Part -> what leaves it out."""

FUSION = "full, fusion "
"""Begins the names of the variants that differ from "full" in the way of fusion alone."""


def variants(parts: list[str]) -> dict[str, dict[str, list[str] | str]]:
    """Name -> parts left out and the way of fusion; rows that would repeat another are left out."""
    fine = [p for p in parts if p != "knowledge"]
    rows: dict[str, tuple[list[str], str]] = {"base": (parts, "gate")}
    if "knowledge" in parts and fine:
        rows["+ knowledge"] = (fine, "gate")
        rows["+ fine-grained"] = (["knowledge"], "gate")
    rows["full"] = ([], "gate")
    if "knowledge" in parts:
        rows |= {f"{FUSION}{name}": ([], name) for name in ("none", "concatenate", "attention")}
    return {name: {"without": without, "fusion": fusion} for name, (without, fusion) in rows.items()}


def variant_config(base: Config, variant: dict[str, Any], seed: int, origin: str) -> Config:
    """The configuration of one run."""
    changes: dict[str, Any] = {"training": {"seed": seed}}
    if "knowledge" not in variant["without"]:
        changes["model"] = {"knowledge": {"fusion": variant["fusion"]}}
    config = lay_over(base, changes, origin)
    for part in variant["without"]:
        config = lay_over(config, WITHOUT[part], origin)
    if "knowledge" in variant["without"]:
        stages = [
            stage.model_copy(update={"losses": tuple(n for n in stage.losses if n != "knowledge") or stage.losses})
            for stage in config.training.stages
        ]
        config = config.model_copy(update={"training": config.training.model_copy(update={"stages": tuple(stages)})})
    return config


def scaled(config: Config, limit: int | None, epochs: float, origin: str) -> Config:
    """The configuration on `limit` studies of each set and with so many times the epochs."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    for source in [*tree["data"]["train"], *tree["data"].get("validation", [])] if limit else []:
        key = "limit" if source.get("path") else "count"
        source[key] = min(limit or 0, source.get(key) or limit or 0)
    for stage in tree["training"]["stages"]:
        stage["epochs"] *= epochs
    return lay_over(config, tree, origin)


def finding_metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Micro averages over the known cells, with cuts from the other half of the studies; AUC needs none.

    Args:
        logits: (N, F). targets: (N, F) 1, 0 or NaN.
    """
    from vlm.validation import best_f1_cut, mean_auc  # loads every model library

    score = 1 / (1 + np.exp(-logits.astype(float)))
    fold = np.arange(len(score)) % 2
    predicted = np.zeros(score.shape, bool)
    for half in (0, 1):
        for label in range(score.shape[1]):
            cut = best_f1_cut(score[fold != half, label], targets[fold != half, label])
            predicted[fold == half, label] = score[fold == half, label] >= cut
    known, truth = ~np.isnan(targets), targets == 1
    hit, false = (predicted & truth).sum(), (predicted & ~truth & known).sum()
    missed = (~predicted & truth).sum()
    return {
        "accuracy": float((predicted == truth)[known].mean()),
        "precision": float(hit / max(1, hit + false)),
        "recall": float(hit / max(1, hit + missed)),
        "f1": float(2 * hit / max(1, 2 * hit + false + missed)),
        "auc": mean_auc(logits, targets),
    }


def student(freedom: int, level: float = 0.95) -> float:
    """The t that Student's distribution keeps `level` of itself below in size; with t = sqrt(n) tan(a) its density is
    cos(a)^(n - 1) da."""
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, mass / mass[-1], angle)))


def summary(rows: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval over seeds (Student's t); NaN for fewer than two."""
    values = [v for v in rows if not math.isnan(v)]
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def cell(values: list[float], digits: int) -> str:
    """A mean with its interval, as it is printed."""
    mean, half = summary(values)
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def groups(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Heading -> variant -> the name of its row: the parts, and the ways of fusion with all parts."""
    fusions = {name: name.removeprefix(FUSION) for name in results if name.startswith(FUSION)}
    rows = {"parts": {name: name for name in results if name not in fusions}}
    if fusions:
        rows["knowledge fusion"] = fusions | ({"full": "gate (full)"} if "full" in results else {})
    return rows


def verdicts(results: dict[str, list[dict[str, float]]], metrics: dict[str, tuple[str, int]]) -> list[str]:
    """A line for each variant beside the one that it adds to: paired differences of runs with the same seed, split
    into those whose 95% interval leaves out zero and those that the seeds do not tell apart.

    Args:
        results: variant -> runs, each with its "seed". metrics: metric -> heading and decimals.
    """
    pairs = [(name, "base") for name in results if name != "base" and not name.startswith(FUSION)]
    pairs += [("full", "+ fine-grained")] + [
        (name, f"{FUSION}none") for name in (f"{FUSION}concatenate", f"{FUSION}attention", "full")
    ]
    lines = []
    for name, other in pairs:
        clear, unclear = [], []
        for key, (title, digits) in metrics.items():
            before = {run["seed"]: run[key] for run in results.get(other, []) if key in run}
            rows = [
                run[key] - before[run["seed"]] for run in results.get(name, []) if run["seed"] in before and key in run
            ]
            mean, half = summary(rows)
            if math.isnan(half):
                continue
            if abs(mean) > half:
                clear.append(f"{title} {mean:+.{digits}f} ± {half:.{digits}f}")
            else:
                unclear.append(title)
        if clear or unclear:
            told = f"; not told apart: {', '.join(unclear)}" if unclear else ""
            lines.append(f"{name} against {other}: {', '.join(clear) or 'nothing beyond the spread of seeds'}{told}.")
    return lines
