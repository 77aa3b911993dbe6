"""Plots of an evaluation as PNG: scores beside floors, score by report length, ROC, PR, reliability, FROC."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vlm.evaluation.ranking import auc, precision_recall, reliability, roc_curve
from vlm.evaluation.result import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LABELS = 8
BARS = ("bleu4", "rougeL", "meteor", "cider", "finding_f1_macro", "coded_f1_macro")


def make_plots(result: Evaluation, lengths: Sequence[int]) -> dict[str, bytes]:
    """Draws what the evaluation holds.

    Args:
        result: the evaluation.
        lengths: words of each study's reference.

    Returns:
        Name -> PNG.
    """
    plots = {"scores": _figure(lambda axes: _draw_scores(axes, result), (9.0, 3.8))}
    if len(result.ids) >= 8:
        plots["length"] = _figure(lambda axes: _draw_length(axes, result, np.asarray(lengths)), (6.4, 4.0))
    # Without finding probabilities, a study's most confident box of a class stands for its probability.
    cases = {name: (table.case_truth, table.case_confidence) for name, table in result.detection.items()}
    probabilities = {**cases, **result.probabilities}
    for name, (truth, scores) in probabilities.items():
        kept = [label for label in truth if label in scores and 0 < truth[label].sum() < len(truth[label])]
        kept = sorted(kept, key=lambda label: -int(truth[label].sum()))[:MOST_LABELS]
        if kept:
            suffix = "" if len(probabilities) == 1 else f"_{name.replace('/', '_')}"
            curves = {label: (truth[label], scores[label]) for label in kept}
            plots[f"roc{suffix}"] = _figure(partial(_draw_roc, curves=curves))
            plots[f"pr{suffix}"] = _figure(partial(_draw_pr, curves=curves), (7.4, 4.6))
            plots[f"reliability{suffix}"] = _figure(partial(_draw_reliability, truth=truth, scores=scores))
    if result.detection:
        plots["froc"] = _figure(lambda axes: _draw_froc(axes, result))
    return plots


def _figure(draw: Callable[[Axes], None], size: tuple[float, float] = (5.6, 4.6)) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    return stream.getvalue()


def _draw_scores(axes: Axes, result: Evaluation) -> None:
    metrics = [name for name in BARS if any(name in system.values() for system in result.systems)]
    width = 0.8 / len(result.systems)
    highest = {m: max((s.values().get(m, np.nan) for s in result.systems), default=1.0) for m in metrics}
    scale = {m: 0.1 if m == "cider" and highest[m] > 1.5 else 1.0 for m in metrics}
    for place, system in enumerate(result.systems):
        values = np.array([system.values().get(m, np.nan) * scale[m] for m in metrics])
        spans = [system.intervals.get(m) for m in metrics]
        low = np.array([np.nan if s is None else s.low * scale[m] for s, m in zip(spans, metrics, strict=True)])
        high = np.array([np.nan if s is None else s.high * scale[m] for s, m in zip(spans, metrics, strict=True)])
        errors = np.abs(np.nan_to_num(np.stack([values - low, high - values])))
        x = np.arange(len(metrics)) + (place - (len(result.systems) - 1) / 2) * width
        colour = f"C{place}" if not system.floor else str(0.35 + 0.5 * place / len(result.systems))
        axes.bar(
            x, np.nan_to_num(values), width * 0.92, yerr=errors, color=colour, label=system.name, error_kw={"lw": 0.8}
        )
    names = [f"{m}\n(a tenth)" if scale[m] != 1 else m.replace("_f1_", "\nF1 ") for m in metrics]
    axes.set_xticks(np.arange(len(metrics)), names)
    axes.set_ylabel("score")
    axes.set_title(
        f"{len(result.ids)} studies; floors in grey; bars: {result.settings.get('level', 0.95):.0%} bootstrap interval"
    )
    axes.legend(frameon=False, fontsize=8)


def _draw_length(axes: Axes, result: Evaluation, lengths: np.ndarray) -> None:
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 6)))
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, max(len(edges) - 2, 0))
    for number, system in enumerate(s for s in result.systems if not s.floor):
        score = next(s for s in system.scores if s.name == "rougeL").per_study
        groups = [g for g in range(int(place.max()) + 1) if (place == g).sum() > 0]
        means = [score[place == g].mean() for g in groups]
        spread = [1.96 * score[place == g].std() / np.sqrt((place == g).sum()) for g in groups]
        centre = [lengths[place == g].mean() for g in groups]
        axes.errorbar(centre, means, yerr=spread, marker="o", ms=4, capsize=2, color=f"C{number}", label=system.name)
    axes.set_xlabel("words of the reference (fifths of the studies)")
    axes.set_ylabel("ROUGE-L, mean and 95% interval")
    axes.set_title("Score by length of the report")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _draw_roc(axes: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for label, (truth, scores) in curves.items():
        fpr, tpr, _ = roc_curve(truth, scores)
        axes.plot(fpr, tpr, lw=1.4, label=f"{label[:28]} {float(auc(truth, scores)):.2f} ({int(truth.sum())})")
    axes.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls="--")
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_title("ROC: label, AUC (positives)")
    axes.legend(frameon=False, fontsize=7, loc="lower right")


def _draw_pr(axes: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for label, (truth, scores) in curves.items():
        recall, precision = precision_recall(truth, scores)
        area = float((np.diff(np.r_[0.0, recall]) * precision).sum())
        axes.plot(recall, precision, lw=1.4, drawstyle="steps-pre", label=f"{label[:28]} {area:.2f}")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_ylim(0, 1.02)
    axes.set_title("Precision and recall: label, average precision")
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_reliability(axes: Axes, truth: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> None:
    shared = [label for label in truth if label in scores]
    said = np.concatenate([scores[label] for label in shared])
    true = np.concatenate([truth[label] for label in shared])
    mean, share, number = reliability(true, said)
    filled = number > 0
    error = float((np.abs(mean - share)[filled] * number[filled]).sum() / number.sum())
    axes.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls="--")
    axes.plot(mean[filled], share[filled], marker="o", ms=4, color="C0")
    for x, y, n in zip(mean[filled], share[filled], number[filled], strict=True):
        axes.annotate(f"{int(n)}", (x, y), textcoords="offset points", xytext=(5, -9), fontsize=7, color="0.4")
    axes.set_xlabel("probability given")
    axes.set_ylabel("share that is positive")
    axes.set_title(
        f"Reliability over all labels, calibration error {error:.3f} (number of cases at the points)", fontsize=9
    )


def _draw_froc(axes: Axes, result: Evaluation) -> None:
    for number, (name, table) in enumerate(result.detection.items()):
        curve = table.froc
        axes.plot(
            curve.false_positives,
            curve.sensitivity,
            color=f"C{number}",
            lw=1.4,
            drawstyle="steps-post",
            label=f"{name}, mean sensitivity {curve.mean:.2f}",
        )
        classes = (
            table.froc_by_class if 1 < len(table.froc_by_class) <= MOST_LABELS and len(result.detection) == 1 else {}
        )
        for place, (label, own) in enumerate(classes.items(), 1):
            axes.plot(
                own.false_positives,
                own.sensitivity,
                color=f"C{place}",
                lw=0.9,
                drawstyle="steps-post",
                label=f"{label[:24]}, {own.mean:.2f}",
            )
    axes.set_xlabel("false positives an image")
    axes.set_ylabel("sensitivity (IoU 0.5)")
    axes.set_ylim(0, 1.02)
    highest = max(float(table.froc.false_positives[-1]) for table in result.detection.values())
    axes.set_xlim(0, min(8.0, max(1.0, 1.1 * highest)))
    axes.set_title("FROC, all classes pooled and by class")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
