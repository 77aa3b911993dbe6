"""The image half of a report: calibrated findings, boxes in the image's own pixels, attention maps.

Shapes: `B` studies, `V` views of one, `h w` of an attention map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from knowledge.ontology import Certainty
from vlm.checkpoint import Checkpoint
from vlm.data.examples import VIEWS, Example, ExampleBuilder
from vlm.generation.evidence import Evidence
from vlm.generation.steering import NEUTRAL, Threshold
from vlm.models.detection import select_boxes
from vlm.models.report_generator import ImageOutput
from vlm.types import Box, Finding, StudyBatch, View


def example_builder(checkpoint: Checkpoint) -> ExampleBuilder:
    """Turns studies into examples as a checkpoint learnt them."""
    config = checkpoint.config
    return ExampleBuilder(
        config.data, checkpoint.labels, config.model.detection.labels, checkpoint.graph, checkpoint.tokenizer,
        view=config.model.knowledge.view,
        begin=config.model.language.frame == "prompt",
    )  # fmt: skip


@dataclass(slots=True)
class Seen:
    """What the image half says of one study, in plain values; the explanation when it is asked for."""

    evidence: Evidence
    boxes: tuple[Box, ...]
    attention: dict[str, np.ndarray] = field(default_factory=dict)
    explanation: dict[str, Any] | None = None


class Seer:
    """Turns the model's output for the images into plain values, by the checkpoint's calibration.

    Args:
        checkpoint: loaded.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.thresholds = self._thresholds()
        self.least = self._least_confidence()

    def _thresholds(self) -> dict[str, Threshold]:
        """The checkpoint's cuts; a label without cuts of its own is neither demanded nor forbidden."""
        calibration = self.checkpoint.calibration
        cuts = {}
        for name in self.checkpoint.labels:
            upper = calibration.upper.get(name, 1.01)
            cuts[name] = Threshold(min(calibration.lower.get(name, NEUTRAL.lower), upper - 1e-6), upper)
        return cuts

    def _least_confidence(self) -> float:
        """Confidence from which a box is evidence: the calibrated value of the best threshold on validation."""
        calibration = self.checkpoint.calibration
        if calibration.box_threshold is None:
            return 0.5
        slope, offset = calibration.boxes
        return float((torch.logit(torch.tensor(calibration.box_threshold), eps=1e-4) * slope + offset).sigmoid())

    def calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """Finding logits (B, F) as probabilities, by the checkpoint's calibration."""
        pairs = [self.checkpoint.calibration.findings.get(name, (1.0, 0.0)) for name in self.checkpoint.labels]
        platt = torch.tensor(pairs, device=logits.device)
        return (logits.float() * platt[:, 0] + platt[:, 1]).sigmoid()

    def see(self, image: ImageOutput, batch: StudyBatch, examples: Sequence[Example], attention: bool) -> list[Seen]:
        """Calibrated probabilities, boxes in the image's own pixels, attention maps by view."""
        labels, calibration = self.checkpoint.labels, self.checkpoint.calibration
        probability = self.calibrated(image.logits)
        boxes = self._boxes(image, batch, examples)
        out = []
        h, w = image.map_size
        for row, example in enumerate(examples):
            maps = {}
            if attention and image.evidence is not None:
                views = len(example.pixels)
                full = image.evidence.attention[row, :, : views * h * w].float().cpu().numpy()
                maps = {name: full[i].reshape(views, h, w) for i, name in enumerate(labels)}
            widths = {i: p.width for i, p in zip(example.chosen, example.placements, strict=True)}
            spoken = calibration.modalities.get(example.modality.value, labels)
            evidence = Evidence(
                {name: p for name, p in zip(labels, probability[row].tolist(), strict=True) if name in spoken},
                boxes[row],
                [widths.get(i, 0) for i in range(max(widths) + 1)],
                self.thresholds,
                self.least,
                calibration.sentences,
            )
            maps = {name: value for name, value in maps.items() if name in spoken}
            out.append(Seen(evidence, boxes[row], maps))
        return out

    def _boxes(self, image: ImageOutput, batch: StudyBatch, examples: Sequence[Example]) -> list[tuple[Box, ...]]:
        if image.dense is None:
            return [()] * len(examples)
        detection = self.checkpoint.config.model.detection
        slope, offset = self.checkpoint.calibration.boxes
        found: list[list[Box]] = [[] for _ in examples]
        selected = select_boxes(image.dense, examples[0].size, detection.score_threshold, detection.nms_iou)
        places = zip(selected, batch.image_study.tolist(), batch.image_slot.tolist(), strict=True)
        for detections, study, slot in places:
            example = examples[study]
            xyxy = example.placements[slot].to_image(detections.boxes_xyxy.cpu().numpy())
            confidence = (torch.logit(detections.scores, eps=1e-4) * slope + offset).sigmoid().tolist()
            for box, score, kind in zip(xyxy.tolist(), confidence, detections.classes.tolist(), strict=True):
                spoken = self.checkpoint.calibration.modalities.get(example.modality.value, self.checkpoint.labels)
                if box[2] > box[0] and box[3] > box[1] and detection.labels[kind] in spoken:
                    rounded = (round(box[0], 1), round(box[1], 1), round(box[2], 1), round(box[3], 1))
                    found[study].append(Box(rounded, detection.labels[kind], example.chosen[slot], round(score, 4)))
        return [tuple(sorted(b, key=lambda x: -(x.confidence or 0))) for b in found]

    def findings(self, seen: Seen, example: Example) -> tuple[Finding, ...]:
        """Every label with its probability; the certainty is what the label's cuts say of it."""
        out = []
        for name, probability in seen.evidence.probabilities.items():
            indices = seen.evidence.boxes_of(name)
            cut = seen.evidence.cut(name)
            certainty = Certainty.PRESENT if probability >= cut.upper or indices else Certainty.UNCERTAIN
            if probability <= cut.lower and not indices:
                certainty = Certainty.ABSENT
            side = _side([seen.boxes[i] for i in indices], example)
            out.append(Finding(name, certainty, round(probability, 4), side, indices))
        return tuple(out)


def _side(boxes: Sequence[Box], example: Example) -> Literal["left", "right", "bilateral"] | None:
    """The patient's side on which a finding's boxes lie, where the view tells sides apart; the patient's right is at
    the viewer's left."""
    sides: set[Literal["left", "right"]] = set()
    for box in boxes:
        slot = example.chosen.index(box.image)
        if VIEWS[example.view[slot]] in (View.LATERAL, View.SAGITTAL):
            continue
        sides.add("right" if (box.xyxy[0] + box.xyxy[2]) / 2 < example.placements[slot].width / 2 else "left")
    return "bilateral" if len(sides) == 2 else next(iter(sides), None)
