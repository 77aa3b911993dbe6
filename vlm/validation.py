"""What a stage is chosen by: losses, finding AUC and detection mAP on the validation studies; and the calibration that
follows.

Shapes: B studies, F findings, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vlm.checkpoint import Calibration
from vlm.config import Config
from vlm.data.batches import Collator, bucketed, move
from vlm.data.examples import Example, ExampleBuilder
from vlm.evaluation.detection import average_precision, match
from vlm.evaluation.ranking import auc
from vlm.generation.steering import choose_thresholds
from vlm.losses import finding_loss, report_loss
from vlm.models.detection import DenseDetections, select_boxes
from vlm.models.report_generator import ReportGenerator
from vlm.types import Box, StudyBatch

if TYPE_CHECKING:
    from vlm.training_data import FeatureCache, FrozenMaps, Shared

FEWEST_POSITIVES = 10
LEAST_UPPER = 0.4
"""No finding must appear in a report below this probability."""
MOST_LOWER = 0.2
"""No finding is kept out of a report above this one."""


@dataclass(slots=True)
class Collected:
    """Validation studies in the order of their reports' length: logits and targets (N, F), the latter 1, 0 or NaN; and,
    by image that somebody looked at, boxes found (raw scores) and true, in pixels of the model's input."""

    logits: Tensor
    targets: Tensor
    boxes: list[list[Box]]
    truths: list[list[Box]]


