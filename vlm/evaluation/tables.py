"""The tables by label, class and lesion size, as title, header and rows of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from vlm.evaluation.detection_table import DetectionTable
from vlm.evaluation.masks import MaskTable
from vlm.evaluation.ranking import MeanAuc, at_threshold, calibration_of
from vlm.evaluation.resampling import Interval
from vlm.evaluation.result import Evaluation

Table = tuple[str, list[str], list[list[str]]]


def show(value: float | None, digits: int = 3) -> str:
    """Returns a number for a table, "undefined" for NaN."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def span(found: Interval) -> str:
    """Returns an interval for a table."""
    return "undefined" if math.isnan(found.low) else f"{show(found.low)} to {show(found.high)}"


def label_tables(result: Evaluation) -> Iterable[Table]:
    """Yields precision, recall and F1 by label of each system, and what its finding probabilities are worth."""
    titles = {
        "finding": "By finding, read from both texts",
        "chexpert14": "CheXpert's 14 classes, read from both texts",
        "coded": "By label coded by people, read from the generated text",
    }
    for name, kinds in result.tables.items():
        for kind, lines in kinds.items():
            rows = [
                [
                    line.label[:44],
                    show(line.precision),
                    show(line.recall),
                    show(line.f1),
                    str(line.support),
                    str(line.predicted),
                ]
                for line in lines
                if line.support or line.predicted
            ]
            yield f"{titles[kind]}: {name}", ["", "precision", "recall", "F1", "support", "said"], rows
    for name, aucs in result.aucs.items():
        yield _auc_table(name, aucs, *result.probabilities[name])


def _auc_table(name: str, aucs: MeanAuc, truth: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> Table:
    rows = []
    for label, (value, found, positives) in aucs.by_label.items():
        point = at_threshold(truth[label], scores[label])
        rates = (show(point.sensitivity), show(point.specificity), show(point.accuracy), show(point.f1))
        rows.append([label[:28], show(value), span(found), str(positives), *rates])
    if rows:
        rows.append(["mean", show(aucs.mean), span(aucs.interval), "", "", "", "", ""])
        error = calibration_of(truth, scores)
        rows.append(["calibration error (ECE)", show(error), "", "", "", "", "", ""])
    header = ["", "AUC", "interval", "positives", "sens.", "spec.", "accuracy", "F1"]
    return f"Finding probabilities; sensitivity to F1 by study at 0.5: {name}", header, rows


def detection_tables(result: Evaluation) -> Iterable[Table]:
    """Yields what is known of boxes and masks, overall, by class and by lesion size."""
    for name, table in result.detection.items():
        yield _overall(name, table)
        yield _by_class(name, table)
        rows = [
            [
                f"{size}, {row.lesions}",
                show(row.ap50),
                show(row.mean_ap),
                f"{show(row.found)} ({span(row.found_interval)})",
                show(row.froc),
                f"{show(row.auc)} ({span(row.auc_interval)})",
            ]
            for size, row in table.by_size.items()
        ]
        header = ["size, lesions", "AP 0.5", "AP 0.5:0.95", "found (interval)", "FROC", "AUC (interval)"]
        yield f"By lesion size (small below 32 x 32 pixels, large from 96 x 96): {name}", header, rows
    for name, masks in result.masks.items():
        yield f"Masks: {name}", ["", "Dice", "interval", "cases"], _dice_rows(masks)


def _overall(name: str, table: DetectionTable) -> Table:
    at = table.at[0.5]
    rows = [
        ["AP at IoU 0.5 (interval)", f"{show(at.mean_ap)} ({span(table.interval)})"],
        ["AP at 0.75; at 0.5:0.95", f"{show(table.at[0.75].mean_ap)}; {show(table.mean)}"],
        ["mean IoU of matched boxes", show(at.mean_iou)],
        ["precision, recall, F1 of boxes", f"{show(at.precision)}, {show(at.recall)}, {show(at.f1)}"],
        ["FROC, mean sensitivity", show(table.froc.mean)],
        ["calibration error (ECE)", show(table.error)],
        ["boxes: predicted, true", f"{at.predictions}, {at.truths}"],
    ]
    return f"Detection: {name}", ["", ""], rows


def _by_class(name: str, table: DetectionTable) -> Table:
    rows = []
    for label, value in table.at[0.5].by_class.items():
        point = table.points[label]
        area, found, _ = table.case.by_label.get(label, (float("nan"), Interval(float("nan"), float("nan")), 0))
        rates = (show(point.sensitivity), show(point.specificity), show(point.accuracy), show(point.f1))
        rows.append([label[:20], show(value), show(table.froc_by_class[label].mean), *rates, show(area), span(found)])
    header = ["class", "AP 0.5", "FROC", "sens.", "spec.", "accuracy", "F1", "AUC", "interval"]
    return f"By class; sensitivity to AUC by study: {name}", header, rows


def _dice_rows(masks: MaskTable) -> list[list[str]]:
    rows = [["all", show(masks.score.value), span(masks.interval), str(sum(n for _, _, n in masks.by_class.values()))]]
    for label, (value, found, cases) in {**masks.by_class, **masks.by_size}.items():
        rows.append([f"  {label}", show(value), span(found), str(cases)])
    return rows
