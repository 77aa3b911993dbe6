"""AP against torchmetrics and pycocotools, AUC against scikit-learn, and the small cases that can be worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vlm.evaluation.detection import (
    SIZES,
    THRESHOLDS,
    average_precision,
    box_iou,
    froc,
    map_interval,
)
from vlm.evaluation.detection_table import detection_table
from vlm.evaluation.ranking import at_threshold, auc, calibration_error, mean_auc, precision_recall, roc_curve
from vlm.types import Box

CLASSES = ("mass", "nodule", "opacity")


def scene(seed: int, studies: int = 25) -> tuple[list[list[Box]], list[list[Box]]]:
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for _ in range(studies):
        truth, prediction = [], []
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = rng.uniform(5, 60), rng.uniform(5, 60), rng.uniform(8, 40), rng.uniform(8, 40)
            label = CLASSES[rng.integers(3)]
            truth.append(Box((x, y, x + w, y + h), label))
            for _ in range(rng.integers(0, 3)):
                dx, dy, dw = rng.normal(0, 3, 3)
                box = (x + dx, y + dy, x + dx + max(2, w + dw), y + dy + max(2, h - dw))
                prediction.append(
                    Box(
                        box,
                        label if rng.random() < 0.85 else CLASSES[rng.integers(3)],
                        0,
                        round(float(rng.random()), 3),
                    )
                )
        for _ in range(rng.integers(0, 3)):
            x, y = rng.uniform(0, 80, 2)
            prediction.append(Box((x, y, x + 15, y + 15), CLASSES[rng.integers(3)], 0, round(float(rng.random()), 3)))
        predictions.append(prediction)
        truths.append(truth)
    return predictions, truths


def torchmetrics_map(predictions: list[list[Box]], truths: list[list[Box]]) -> dict[str, float]:
    torch = pytest.importorskip("torch")
    detection = pytest.importorskip("torchmetrics.detection")
    metric = detection.MeanAveragePrecision(box_format="xyxy", class_metrics=True)

    def tensors(boxes: list[Box], scores: bool) -> dict[str, object]:
        result = {
            "boxes": torch.tensor([b.xyxy for b in boxes], dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor([CLASSES.index(b.label) for b in boxes], dtype=torch.int64),
        }
        if scores:
            result["scores"] = torch.tensor([b.confidence for b in boxes], dtype=torch.float64)
        return result

    metric.update([tensors(p, True) for p in predictions], [tensors(t, False) for t in truths])
    return {key: float(value) for key, value in metric.compute().items() if value.numel() == 1}


@pytest.mark.parametrize("seed", range(4))
def test_ap_equals_torchmetrics_which_runs_pycocotools(seed: int) -> None:
    predictions, truths = scene(seed)
    expected = torchmetrics_map(predictions, truths)
    assert average_precision(predictions, truths, 0.5).mean_ap == pytest.approx(expected["map_50"], abs=1e-6)
    assert average_precision(predictions, truths, 0.75).mean_ap == pytest.approx(expected["map_75"], abs=1e-6)
    all_thresholds = np.mean([average_precision(predictions, truths, t).mean_ap for t in THRESHOLDS])
    assert all_thresholds == pytest.approx(expected["map"], abs=1e-6)
    for size in ("small", "medium"):
        values = [average_precision(predictions, truths, t, area=SIZES[size]).mean_ap for t in THRESHOLDS]
        assert np.mean(values) == pytest.approx(expected[f"map_{size}"], abs=1e-6)


def test_a_perfect_detector_scores_one_and_none_scores_zero() -> None:
    truths = [[Box((0, 0, 10, 10), "mass")], []]
    perfect = average_precision([[Box((0, 0, 10, 10), "mass", 0, 0.9)], []], truths)
    assert (perfect.mean_ap, perfect.recall, perfect.precision, perfect.mean_iou) == (1.0, 1.0, 1.0, 1.0)
    nothing = average_precision([[], []], truths)
    assert (nothing.mean_ap, nothing.recall, nothing.precision) == (0.0, 0.0, 0.0)


def test_boxes_of_another_image_or_class_do_not_match() -> None:
    truths = [[Box((0, 0, 10, 10), "mass", 1)]]
    assert average_precision([[Box((0, 0, 10, 10), "mass", 0, 0.9)]], truths).mean_ap == 0.0
    assert average_precision([[Box((0, 0, 10, 10), "nodule", 1, 0.9)]], truths).mean_ap == 0.0


def test_no_truth_at_all_is_undefined() -> None:
    assert np.isnan(average_precision([[Box((0, 0, 9, 9), "mass", 0, 0.5)]], [[]]).mean_ap)


def test_box_iou_by_hand() -> None:
    # 5 x 10 of overlap in 100 + 100 - 50
    assert box_iou(np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10]]))[0, 0] == pytest.approx(50 / 150)


def test_froc_by_hand() -> None:
    truths = [[Box((0, 0, 10, 10), "mass")], [Box((0, 0, 10, 10), "mass")]]
    predictions = [
        [Box((0, 0, 10, 10), "mass", 0, 0.9), Box((50, 50, 60, 60), "mass", 0, 0.8)],
        [Box((0, 0, 10, 10), "mass", 0, 0.7)],
    ]
    curve = froc(predictions, truths, images=2)
    assert curve.at[0.25] == 0.5  # the false positive at 0.8 costs 1/2 a image, so only the first hit is in reach
    assert curve.at[0.5] == 1.0


def test_interval_holds_the_value_and_needs_two_studies() -> None:
    predictions, truths = scene(1, 60)
    value = average_precision(predictions, truths).mean_ap
    found = map_interval(predictions, truths, resamples=200)
    assert found.low < value < found.high
    assert np.isnan(map_interval(predictions[:1], truths[:1]).low)


def test_by_size_and_class_by_hand() -> None:
    small, large = Box((0, 0, 10, 10), "nodule"), Box((0, 0, 200, 200), "mass")
    truths = [[small], [large], [small, large], []]
    predictions = [
        [replace(small, confidence=0.9)],
        [replace(large, confidence=0.4)],  # below the cut
        [replace(large, confidence=0.8), replace(small, xyxy=(50, 50, 60, 60), confidence=0.7)],
        [replace(small, confidence=0.6)],
    ]
    table = detection_table(predictions, truths, 4, resamples=50)
    assert list(table.by_size) == ["small", "large"]
    few, many = table.by_size["small"], table.by_size["large"]
    assert (few.lesions, few.found, many.lesions, many.found) == (2, 0.5, 2, 0.5)
    assert (few.point.sensitivity, few.point.specificity) == (1.0, 0.0)  # by study: the one without lesions is called
    assert (few.auc, many.auc) == (1.0, 0.5)  # the large lesions score 0.4 and 0.8 against 0.6
    assert many.ap50 == pytest.approx(1.0)  # a box of another size is no false positive
    assert table.froc_by_class["mass"].at[0.125] == 1.0
    assert table.points["nodule"].specificity == 0.5


def test_auc_equals_scikit_learn_with_ties_and_weights() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, scores = rng.random(300) < 0.3, np.round(rng.random(300), 1)
    assert auc(truth, scores) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    weights = rng.integers(0, 4, size=(3, 300)).astype(float)
    expected = [metrics.roc_auc_score(truth, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(auc(truth, scores, weights), expected, atol=1e-12)
    fpr, tpr, _ = roc_curve(truth, scores)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    recall, precision = precision_recall(truth, scores)
    steps = np.diff(np.r_[0.0, recall])
    assert (steps * precision).sum() == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)


def test_mean_auc_leaves_out_rare_labels() -> None:
    rng = np.random.default_rng(0)
    truth = {"often": np.arange(200) % 4 == 0, "rare": np.arange(200) < 3}
    scores = {name: rng.random(200) + 0.5 * value for name, value in truth.items()}
    result = mean_auc(truth, scores, least=10, resamples=100)
    assert list(result.by_label) == ["often"]
    value, found, positives = result.by_label["often"]
    assert positives == 50
    assert found.low < value < found.high
    assert result.mean == pytest.approx(value)


def test_operating_point_and_calibration_by_hand() -> None:
    truth, scores = np.array([True, True, False, False]), np.array([0.9, 0.4, 0.6, 0.1])
    point = at_threshold(truth, scores, 0.5)
    assert (point.sensitivity, point.specificity, point.precision, point.accuracy, point.f1) == (
        0.5,
        0.5,
        0.5,
        0.5,
        0.5,
    )
    assert calibration_error(np.array([True, False]), np.array([0.95, 0.05])) == pytest.approx(0.05)
    assert calibration_error(np.ones(10, bool), np.full(10, 0.5)) == pytest.approx(0.5)
