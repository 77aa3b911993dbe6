"""Lesion detection: AP as COCO defines it, matched IoU, FROC, by class and by lesion size (masks: `masks.py`).

Boxes are `(x1, y1, x2, y2)` with exclusive ends. A prediction is matched, by falling confidence, to the free truth of
its class on its image with the highest IoU that reaches the threshold. AP is the mean of the interpolated precision at
101 recalls (Lin et al., COCO, ECCV 2014); equal to pycocotools' and torchmetrics' (no crowd regions, at most `limit`
boxes an image), of all areas and by size: truths of another size, and what is matched to them, then take no part.
FROC: Bunch et al., 1977; its summary is the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image
(LUNA16).

Legend: P predictions, T truths of one class, N studies, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.evaluation.ranking import calibration_error
from vlm.evaluation.resampling import Interval, Score, interval_of, intervals, mean_of_sums, resample
from vlm.types import Box

Area = tuple[float, float]

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0.0, 1.0, 101)
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's bounds of area in square pixels, for the table by lesion size."""


@dataclass(frozen=True, slots=True)
class DetectionScores:
    """Detection at one IoU threshold.

    Args:
        iou: the threshold.
        mean_ap: mean AP over the classes that have a truth; NaN without any.
        by_class: class -> AP; NaN for a class without a truth.
        mean_iou: mean IoU of the matched boxes; NaN when none is matched.
        precision, recall, f1: of all boxes pooled, at the given confidence cut.
        predictions, truths, matched: numbers of boxes.
    """

    iou: float
    mean_ap: float
    by_class: dict[str, float]
    mean_iou: float
    precision: float
    recall: float
    f1: float
    predictions: int
    truths: int
    matched: int


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """The predictions of one class, by falling confidence, and what became of them.

    Args:
        confidence: (P,).
        study: (P,) study of each prediction.
        iou: (P,) IoU with the matched truth, 0 where unmatched.
        truth_study: (T,) study of each truth.
        found: (T,) bool, matched by a prediction.
    """

    confidence: np.ndarray
    study: np.ndarray
    iou: np.ndarray
    truth_study: np.ndarray
    found: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """(P,) bool, matched to a truth."""
        return self.iou > 0


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns (A, B) intersection over union of (A, 4) and (B, 4) boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    area_first = np.clip(first[:, 2:] - first[:, :2], 0, None).prod(axis=1)
    area_second = np.clip(second[:, 2:] - second[:, :2], 0, None).prod(axis=1)
    union = area_first[:, None] + area_second[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def labels_of(truths: Sequence[Sequence[Box]]) -> list[str]:
    """Returns the classes of the truths in alphabetical order."""
    return sorted({box.label for boxes in truths for box in boxes})


def average_precision(
    predictions: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    iou: float = 0.5,
    classes: Iterable[str] | None = None,
    cut: float = 0.5,
    limit: int = 100,
    area: Area | None = None,
) -> DetectionScores:
    """Scores the boxes of N studies at one IoU threshold.

    Args:
        predictions: boxes of each study with confidence (None counts as 1).
        truths: boxes of each study.
        iou: threshold in (0, 1].
        classes: labels to score; None: those of the truths. Predictions of other labels are left out.
        cut: confidence from which a prediction counts for precision, recall, F1 and mean IoU.
        limit: predictions a study, image and class that count, the most confident first, as in COCO.
        area: least and greatest area of the lesions that are scored, in square pixels; None for all.

    Returns:
        The scores; `by_class` holds AP in the order of `classes`.
    """
    names = labels_of(truths) if classes is None else list(classes)
    by_class, hits, called, found, ious = {}, 0, 0, 0, []
    total = 0
    for name in names:
        matches = match(predictions, truths, name, iou, limit, area=area)
        by_class[name] = _average(matches.hit, len(matches.found))
        kept = match(predictions, truths, name, iou, limit, cut, area)
        hits, called = hits + int(kept.hit.sum()), called + len(kept.hit)
        found, total = found + int(kept.found.sum()), total + len(kept.found)
        ious.extend(kept.iou[kept.hit].tolist())
    known = [value for value in by_class.values() if not np.isnan(value)]
    precision = hits / called if called else (0.0 if total else float("nan"))
    recall = found / total if total else float("nan")
    f1 = 2 * hits / (called + total) if called + total else float("nan")
    mean = float(np.mean(known)) if known else float("nan")
    return DetectionScores(
        iou, mean, by_class, float(np.mean(ious)) if ious else float("nan"), precision, recall, f1, called, total, hits
    )


def match(
    predictions: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    label: str,
    iou: float,
    limit: int = 100,
    cut: float = 0.0,
    area: Area | None = None,
) -> Matches:
    """Matches the boxes of one class, study by study and image by image.

    Args:
        predictions, truths: boxes of N studies.
        label: the class.
        iou: threshold.
        limit: predictions an image that count.
        cut: least confidence of a prediction.
        area: see `average_precision`.
    """
    inside = area if area is not None else (0.0, float("inf"))
    confidence: list[float] = []
    study: list[int] = []
    ious: list[float] = []
    truth_study: list[int] = []
    found: list[bool] = []
    for number, (mine, theirs) in enumerate(zip(predictions, truths, strict=True)):
        images = sorted({box.image for box in (*mine, *theirs) if box.label == label})
        for image in images:
            here = [b for b in mine if b.label == label and b.image == image and confidence_of(b) >= cut]
            here = sorted(here, key=confidence_of, reverse=True)[:limit]
            truth = [b for b in theirs if b.label == label and b.image == image]
            truth.sort(key=lambda box: not _within(box, inside))  # those that are scored first
            matched, partner, taken = _match_image(here, truth, iou, sum(_within(b, inside) for b in truth))
            kept = [
                _within(truth[place], inside) if place >= 0 else _within(box, inside)
                for box, place in zip(here, partner, strict=True)
            ]
            confidence.extend(confidence_of(box) for box, keep in zip(here, kept, strict=True) if keep)
            study.extend([number] * sum(kept))
            ious.extend(value for value, keep in zip(matched, kept, strict=True) if keep)
            found.extend(flag for box, flag in zip(truth, taken, strict=True) if _within(box, inside))
            truth_study.extend([number] * sum(_within(box, inside) for box in truth))
    order = np.argsort(-np.array(confidence, dtype=float), kind="stable") if confidence else np.zeros(0, dtype=int)
    return Matches(
        np.array(confidence, dtype=float)[order],
        np.array(study, dtype=int)[order],
        np.array(ious, dtype=float)[order],
        np.array(truth_study, dtype=int),
        np.array(found, dtype=bool),
    )


def confidence_of(box: Box) -> float:
    """Returns a box's confidence, 1 for one that a person drew."""
    return 1.0 if box.confidence is None else box.confidence


def _within(box: Box, area: Area) -> bool:
    return area[0] <= box.area <= area[1]  # both ends belong, as in pycocotools


def _match_image(
    predictions: Sequence[Box], truths: Sequence[Box], iou: float, scored: int
) -> tuple[list[float], list[int], list[bool]]:
    """Returns, for each prediction, the IoU with its truth (0 without) and the truth's place (-1), and which truths are
    taken.

    Args:
        predictions: by falling confidence.
        truths: the first `scored` are of the area asked for; another one is matched only when none of these can be.
    """
    taken = [False] * len(truths)
    matched, partner = [0.0] * len(predictions), [-1] * len(predictions)
    if not truths or not predictions:
        return matched, partner, taken
    overlap = box_iou(np.array([b.xyxy for b in predictions], float), np.array([b.xyxy for b in truths], float))
    for row in range(len(predictions)):
        best, place = min(iou, 1 - 1e-10), -1
        for column in range(len(truths)):
            if 0 <= place < scored <= column:
                break
            if not taken[column] and overlap[row, column] >= best:  # of equals the last, as pycocotools does
                best, place = float(overlap[row, column]), column
        if place >= 0:
            taken[place], matched[row], partner[row] = True, best, place
    return matched, partner, taken


def _average(hit: np.ndarray, truths: int) -> float:
    if truths == 0:
        return float("nan")
    return float(weighted_average_precision(hit, np.ones((1, len(hit))), np.array([float(truths)]))[0])


def weighted_average_precision(hit: np.ndarray, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Returns the AP of R resamples at once.

    Args:
        hit: (P,) bool by falling confidence.
        weights: (R, P) times that each prediction counts.
        truths: (R,) number of truths.

    Returns:
        (R,) AP; NaN where there is no truth.
    """
    resamples = len(weights)
    result = np.where(truths > 0, 0.0, np.nan)
    if weights.shape[1] == 0:
        return result
    true = np.cumsum(weights * hit, axis=1)
    all_called = np.cumsum(weights, axis=1)
    precision = np.divide(true, all_called, out=np.zeros_like(true), where=all_called > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row in range(resamples):
        if truths[row] > 0:
            place = np.searchsorted(true[row] / truths[row], RECALLS, side="left")
            inside = place < len(hit)
            result[row] = precision[row][place[inside]].sum() / len(RECALLS)
    return result


def map_interval(
    predictions: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    iou: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Returns the bootstrap interval of mean AP, studies resampled; undefined for a single study."""
    if len(truths) < 2:
        return Interval(float("nan"), float("nan"))
    matched = [match(predictions, truths, name, iou) for name in labels_of(truths)]
    values = []
    for weights in resample(len(truths), resamples, seed):
        rows = [
            weighted_average_precision(m.hit, weights[:, m.study], weights[:, m.truth_study].sum(axis=1))
            for m in matched
        ]
        stacked = np.stack(rows) if rows else np.full((1, len(weights)), np.nan)
        known = ~np.isnan(stacked)
        number = known.sum(axis=0)
        total = np.where(known, stacked, 0.0).sum(axis=0)
        values.append(np.divide(total, number, out=np.full(len(weights), np.nan), where=number > 0))
    return interval_of(np.concatenate(values))


@dataclass(frozen=True, slots=True)
class Froc:
    """Sensitivity against false positives an image.

    Args:
        false_positives: false positives an image, rising.
        sensitivity: share of the truths found.
        at: rate of `FROC_RATES` -> sensitivity.
        mean: mean over `FROC_RATES`.
    """

    false_positives: np.ndarray
    sensitivity: np.ndarray
    at: dict[float, float]
    mean: float


def froc(
    predictions: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    images: int,
    iou: float = 0.5,
    label: str | None = None,
    area: Area | None = None,
) -> Froc:
    """Traces the free-response curve.

    Args:
        predictions, truths: boxes of N studies.
        images: how many images the studies have, those without boxes included.
        iou: threshold of a hit.
        label: one class; None pools the classes of the truths (each matched within its class).
        area: see `average_precision`.
    """
    names = [label] if label is not None else labels_of(truths)
    matched = [match(predictions, truths, name, iou, area=area) for name in names]
    confidence = np.concatenate([m.confidence for m in matched]) if matched else np.zeros(0)
    hit = np.concatenate([m.hit for m in matched]) if matched else np.zeros(0, bool)
    total = sum(len(m.found) for m in matched)
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(ordered) else np.zeros(0, int)
    rate = np.r_[0.0, np.cumsum(~hit[order])[ends] / max(images, 1)]
    found = np.r_[0.0, np.cumsum(hit[order])[ends] / total] if total else np.full(len(ends) + 1, np.nan)
    at = {r: float(found[rate <= r].max()) for r in FROC_RATES} if total else {r: float("nan") for r in FROC_RATES}
    return Froc(rate, found, at, float(np.mean(list(at.values()))))


def box_calibration(predictions: Sequence[Sequence[Box]], truths: Sequence[Sequence[Box]]) -> float:
    """Returns the expected calibration error of confidences against being a hit at IoU 0.5; NaN without boxes."""
    matched = [match(predictions, truths, name, 0.5) for name in labels_of(truths)]
    if not any(len(m.hit) for m in matched):
        return float("nan")
    return calibration_error(np.concatenate([m.hit for m in matched]), np.concatenate([m.confidence for m in matched]))


def found_share(
    predictions: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    area: Area | None = None,
    cut: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, Interval, int]:
    """Returns the share of the lesions of an area that are found at IoU 0.5, its interval, and their number."""
    sums = np.zeros((len(truths), 2))
    for name in labels_of(truths):
        matches = match(predictions, truths, name, 0.5, cut=cut, area=area)
        sums[:, 0] += np.bincount(matches.truth_study, matches.found.astype(float), minlength=len(truths))
        sums[:, 1] += np.bincount(matches.truth_study, minlength=len(truths))
    value = Score("found", float(mean_of_sums(sums.sum(axis=0))), mean_of_sums(sums), sums, mean_of_sums, "found")
    return value.value, intervals([value], resamples, seed)["found"], int(sums[:, 1].sum())
