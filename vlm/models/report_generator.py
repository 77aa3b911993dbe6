"""The figure: images and a graph in, findings, boxes and the next word of the report out. Nothing here knows a config
or a data set.

Shapes: B studies, T images, V views, S scales, G grid, F findings, K box classes, N tokens, D width, L the language
model's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm.models.bridge import Bridge
from vlm.models.detection import DenseDetections, DetectionHead
from vlm.models.findings import ConceptAlignment, Evidence, FindingHead, FindingQueries, KnowledgeFusion
from vlm.models.graph import GraphEncoder
from vlm.models.hierarchy import HierarchicalAttention, sine_positions
from vlm.models.language import LanguageModel
from vlm.models.pyramid import FeaturePyramid
from vlm.models.vision import VisionEncoder
from vlm.types import CachedFeatures, StudyBatch


@dataclass(slots=True)
class ImageOutput:
    """What the image half says: pooled maps (T, G*G, S*D), evidence, detections, and the attention map's size (h, w)
    of one view."""

    pooled: Tensor
    evidence: Evidence | None
    logits: Tensor
    tokens: Tensor
    dense: DenseDetections | None
    map_size: tuple[int, int]


@dataclass(slots=True)
class ModelOutput:
    """Everything the losses need: the image half, and report logits (M, vocabulary) at flat label positions (M,)."""

    image: ImageOutput
    report_logits: Tensor | None
    report_index: Tensor | None
    alignment: Tensor | None


class ReportGenerator(nn.Module):
    """Composes built parts.

    ::

        pixel_values ─► vision ─► hierarchy ─► pyramid ─┬─► detector ─► boxes, classes, confidences
                                                        ├─► pooled ───────────────► bridge ─► visual tokens ─┐
        graph ─► queries ◄── cross-attend to the views ─┘                                                    │
                   └─► gate (zero at start) ─► evidence ─► finding head ─► bridge ─► evidence tokens ────────┤
        clinical text ─────────────────────────────────────────────────────────────► text tokens ────────────┤
                                                                                       language model ◄──────┘

    Args:
        vision ... language: built parts; detector None leaves boxes out, gate None leaves out knowledge fusion (any way
            of fusion stands under this name, so that checkpoints keep theirs).
        label_nodes: (F,) index of each label's concept among the graph's nodes.
        attention_scale: which of the pyramid's maps the findings look at.
        views: number of view names.
    """

    label_nodes: Tensor

    def __init__(
        self,
        vision: VisionEncoder,
        hierarchy: HierarchicalAttention,
        pyramid: FeaturePyramid,
        detector: DetectionHead | None,
        graph: GraphEncoder,
        queries: FindingQueries,
        gate: KnowledgeFusion | None,
        finding_head: FindingHead,
        alignment: ConceptAlignment,
        bridge: Bridge,
        language: LanguageModel,
        label_nodes: Tensor,
        attention_scale: int,
        dim: int,
        views: int,
    ) -> None:
        super().__init__()
        self.vision, self.hierarchy, self.pyramid, self.detector = vision, hierarchy, pyramid, detector
        self.graph, self.queries, self.gate, self.finding_head = graph, queries, gate, finding_head
        self.alignment, self.bridge, self.language = alignment, bridge, language
        self.attention_scale = attention_scale
        self.view = nn.Embedding(views, dim)
        nn.init.normal_(self.view.weight, std=0.1)
        self.register_buffer("label_nodes", label_nodes, persistent=False)

    def forward(self, batch: StudyBatch, report: bool = True, detect: bool = True) -> ModelOutput:
        """The whole figure; `report=False` stops before the language model, `detect=False` leaves the boxes out."""
        image = self.encode(batch, detect=detect)
        logits = index = None
        if report and batch.report_ids.shape[1]:
            prefix, mask = self.prefix(image, batch)
            logits, index = self.language(prefix, mask, batch.report_ids, batch.report_mask, batch.report_labels)
        aligned = self.alignment(image.evidence.tokens) if image.evidence is not None else None
        return ModelOutput(image, logits, index, aligned)

    def encode(self, batch: StudyBatch, detect: bool = True) -> ImageOutput:
        """Everything that depends on the images alone; cached features are taken as they are."""
        if batch.cached is not None:
            c = batch.cached
            return ImageOutput(c.pooled, None, c.logits, c.tokens, None, (0, 0))
        maps = self.pyramid(self.hierarchy(self.view_maps(batch)))
        dense = self.detector(maps) if self.detector is not None and detect else None
        evidence = self.look(maps[self.attention_scale], batch)
        size = maps[self.attention_scale].shape[2:]
        return ImageOutput(
            self.bridge.pool(maps), evidence, evidence.logits, evidence.tokens, dense, (size[0], size[1])
        )

    def view_maps(self, batch: StudyBatch) -> list[Tensor]:
        """The vision model's maps of a batch's images, or the kept ones when they are at hand: [(T, C_s, h_s, w_s)]."""
        if batch.maps is not None:
            return list(batch.maps)
        assert batch.pixel_values is not None
        return self.vision(batch.pixel_values)  # type: ignore[no-any-return]

    def look(self, features: Tensor, batch: StudyBatch) -> Evidence:
        """Finding queries over all views: features (T, D, h, w) -> evidence."""
        tokens = features.flatten(2).transpose(1, 2)  # (T, h*w, D)
        place = sine_positions(features.shape[2], features.shape[3], features.shape[1], features.device)
        tokens = tokens + place + self.view(batch.view)[:, None]
        tokens, mask = by_study(tokens, batch)  # (B, V*h*w, D)
        nodes = self.graph()[0][self.label_nodes]  # (F, D)
        visual, attention = self.queries(nodes, tokens, mask)
        if self.gate is None:
            gate = visual.new_zeros(visual.shape[:2])
            fused, neighbours = visual, visual.new_zeros(visual.shape[1], visual.shape[1])
        else:
            fused, gate, neighbours = self.gate(visual, nodes)
        logits = self.finding_head(fused, tokens, mask).float()
        return Evidence(fused, logits, attention, gate, visual, neighbours, tokens, mask)

    def prefix(self, image: ImageOutput, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """[visual | evidence | text], padded on the left: (B, P, L) and mask (B, P)."""
        visual, visual_mask = by_study(self.bridge.visual_tokens(image.pooled, batch.view), batch)
        evidence = self.bridge.evidence_tokens(image.tokens, image.logits)
        text = self.language.embed(batch.prompt_ids)
        full = torch.cat([visual, evidence.to(visual.dtype), text.to(visual.dtype)], dim=1)
        ones = torch.ones(evidence.shape[:2], dtype=torch.bool, device=full.device)
        mask = torch.cat([visual_mask, ones, batch.prompt_mask], dim=1)
        full, mask = self.language.framed(full, mask)
        order = mask.long().argsort(dim=1, stable=True)  # what is missing moves to the left, the rest keeps its order
        return full.gather(1, order[..., None].expand_as(full)), mask.gather(1, order)

    def features(self, image: ImageOutput) -> CachedFeatures:
        """What a later stage with a frozen image half needs, detached."""
        return CachedFeatures(image.pooled.detach(), image.tokens.detach(), image.logits.detach())


def by_study(tokens: Tensor, batch: StudyBatch) -> tuple[Tensor, Tensor]:
    """Tokens by image (T, N, D) -> by study (B, V*N, D) with a mask (B, V*N) that is False where a study has fewer
    views.

    Worked example: studies with 2 and 1 images of N tokens give (2, 2N, D); the mask's second row is N times True, N
    times False.
    """
    studies, views = len(batch.ids), int(batch.image_slot.max()) + 1
    out = tokens.new_zeros(studies, views, *tokens.shape[1:])
    out = out.index_put((batch.image_study, batch.image_slot), tokens)
    mask = torch.zeros(studies, views, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    mask[batch.image_study, batch.image_slot] = True
    return out.flatten(1, 2), mask.flatten(1)
