"""What an evaluation found, and its one flat object of named numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlm.evaluation.detection_table import DetectionTable
from vlm.evaluation.floors import Diversity
from vlm.evaluation.masks import MaskTable
from vlm.evaluation.ranking import MeanAuc, calibration_of
from vlm.evaluation.resampling import Difference, Interval, Score


@dataclass(slots=True)
class SystemResult:
    """One system or floor.

    Args:
        name: of the system, or "constant", "constant_f1", "shuffled", "neighbour".
        floor: True for what a system must beat.
        scores: on all studies.
        intervals: metric -> interval.
        new: on the studies whose reference is not in the training references; None without those.
        new_intervals: of `new`.
        diversity: None for the shuffled floor, whose reports are the system's.
        note: how a floor was made.
    """

    name: str
    floor: bool
    scores: list[Score]
    intervals: dict[str, Interval]
    new: list[Score] | None = None
    new_intervals: dict[str, Interval] = field(default_factory=dict)
    diversity: Diversity | None = None
    note: str = ""

    def values(self, new: bool = False) -> dict[str, float]:
        """Returns metric -> corpus value, on all studies or on the new ones."""
        return {score.name: score.value for score in (self.new or [] if new else self.scores)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system against another or a floor.

    Args:
        first, second: names.
        differences: metric -> first minus second.
        new: True on the studies whose reference is new.
    """

    first: str
    second: str
    differences: dict[str, Difference]
    new: bool = False


@dataclass(slots=True)
class Evaluation:
    """All that one call of `vlm evaluate` found.

    Args:
        ids: N study ids.
        systems: systems first, then floors.
        comparisons: in pairs, with Holm's correction over the pairs of a metric.
        signatures: metric -> what fixes its number.
        is_new: (N,) bool, reference not among the training references; None without those.
        detection: system -> boxes.
        masks: system -> Dice.
        aucs: system -> AUC of its finding probabilities.
        probabilities: system -> (label -> (N,) truth, label -> (N,) probability), what `aucs` was made of.
        tables: system -> "finding" or "coded" -> rows by label.
        ceiling: scores of the references' own text against the coded labels: what the reader can reach.
        notes: what a reader of the numbers should know.
        settings: resamples, seed and the like.
        extra: further numbers by name, as they are.
        plugin_scores: names of the scores that plug-ins added to the systems.
    """

    ids: list[str]
    systems: list[SystemResult]
    comparisons: list[Comparison] = field(default_factory=list)
    signatures: dict[str, str] = field(default_factory=dict)
    is_new: np.ndarray | None = None
    detection: dict[str, DetectionTable] = field(default_factory=dict)
    masks: dict[str, MaskTable] = field(default_factory=dict)
    aucs: dict[str, MeanAuc] = field(default_factory=dict)
    probabilities: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = field(default_factory=dict)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    ceiling: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    plugin_scores: list[str] = field(default_factory=list)

    def system(self, name: str) -> SystemResult:
        """Returns the system or floor of a name.

        Raises:
            KeyError: there is none.
        """
        for result in self.systems:
            if result.name == name:
                return result
        raise KeyError(name)

    def flat(self) -> dict[str, float | str | int | None]:
        """Returns one flat object of named scores; undefined values are null.

        A lone system's scores stand under their own names (`cider`, `cider.low`, `cider.high`), those of floors and of
        several systems under `name.cider`, differences under `cider-constant` (with `.low`, `.high`, `.p`), the new
        studies under `new.`.
        """
        out: dict[str, Any] = {"studies": len(self.ids), **self.extra}
        if self.is_new is not None:
            out["studies_new"] = int(self.is_new.sum())
        alone = sum(not result.floor for result in self.systems) == 1
        for result in self.systems:
            prefix = "" if alone and not result.floor else f"{result.name}."
            self._flat_scores(out, prefix, result)
        for comparison in self.comparisons:
            self._flat_comparison(out, comparison, alone)
        for name in self.detection:
            _flat_detection(out, "" if alone else f"{name}.", self.detection[name])
        for name, masks in self.masks.items():
            _flat_masks(out, "" if alone else f"{name}.", masks)
        for name, aucs in self.aucs.items():
            prefix = "" if alone else f"{name}."
            out |= {f"{prefix}auc_mean": aucs.mean, f"{prefix}auc_mean.low": aucs.interval.low}
            out |= {f"{prefix}auc_mean.high": aucs.interval.high, f"{prefix}auc_labels": len(aucs.by_label)}
            for label, (value, found, _) in aucs.by_label.items():
                _flat_span(out, f"{prefix}auc[{label}]", value, found)
            out[f"{prefix}ece"] = calibration_of(*self.probabilities[name])
        for name, kinds in self.tables.items():
            prefix = "" if alone else f"{name}."
            for kind, rows in kinds.items():
                out |= {f"{prefix}{kind}_f1[{row.label}]": row.f1 for row in rows}
                out |= {f"{prefix}{kind}_support[{row.label}]": row.support for row in rows}
        out |= {f"ceiling.{name}": value for name, value in self.ceiling.items()}
        out |= {f"{name}.signature": text for name, text in self.signatures.items()}
        out |= {f"settings.{name}": value for name, value in self.settings.items()}
        return {key: _plain(value) for key, value in out.items()}

    @staticmethod
    def _flat_scores(out: dict[str, Any], prefix: str, result: SystemResult) -> None:
        for middle, values, found in (
            ("", result.values(), result.intervals),
            ("new.", result.values(new=True), result.new_intervals),
        ):
            for metric, value in values.items():
                key = f"{prefix}{middle}{metric}"
                out[key] = value
                if metric in found:
                    out[f"{key}.low"], out[f"{key}.high"] = found[metric].low, found[metric].high
        if result.diversity is not None:
            out[f"{prefix}unique"] = result.diversity.unique
            out[f"{prefix}most_frequent_share"] = result.diversity.most_frequent_share
            out[f"{prefix}most_frequent"] = result.diversity.most_frequent[:500]
            out[f"{prefix}length_ratio"] = result.diversity.length_ratio
        if result.note:
            out[f"{prefix}note"] = result.note

    @staticmethod
    def _flat_comparison(out: dict[str, Any], comparison: Comparison, alone: bool) -> None:
        start = ("" if alone else f"{comparison.first}.") + ("new." if comparison.new else "")
        for metric, difference in comparison.differences.items():
            key = f"{start}{metric}-{comparison.second}"
            out[key] = difference.value
            out[f"{key}.low"], out[f"{key}.high"] = difference.interval.low, difference.interval.high
            out[f"{key}.p"], out[f"{key}.p_holm"] = difference.p, difference.p_holm


