"""One training step as a module: the figure, then the named, unweighted terms of the loss.

It is what Accelerate prepares, for its result is a dictionary of tensors, through which data-parallel and sharding
wrappers find what takes part in the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch import distributed as dist

from vlm import losses
from vlm.checkpoint import Checkpoint
from vlm.config import Stage
from vlm.models.report_generator import ModelOutput, ReportGenerator
from vlm.types import StudyBatch

WEIGHT_OF = {
    "report": "report", "findings": "findings", "implication": "implication", "exclusion": "exclusion",
    "alignment": "alignment", "reward": "reward", "retention": "retention",
    "box_class": "detection", "box_giou": "detection", "box_quality": "detection",
}  # fmt: skip
"""The configured weight of each named term."""


class Start:
    """The image half as it is before training: what findings it sees is what `retention` holds a run to.

    Args:
        model: copied, but for its language model. stages: of the run.
    """

    def __init__(self, model: ReportGenerator, stages: Sequence[Stage]) -> None:
        copied = copy.deepcopy(model, {id(model.language): None})
        self.model = copied.eval().requires_grad_(False)
        # Kept maps are the vision model's own: the start's only while no stage trains it.
        self.by_maps = not any("vision" in stage.train for stage in stages)

    @torch.no_grad()
    def logits(self, batch: StudyBatch) -> Tensor:
        """Finding logits (B, F) of a batch with pixels."""
        return self.model.encode(batch if self.by_maps else replace(batch, maps=None), detect=False).logits.float()


class TrainStep(nn.Module):
    """Forward pass and losses.

    Args:
        model: the composer. rules: from `graph_rules`. smoothing: of labels.
        start: what the run is held to; None for nothing. It is no part of the module, and nothing of it learns.
    """

    def __init__(
        self, model: ReportGenerator, rules: tuple[Tensor, Tensor], smoothing: float, start: Start | None = None
    ) -> None:
        super().__init__()
        self.model, self.rules, self.smoothing, self.start = model, rules, smoothing, start

    def forward(self, batch: StudyBatch, wanted: Sequence[str]) -> dict[str, Tensor]:
        """The named terms, and, for a process whose share of the batch says nothing, "nothing": zero with a
        gradient."""
        output = self.model(batch, report=bool({"report", "reward"} & set(wanted)), detect="detection" in wanted)
        terms = loss_terms(output, batch, wanted, self.rules, self.smoothing)
        if self.start is not None and "findings" in wanted and batch.cached is None:
            kept = losses.retention_loss(output.image.logits, self.start.logits(batch), batch.finding_targets)
            terms |= {} if kept is None else {"retention": kept}
        if losses.processes() > 1:
            # Every process gives gradients to the same weights, also where its share of the batch is silent of them.
            terms["nothing"] = torch.stack([value.float().sum() * 0.0 for value in spoken_of(output)]).sum()
        return terms


def spoken_of(output: ModelOutput) -> list[Tensor]:
    """Every result that some loss may look at."""
    image, dense = output.image, output.image.dense
    found = [image.logits, image.pooled, output.report_logits, output.alignment]
    found += [dense.logits, dense.quality, dense.boxes_xyxy] if dense is not None else []
    return [value for value in found if value is not None]


def loss_terms(
    output: ModelOutput,
    batch: StudyBatch,
    wanted: Sequence[str],
    rules: tuple[Tensor, Tensor],
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The named, unweighted terms that the batch can speak of."""
    terms: dict[str, Tensor | None] = {}
    image = output.image
    if "report" in wanted:
        if output.report_logits is not None and len(output.report_logits):
            assert output.report_index is not None
            terms["report"] = losses.report_loss(
                output.report_logits, output.report_index, batch.report_labels, batch.report_weights, smoothing
            )
        else:
            losses.share(image.logits.new_zeros(()))  # other processes may have reports
    if "reward" in wanted and output.report_logits is not None and output.report_index is not None:
        terms["reward"] = losses.reward_loss(
            output.report_logits, output.report_index, batch.report_labels, batch.report_weights
        )
    if "findings" in wanted:
        terms["findings"] = losses.finding_loss(image.logits, batch.finding_targets)
    if "detection" in wanted and image.dense is not None:
        d = image.dense
        terms |= losses.detection_loss(d.logits, d.quality, d.boxes_xyxy, d.points, d.strides, batch)
    if "knowledge" in wanted:
        implies, excludes = (r.to(image.logits.device) for r in rules)
        terms["implication"] = losses.implication_loss(image.logits, implies)
        terms["exclusion"] = losses.exclusion_loss(image.logits, excludes)
        if output.alignment is not None:
            terms["alignment"] = losses.alignment_loss(output.alignment, batch.finding_targets)
    return {name: value for name, value in terms.items() if value is not None}


def graph_rules(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """(n, 2) child and parent, and (m, 2) exclusive pairs, as indices into the label list.

    A label that stands for several concepts is the child of another when all of them lie below the other's.
    """
    labels, graph = checkpoint.labels, checkpoint.graph
    at = {name: i for i, name in enumerate(labels)}
    named = graph.views[checkpoint.config.model.knowledge.view]
    covered = {name: frozenset[str]().union(*(graph.descendants(c) for c in named[name])) for name in labels}
    implies = [(at[c], at[p]) for c in labels for p in labels if covered[c] < covered[p]]
    excludes = sorted({(min(at[a], at[b]), max(at[a], at[b])) for a, b in graph.exclusions() if a in at and b in at})
    return torch.tensor(implies, dtype=torch.long).view(-1, 2), torch.tensor(excludes, dtype=torch.long).view(-1, 2)


def mean_terms(terms: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    """Terms as numbers: each process holds its share of a mean over all, so their average is the whole term."""
    if losses.processes() == 1:
        return {name: float(value.detach()) for name, value in terms.items()}
    names = list(WEIGHT_OF)
    held = torch.zeros(2, len(names), device=device)
    for name, value in terms.items():
        held[:, names.index(name)] = torch.stack([value.detach().float(), torch.ones_like(value).float()])
    dist.all_reduce(held)
    return {n: float(held[0, i]) / losses.processes() for i, n in enumerate(names) if held[1, i]}
