"""Detection in every way that is printed: overall, by class and by lesion size, with intervals.

By class, a study is a case: it has such a lesion or not, and its score is the highest confidence of a box of the class.
By size, a case with a lesion of the size (of any class) stands against the studies without any lesion, scored by the
highest confidence of any box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vlm.evaluation.detection import (
    SIZES,
    THRESHOLDS,
    DetectionScores,
    Froc,
    average_precision,
    box_calibration,
    confidence_of,
    found_share,
    froc,
    labels_of,
    map_interval,
)
from vlm.evaluation.ranking import MeanAuc, OperatingPoint, at_threshold, mean_auc
from vlm.evaluation.resampling import Interval
from vlm.types import Box

UNDEFINED = Interval(float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class SizeRow:
    """Detection of the lesions of one size.

    Args:
        lesions: how many there are.
        ap50, mean_ap: AP at IoU 0.5 and averaged over 0.5 to 0.95, as COCO's by area.
        found, found_interval: share found at IoU 0.5 and the confidence cut.
        froc: mean sensitivity of the curve.
        point: rates by study at the confidence cut.
        auc, auc_interval: by study; NaN where undefined.
    """

    lesions: int
    ap50: float
    mean_ap: float
    found: float
    found_interval: Interval
    froc: float
    point: OperatingPoint
    auc: float
    auc_interval: Interval


@dataclass(frozen=True, slots=True)
class DetectionTable:
    """All that is printed of detection.

    Args:
        at: IoU threshold -> scores at 0.5 and 0.75.
        mean: AP averaged over 0.5 to 0.95.
        interval: of mean AP at 0.5.
        froc: pooled over classes.
        froc_by_class: class -> curve.
        by_size: size -> its row; sizes without a lesion are left out.
        case: AUC by label of a study's highest confidence against whether it has such a lesion, with intervals.
        points: label -> rates at the confidence cut.
        error: expected calibration error of the boxes' confidences against being a hit at IoU 0.5; NaN without boxes.
        case_confidence, case_truth: label -> (N,) what `case` was made of.
    """

    at: dict[float, DetectionScores]
    mean: float
    interval: Interval
    froc: Froc
    froc_by_class: dict[str, Froc]
    by_size: dict[str, SizeRow]
    case: MeanAuc
    points: dict[str, OperatingPoint]
    error: float
    case_confidence: dict[str, np.ndarray] = field(default_factory=dict)
    case_truth: dict[str, np.ndarray] = field(default_factory=dict)


def detection_table(
    predictions: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    images: int,
    cut: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> DetectionTable:
    """Scores detection in every way that is printed.

    Args:
        predictions, truths: boxes of N studies.
        images: number of images.
        cut: confidence cut of precision, recall and the rates by study.
        resamples, seed: of the intervals.
    """
    scores = {threshold: average_precision(predictions, truths, threshold, cut=cut) for threshold in THRESHOLDS}
    names = labels_of(truths)
    confidence = {
        name: np.array([max((confidence_of(b) for b in p if b.label == name), default=0.0) for p in predictions])
        for name in names
    }
    present = {name: np.array([any(b.label == name for b in t) for t in truths]) for name in names}
    sizes = {
        name: size_row(predictions, truths, images, area, cut, resamples, seed)
        for name, area in SIZES.items()
        if any(area[0] <= box.area <= area[1] for boxes in truths for box in boxes)
    }
    return DetectionTable(
        {threshold: scores[threshold] for threshold in (0.5, 0.75)},
        float(np.mean([s.mean_ap for s in scores.values()])),
        map_interval(predictions, truths, 0.5, resamples, seed),
        froc(predictions, truths, images),
        {name: froc(predictions, truths, images, label=name) for name in names},
        sizes,
        mean_auc(present, confidence, 1, resamples, seed),
        {name: at_threshold(present[name], confidence[name], cut) for name in names},
        box_calibration(predictions, truths),
        confidence,
        present,
    )


def size_row(
    predictions: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    images: int,
    area: tuple[float, float],
    cut: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> SizeRow:
    """Scores the lesions of one area.

    Args:
        predictions, truths: boxes of N studies.
        images: number of images.
        area: least and greatest area in square pixels.
        cut, resamples, seed: as in `detection_table`.
    """
    scores = [average_precision(predictions, truths, threshold, cut=cut, area=area) for threshold in THRESHOLDS]
    share, share_interval, lesions = found_share(predictions, truths, area, cut, resamples, seed)
    has = np.array([any(area[0] <= b.area <= area[1] for b in boxes) for boxes in truths])
    kept = has | np.array([not boxes for boxes in truths])
    highest = np.array([max(map(confidence_of, boxes), default=0.0) for boxes in predictions])
    case = mean_auc({"size": has[kept]}, {"size": highest[kept]}, 1, resamples, seed)
    value, found, _ = case.by_label.get("size", (float("nan"), UNDEFINED, 0))
    return SizeRow(
        lesions,
        scores[0].mean_ap,
        float(np.mean([s.mean_ap for s in scores])),
        share,
        share_interval,
        froc(predictions, truths, images, area=area).mean,
        at_threshold(has[kept], highest[kept], cut),
        value,
        found,
    )
