"""The bridge into the language model: image and evidence tokens become embeddings that it can read.

Visual tokens are the pyramid's maps pooled to one grid and projected. An evidence token is the finding's evidence
projected, plus the concept's own word embedding scaled by how far the finding's probability lies from its base rate:
the decoder reads *which* finding and *how likely*, in its own vocabulary, from the first step. Both pass through a
norm scaled to the size of the decoder's word embeddings.

Shapes: B studies, V views, S scales, G grid, F findings, D width, L the language model's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.models.hierarchy import sine_positions


class Bridge(nn.Module):
    """Projects visual and evidence tokens to the language model's width.

    Args:
        dim: D. width: L. scales: S. grid: G. views: how many view names there are.
        concepts: (F, L) mean word embedding of each finding's term.
        embedding_norm: mean length of the language model's word embeddings.
    """

    concepts: Tensor

    def __init__(
        self, dim: int, width: int, scales: int, grid: int, views: int, concepts: Tensor, embedding_norm: float
    ) -> None:
        super().__init__()
        self.grid = grid
        self.visual = nn.Sequential(
            nn.LayerNorm(scales * dim), nn.Linear(scales * dim, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.evidence = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.view = nn.Embedding(views, width)
        self.norm = nn.LayerNorm(width)
        self.finding = nn.Parameter(torch.zeros(len(concepts), width))
        self.probability = nn.Parameter(torch.ones(len(concepts)))
        self.register_buffer("concepts", concepts.clone())
        nn.init.constant_(self.norm.weight, embedding_norm / width**0.5)

    def pool(self, maps: list[Tensor]) -> Tensor:
        """[(T, D, H_s, W_s)] of T images -> (T, G*G, S*D)."""
        pooled = [F.adaptive_avg_pool2d(m, self.grid).flatten(2).transpose(1, 2) for m in maps]
        return torch.cat(pooled, dim=-1)

    def visual_tokens(self, pooled: Tensor, view: Tensor) -> Tensor:
        """(T, G*G, S*D) and view index (T,) -> (T, G*G, L)."""
        x = self.visual(pooled)
        place = sine_positions(self.grid, self.grid, x.shape[-1], x.device).to(x.dtype)
        return self.norm(x + place + self.view(view)[:, None])

    def evidence_tokens(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Evidence (B, F, D) and logits (B, F) -> (B, F, L)."""
        strength = (
            logits.float() / 2
        ).tanh() * self.probability  # (B, F) in (-1, 1) at the start: sign says present or absent
        x = (
            self.evidence(tokens)
            + self.finding
            + strength[..., None] * F.normalize(self.concepts, dim=-1) * self.concepts.shape[-1] ** 0.5
        )
        return self.norm(x)
