"""Who gets the beams: a share for every stage of meeting the terms that must appear.

Dynamic beam allocation (Post and Vilar 2018) gives each number of met constraints its own bank, so that a beam which has paid for a
term isn't thrown out by one that hasn't. Departures: a term that is half written is a stage of its own, and the best continuation
of all is always kept, so that a natural way to a term is still found when a forced one came first.

Shapes: `B` studies, `X` offers, `C` kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def share_out(scores: Tensor, levels: Tensor, max_level: int, keep: int) -> Tensor:
    """Indices of the offers to keep, in the order in which they are taken.

    First the best of all, then the best of the highest level, of the next, ... then the second best of each, and so on.

    Args:
        scores: (B, X); -1e8 and below can't be chosen and come last.
        levels: (B, X) int64 in 0..max_level, how far each offer has come.
        keep: C.

    Returns:
        (B, min(C, X)) int64.
    """
    keep = min(keep, scores.shape[1])
    # A level never gives more than C, and the C best of each level are among the C * levels best only by level: rank all.
    order = scores.argsort(dim=1, descending=True)
    sorted_levels = levels.gather(1, order)
    usable = scores.gather(1, order) > -1.0e8
    stages = max_level + 1
    one_hot = torch.nn.functional.one_hot(sorted_levels, stages).masked_fill_(~usable[..., None], 0)  # (B, X, stages)
    rank = one_hot.cumsum(1).gather(2, sorted_levels[..., None]).squeeze(-1) - 1  # (B, X)
    key = rank * stages + (max_level - sorted_levels)
    key[:, 0] = -1
    # What can't be chosen keeps its order by score behind everything else.
    tail = torch.arange(key.shape[1], device=key.device) + key.shape[1] * stages
    key = key.where(usable, tail)
    return order.gather(1, key.argsort(dim=1)[:, :keep])
