"""What the model measures of one study: probabilities, boxes, and the cuts they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm.generation.steering import NEUTRAL, Threshold
from vlm.types import Box


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the model measures of one study.

    Args:
        probabilities: label -> calibrated probability in [0, 1].
        boxes: detections, in the report's order.
        widths: pixel width of each image, to tell a box's side; empty when unknown, then sides are not compared.
        thresholds: label -> cuts; `NEUTRAL` where there is none.
        least: confidence from which a box counts.
        platt: slope and offset that calibrate the logit of a sentence's confidence.
    """

    probabilities: Mapping[str, float]
    boxes: Sequence[Box] = ()
    widths: Sequence[int] = ()
    thresholds: Mapping[str, Threshold] | None = None
    least: float = 0.0
    platt: tuple[float, float] = (1.0, 0.0)

    def cut(self, label: str) -> Threshold:
        """The label's cuts."""
        return (self.thresholds or {}).get(label, NEUTRAL)

    def boxes_of(self, label: str, side: str | None = None) -> tuple[int, ...]:
        """Boxes of a label that count, on the patient's side if one is named."""
        return tuple(
            index
            for index, box in enumerate(self.boxes)
            if box.label == label
            and (box.confidence is None or box.confidence >= self.least)
            and (side is None or self._on(box, side))
        )

    def surest(self, label: str, side: str) -> float:
        """Confidence of the surest box of a label on the patient's side, those that don't count included; 0 without
        one."""
        found = (box.confidence for box in self.boxes if box.label == label and self._on(box, side))
        return max((1.0 if confidence is None else confidence for confidence in found), default=0.0)

    def _on(self, box: Box, side: str) -> bool:
        if side == "bilateral" or box.image >= len(self.widths):
            return True
        # The patient's right is at the viewer's left; a lesion at the middle is on both sides.
        middle, width = (box.xyxy[0] + box.xyxy[2]) / 2, self.widths[box.image]
        return middle <= 0.55 * width if side == "right" else middle >= 0.45 * width
