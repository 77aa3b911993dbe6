"""Dense, anchor-free detection head over the pyramid (FCOS, Tian et al. 2019, arXiv:1904.01355).

Departs from the paper: depthwise-separable towers, and in place of centreness the head predicts the IoU of its own
box, which ranks boxes better (as in PAA and VFNet); the score is sqrt(class probability * predicted IoU).

Shapes: B images, D width, K classes, A = sum over scales of H_s * W_s locations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from vlm.models.pyramid import separable_conv


@dataclass(slots=True)
class DenseDetections:
    """What the head says at every location, before suppression.

    Args:
        logits: (B, A, K) class logits. quality: (B, A) logit of the predicted IoU.
        boxes_xyxy: (B, A, 4) pixels of the model's input. points: (A, 2) x, y of the locations. strides: (A,).
    """

    logits: Tensor
    quality: Tensor
    boxes_xyxy: Tensor
    points: Tensor
    strides: Tensor


@dataclass(slots=True)
class Detections:
    """Boxes of one image after suppression, by falling score: (N, 4) pixels of the model's input, (N,) in [0, 1], (N,)
    classes."""

    boxes_xyxy: Tensor
    scores: Tensor
    classes: Tensor


def locations(sizes: list[tuple[int, int]], strides: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres of all cells: points (A, 2) in pixels and strides (A,). The cell in row 0, column 0 at stride 8 is at
    (4, 4)."""
    points, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y = (torch.arange(height, device=device) + 0.5) * stride
        x = (torch.arange(width, device=device) + 0.5) * stride
        points.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2))
        steps.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(points), torch.cat(steps)


class DetectionHead(nn.Module):
    """Two separable towers shared by all scales.

    Args:
        dim: D. classes: K. strides: of the pyramid's maps, finest first. layers: convolutions a tower.
        use: strides of the maps that are read; None for all.
    """

    def __init__(
        self, dim: int, classes: int, strides: tuple[int, ...], layers: int, use: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.read = [i for i, stride in enumerate(strides) if use is None or stride in use]
        self.strides = strides = tuple(strides[i] for i in self.read)
        self.class_tower = nn.Sequential(*(separable_conv(dim) for _ in range(layers)))
        self.box_tower = nn.Sequential(*(separable_conv(dim) for _ in range(layers)))
        self.classify = nn.Conv2d(dim, classes, 3, padding=1)
        self.regress = nn.Conv2d(dim, 5, 3, padding=1)  # left, top, right, bottom, quality
        self.scale = nn.Parameter(torch.zeros(len(strides)))
        for layer, prior in ((self.classify, -math.log((1 - 0.01) / 0.01)), (self.regress, 0.0)):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, prior)  # focal loss starts from 1% of locations

    def forward(self, maps: list[Tensor]) -> DenseDetections:
        """[(B, D, H_s, W_s)] -> predictions at every location."""
        maps = [maps[i] for i in self.read]
        logits, sides = [], []
        for x, scale in zip(maps, self.scale, strict=True):
            logits.append(self.classify(self.class_tower(x)).flatten(2).transpose(1, 2))  # (B, HW, K)
            side = self.regress(self.box_tower(x)).flatten(2).transpose(1, 2).float()  # (B, HW, 5)
            sides.append(torch.cat([side[..., :4] + scale, side[..., 4:]], dim=-1))
        points, steps = locations([(m.shape[2], m.shape[3]) for m in maps], self.strides, maps[0].device)
        side = torch.cat(sides, dim=1)  # (B, A, 5)
        # exp is bounded: a wild logit early in training must not become an infinite box.
        distance = side[..., :4].clamp(max=5.0).exp() * 2 * steps[:, None]
        boxes = torch.cat([points - distance[..., :2], points + distance[..., 2:]], dim=-1)  # (B, A, 4)
        return DenseDetections(torch.cat(logits, dim=1).float(), side[..., 4], boxes, points, steps)


@torch.no_grad()
def select_boxes(
    dense: DenseDetections, image_size: int, threshold: float, nms_iou: float, most: int = 50
) -> list[Detections]:
    """Scores, cuts at `threshold`, suppresses within a class; one `Detections` an image."""
    probability = (dense.logits.sigmoid() * dense.quality.sigmoid()[..., None]).sqrt()  # (B, A, K)
    boxes = clip_boxes_to_image(dense.boxes_xyxy, (image_size, image_size))
    out = []
    for scores, candidates in zip(probability, boxes, strict=True):
        place, kind = (scores > threshold).nonzero(as_tuple=True)
        values = scores[place, kind]
        if len(values) > 1000:
            values, order = values.topk(1000)
            place, kind = place[order], kind[order]
        keep = batched_nms(candidates[place], values, kind, nms_iou)[:most]
        out.append(Detections(candidates[place[keep]], values[keep], kind[keep]))
    return out
