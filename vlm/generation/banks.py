"""Who gets the beams: half go to the best, half to the stages of meeting the terms that must appear.

Dynamic beam allocation (Post and Vilar 2018) gives each number of met constraints its own bank, so that a beam which
has paid for a term isn't thrown out by one that hasn't. Departures: a term that is half written is a stage of its own;
and only every second beam is taken from the banks, because a search whose beams all pay for terms early finds no
natural place for them later.

Shapes: `B` studies, `X` offers, `C` kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def share_out(scores: Tensor, levels: Tensor, max_level: int, keep: int) -> Tensor:
    """Indices of the offers to keep, in the order in which they are taken.

    By turns the next best of all, and the next of the banks: the best of the highest level, of the next, ..., then the
        second best
    of each, and so on. An offer whose turn comes twice is taken once.

    Args:
        scores: (B, X); -1e8 and below can't be chosen and come last.
        levels: (B, X) int64 in 0..max_level, how far each offer has come.
        keep: C.

    Returns:
        (B, min(C, X)) int64; the first is the best of all.
    """
    keep = min(keep, scores.shape[1])
    sorted_scores, order = scores.sort(dim=1, descending=True)
    sorted_levels = levels.gather(1, order)
    usable = sorted_scores > -1.0e8
    stages = max_level + 1
    one_hot = sorted_levels[..., None] == torch.arange(stages, device=scores.device)  # (B, X, stages)
    rank = one_hot.cumsum(1).gather(2, sorted_levels[..., None]).squeeze(-1) - 1  # (B, X) within its level
    turn = torch.arange(order.shape[1], device=order.device).expand_as(order)
    bank_turn = (rank * stages + (max_level - sorted_levels)).masked_fill(~usable, scores.shape[1] * stages + stages)
    by_bank = bank_turn.argsort(dim=1, stable=True)
    position = torch.empty_like(by_bank).scatter_(1, by_bank, turn)
    key = torch.minimum(2 * turn, 2 * position + 1).where(usable, 2 * turn + 2 * order.shape[1])
    return order.gather(1, key.argsort(dim=1)[:, :keep])
