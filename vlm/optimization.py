"""Which parameters a stage trains, at what rate, and their running average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlm.config import Stage
from vlm.models.build import PARTS, trainable
from vlm.models.report_generator import ReportGenerator
from vlm.zero import dimensions

Groups = dict[str, list[nn.Parameter]]


def select_parameters(model: ReportGenerator, stage: Stage, frozen_stages: int) -> Groups:
    """Freezes everything, then thaws what the stage names: part -> parameters; the vision model's first stages stay
    frozen."""
    groups = {part: trainable(model, part, frozen_stages) for part in stage.train}
    model.requires_grad_(False)
    for parameters in groups.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    return {part: parameters for part, parameters in groups.items() if parameters}


def set_modes(model: ReportGenerator, stage: Stage) -> None:
    """Training mode for the parts that learn, evaluation mode (no drop-out) for the rest."""
    model.eval()
    for part in stage.train:
        if part in ("adapter", "language"):
            model.language.train()
        for name in PARTS.get(part, ()):
            member = getattr(model, name)
            if member is not None:
                member.train()


def make_optimizer(groups: Groups, stage: Stage, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases, gates) are not decayed."""
    rows = []
    for part, parameters in groups.items():
        rate = next((own for name, own in stage.part_lr.items() if name == part), stage.lr)
        for matrix in (True, False):
            chosen = [p for p in parameters if (dimensions(p) > 1) == matrix]
            if chosen:
                rows.append(
                    {"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": weight_decay if matrix else 0.0}
                )
    return torch.optim.AdamW(rows, betas=(0.9, 0.98))


def set_rate(optimizer: torch.optim.Optimizer, step: int, total: int, warmup: float) -> None:
    """Linear warm-up over a share of the steps, then a cosine to 2%."""
    ramp = min(1.0, (step + 1) / max(1.0, warmup * total))
    scale = ramp * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale


class Average:
    """Exponential moving average of the trained parameters; decay 0 keeps none.

    The first steps average less: decay_t = min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, groups: Groups, decay: float) -> None:
        self.decay = decay
        self.parameters = [p for part in groups.values() for p in part] if decay else []
        self.values: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the parameters after a step into the average."""
        if self.values:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)