def _flat_detection(out: dict[str, Any], prefix: str, table: DetectionTable) -> None:
    at = table.at[0.5]
    out |= {
        f"{prefix}ap50": at.mean_ap,
        f"{prefix}ap50.low": table.interval.low,
        f"{prefix}ap50.high": table.interval.high,
    }
    out |= {f"{prefix}ap75": table.at[0.75].mean_ap, f"{prefix}ap": table.mean, f"{prefix}mean_iou": at.mean_iou}
    out |= {f"{prefix}box_precision": at.precision, f"{prefix}box_recall": at.recall, f"{prefix}box_f1": at.f1}
    out |= {f"{prefix}froc": table.froc.mean, f"{prefix}boxes": at.predictions, f"{prefix}boxes_true": at.truths}
    out |= {f"{prefix}ap50[{label}]": value for label, value in at.by_class.items()}
    out[f"{prefix}box_ece"] = table.error
    out |= {f"{prefix}froc[{label}]": curve.mean for label, curve in table.froc_by_class.items()}
    for label, point in table.points.items():
        out |= {f"{prefix}lesion_sensitivity[{label}]": point.sensitivity}
        out |= {f"{prefix}lesion_specificity[{label}]": point.specificity}
        out |= {f"{prefix}lesion_accuracy[{label}]": point.accuracy, f"{prefix}lesion_f1[{label}]": point.f1}
    for label, (value, found, _) in table.case.by_label.items():
        _flat_span(out, f"{prefix}lesion_auc[{label}]", value, found)
    for size, row in table.by_size.items():
        out |= {f"{prefix}ap50[{size}]": row.ap50, f"{prefix}ap[{size}]": row.mean_ap}
        out |= {f"{prefix}froc[{size}]": row.froc, f"{prefix}lesions[{size}]": row.lesions}
        out |= {f"{prefix}lesion_sensitivity[{size}]": row.point.sensitivity}
        out |= {f"{prefix}lesion_specificity[{size}]": row.point.specificity}
        _flat_span(out, f"{prefix}found[{size}]", row.found, row.found_interval)
        _flat_span(out, f"{prefix}lesion_auc[{size}]", row.auc, row.auc_interval)


def _flat_masks(out: dict[str, Any], prefix: str, table: MaskTable) -> None:
    _flat_span(out, f"{prefix}dice", table.score.value, table.interval)
    for name, (value, found, cases) in {**table.by_class, **table.by_size}.items():
        _flat_span(out, f"{prefix}dice[{name}]", value, found)
        out[f"{prefix}dice_cases[{name}]"] = cases


def _flat_span(out: dict[str, Any], key: str, value: float, found: Interval) -> None:
    out |= {key: value, f"{key}.low": found.low, f"{key}.high": found.high}


def _plain(value: Any) -> Any:
    """Returns a value that JSON can hold; NaN becomes null."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