class Validator:
    """Measures a model on fixed examples.

    Args:
        builder: labels and tokenizer. examples: validation studies. config: thresholds of the detection head. dtype:
            of autocast, or None.
    """

    def __init__(
        self, builder: ExampleBuilder, examples: Sequence[Example], config: Config, dtype: torch.dtype | None
    ) -> None:
        self.builder, self.examples, self.config, self.dtype = builder, list(examples), config, dtype
        self.collate = Collator(builder)
        self.maps: FrozenMaps | None = None  # set while the vision model is frozen

    @torch.no_grad()
    def measure(
        self, model: ReportGenerator, losses: Sequence[str], cache: FeatureCache | None = None
    ) -> dict[str, float]:
        """Validation metrics of the losses in training: "loss" (report, else findings), "auc", "map"."""
        was_training = model.training
        model.eval()
        report: list[tuple[float, int]] = []
        logits, targets = [], []
        boxes: list[list[Box]] = []
        truths: list[list[Box]] = []
        for indices in bucketed(self.examples, 16, None):
            batch = self.batch(model, indices, cache)
            with torch.autocast(batch.view.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                wanted = bool({"report", "reward"} & set(losses))
                out = model(batch, report=wanted, detect="detection" in losses)
            if out.report_logits is not None and len(out.report_logits):
                value = report_loss(
                    out.report_logits, out.report_index, batch.report_labels, torch.ones_like(batch.report_weights)
                )
                report.append((float(value), len(out.report_logits)))
            logits.append(out.image.logits.float().cpu())
            targets.append(batch.finding_targets.cpu())
            if out.image.dense is not None:
                found, true = self._boxes(out.image.dense, batch)
                boxes += found
                truths += true
        model.train(was_training)
        result: dict[str, float] = {}
        score, truth = torch.cat(logits), torch.cat(targets)
        if report:
            result["loss"] = sum(v * n for v, n in report) / sum(n for _, n in report)
        elif (findings := finding_loss(score, truth)) is not None:
            result["loss"] = float(findings)
        if "findings" in losses:
            result["auc"] = mean_auc(score.numpy(), truth.numpy())
        if any(truths):
            result["map"] = average_precision(boxes, truths, 0.5).mean_ap
        result["auc+map"] = result.get("auc", 0.0) + result.get("map", 0.0)
        return result

    def batch(self, model: ReportGenerator, indices: Sequence[int], cache: FeatureCache | None) -> StudyBatch:
        """A validation batch, with cached features when the image half is frozen."""
        if cache is not None:
            return move(
                cache.attach(Collator(self.builder, skip_pixels=True)([self.examples[i] for i in indices]), 0),
                next(model.parameters()).device,
            )
        batch = move(self.collate([self.examples[i] for i in indices]), next(model.parameters()).device)
        return batch if self.maps is None else self.maps.attach(model, batch)

    def _boxes(self, dense: DenseDetections, batch: StudyBatch) -> tuple[list[list[Box]], list[list[Box]]]:
        """Boxes found and true in the images that somebody looked at, classes that nobody looked for left out."""
        assert batch.pixel_values is not None
        names = self.builder.box_labels
        found, truths = [], []
        for image, detections in enumerate(
            select_boxes(dense, batch.pixel_values.shape[-1], 0.02, self.config.model.detection.nms_iou)
        ):
            known = batch.box_known[image]
            if not known.any():
                continue
            rows = zip(
                detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.classes.tolist(), strict=True
            )
            found.append([Box(tuple(b), names[k], 0, s) for b, s, k in rows if known[k]])
            pairs = zip(batch.boxes_xyxy[image].tolist(), batch.box_classes[image].tolist(), strict=True)
            truths.append([Box(tuple(b), names[k]) for b, k in pairs])
        return found, truths

    @torch.no_grad()
    def collect(self, model: ReportGenerator) -> Collected:
        """What the image half says of every validation study, in full precision, beside the truth."""
        model.eval()
        logits, targets = [], []
        boxes: list[list[Box]] = []
        truths: list[list[Box]] = []
        for indices in bucketed(self.examples, 16, None):
            image = model.encode(batch := self.batch(model, indices, None))
            logits.append(image.logits.float().cpu())
            targets.append(batch.finding_targets.cpu())
            if image.dense is not None:
                found, true = self._boxes(image.dense, batch)
                boxes += found
                truths += true
        return Collected(torch.cat(logits), torch.cat(targets), boxes, truths)

    @torch.no_grad()
    def calibrate(self, model: ReportGenerator, shared: Shared | None = None) -> Calibration:
        """Platt's two numbers for each finding and for boxes, cuts for steering, and the box threshold, all from
        validation.

        Cuts: `generation.sensitivity` of the present findings must lie above the lower one, and `generation.precision`
            of what lies
        above the upper one must be present. The box threshold is the one with the best F1 at IoU 0.5.

        Args:
            model: in full precision, as it will be used. shared: whose maps are those of this vision model, if any.
        """
        self.maps = shared.maps_of(None, model.vision) if shared is not None else None
        seen = self.collect(model)
        score, truth = seen.logits, seen.targets
        wanted = self.config.generation
        calibration = Calibration()
        for column, name in enumerate(self.builder.labels):
            known = ~truth[:, column].isnan()
            slope, offset = fit_platt(score[known, column], truth[known, column])
            calibration.findings[name] = (slope, offset)
            probability = (score[:, column] * slope + offset).sigmoid().numpy()
            cut = choose_thresholds(probability, truth[:, column].numpy(), wanted.sensitivity, wanted.precision)
            calibration.seen[name] = best_f1_cut(probability, truth[:, column].numpy())
            # A few well separated positives would put the cut next to zero: nothing is demanded that is improbable.
            calibration.lower[name] = round(min(cut.lower, MOST_LOWER), 5)
            calibration.upper[name] = round(max(cut.upper, LEAST_UPPER), 5)
        calibration.boxes, calibration.box_threshold = calibrate_boxes(seen.boxes, seen.truths)
        return calibration


def kept_calibration(
    before: Calibration, now: Calibration, examples: Sequence[Example], labels: Sequence[str], least: int = 5
) -> Calibration:
    """The calibration of a continued run: what validation can't speak of stays as the start had it.

    Args:
        before: of the checkpoint that the run started from; empty for none. now: from `examples`.
        examples: validation studies. labels: the label list. least: present and absent examples that it takes.
    """
    targets = np.stack([e.finding_targets for e in examples])
    told = np.minimum((targets == 1).sum(0), (targets == 0).sum(0)) >= least
    silent = {name for name, enough in zip(labels, told.tolist(), strict=True) if not enough}
    out = replace(now, sentences=before.sentences)
    for name in ("findings", "upper", "lower", "seen"):
        old = {label: value for label, value in getattr(before, name).items() if label in silent}
        out = replace(out, **{name: getattr(now, name) | old})
    if now.box_threshold is None:
        out = replace(out, boxes=before.boxes, box_threshold=before.box_threshold)
    return out


def best_f1_cut(probability: np.ndarray, truth: np.ndarray, least: int = 5) -> float:
    """The probability with the best F1, from 0.15 up; 0.5 for a label with fewer than `least` positives.

    Args:
        probability: (n,) in [0, 1]. truth: (n,) 1, 0 or NaN for unknown.
    """
    known = ~np.isnan(truth)
    score, present = probability[known], truth[known] == 1
    if present.sum() < least:
        return 0.5
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(present[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + present.sum())
    return round(max(0.15, float(score[order][int(np.argmax(f1))])), 4)


def calibrate_boxes(boxes: list[list[Box]], truths: list[list[Box]]) -> tuple[tuple[float, float], float | None]:
    """Platt's numbers for the logit of a detection's score, and the score with the best F1 at IoU 0.5.

    Args:
        boxes, truths: by image, what was found (with raw scores) and what is there.

    Returns:
        ((slope, offset), threshold); ((1, 0), None) when nothing was found or there.
    """
    scores, hits, total = [], [], 0
    for name in sorted({b.label for image in truths for b in image}):
        matches = match(boxes, truths, name, 0.5, 100)
        scores.append(matches.confidence)
        hits.append(matches.hit)
        total += len(matches.found)
    if not scores or not np.concatenate(hits).any():
        return (1.0, 0.0), None
    score, hit = np.concatenate(scores), np.concatenate(hits)
    order = np.argsort(-score)
    true = np.cumsum(hit[order])
    f1 = 2 * true / (np.arange(1, len(order) + 1) + total)
    threshold = float(score[order][int(np.argmax(f1))])
    slope, offset = fit_platt(
        torch.logit(torch.tensor(score, dtype=torch.float32), eps=1e-4), torch.tensor(hit, dtype=torch.float32)
    )
    return (slope, offset), round(threshold, 4)


@torch.enable_grad()
def fit_platt(score: Tensor, truth: Tensor, strength: float = 2.0) -> tuple[float, float]:
    """Slope and offset of sigmoid(slope * logit + offset) by penalised maximum likelihood.

    Args:
        score: (n,) logits. truth: (n,) 0 or 1. strength: of the pull toward slope 1 and offset 0, in studies; needed
            because some findings have a handful of positives.

    Returns:
        (slope, offset); (1, 0) when one class is absent.
    """
    if len(truth) == 0 or truth.min() == truth.max():
        return 1.0, 0.0
    log_slope, offset = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_slope, offset], lr=0.5, max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            score * log_slope.exp() + offset, truth, reduction="sum"
        )
        loss = loss + strength * (log_slope.square() + 0.05 * offset.square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return round(float(log_slope.detach().exp()), 5), round(float(offset.detach()), 5)


def mean_auc(score: np.ndarray, truth: np.ndarray) -> float:
    """Mean area under the ROC curve over the labels with enough positives and a negative; 0.5 when there is none."""
    values = []
    for column in range(truth.shape[1]):
        known = ~np.isnan(truth[:, column])
        positives = int(truth[known, column].sum())
        if positives >= FEWEST_POSITIVES and positives < known.sum():
            values.append(auc(truth[known, column], score[known, column]))
    return float(np.mean(values)) if values else 0.5
