"""Hierarchical attention: what matters within a scale, then what the scales tell one another.

Within a scale: channel attention (squeeze and excitation, Hu et al. 2018, with mean and maximum) and spatial attention
(CBAM, Woo et al. 2018). Across scales: every scale is pooled to one grid, all tokens of all scales attend to each
other, and what comes back is added to each map through a gate that starts at zero, so that step 0 leaves the
pretrained features as they are. Pooling keeps
the cost fixed: (scales * grid^2)^2, whatever the image's size.

Shapes: B images, C channels in, D width, H W pixels at a scale, G grid, S scales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sine_positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine of both coordinates: (height * width, dim). Coordinates run from 0 to 1, so sizes are
    comparable."""
    quarter = dim // 4
    frequency = math.pi * 2.0 ** torch.linspace(0, 5, quarter, device=device)
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    angle_y = y[:, None, None] * frequency  # (H, 1, D/4)
    angle_x = x[None, :, None] * frequency  # (1, W, D/4)
    parts = [angle_y.sin(), angle_y.cos(), angle_x.sin(), angle_x.cos()]
    full = torch.cat([p.expand(height, width, quarter) for p in parts], dim=-1).reshape(height * width, 4 * quarter)
    return F.pad(full, (0, dim - 4 * quarter))


class ScaleAttention(nn.Module):
    """Channel, then spatial attention within one scale. Both are multiplications by 2 * sigmoid, which is 1 at the
    start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        last = nn.Linear(dim // 4, dim)
        self.channel = nn.Sequential(nn.Linear(dim, dim // 4), nn.GELU(), last)
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3)
        for parameter in (*last.parameters(), *self.spatial.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        weight = self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))  # (B, D)
        x = x * (2 * weight.sigmoid())[:, :, None, None]
        place = self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1))  # (B, 1, H, W)
        return x * (2 * place.sigmoid())


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and MLP over tokens (B, N, D)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        y = self.norm_1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class HierarchicalAttention(nn.Module):
    """Projects each scale to one width, attends within it, then across scales.

    Args:
        channels: C of each scale, finest first.
        dim: D. layers, heads: of the attention across scales; 0 layers leave it out. grid: G.
        enabled: False leaves the projections alone, for ablations.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        dim: int,
        layers: int,
        heads: int,
        grid: int,
        dropout: float,
        enabled: bool = True,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, dim, kernel_size=1) for c in channels)
        self.norm = nn.ModuleList(nn.GroupNorm(8, dim) for _ in channels)
        self.grid = grid
        self.within = nn.ModuleList(ScaleAttention(dim) for _ in channels) if enabled else None
        self.blocks = nn.ModuleList(AttentionBlock(dim, heads, dropout) for _ in range(layers if enabled else 0))
        self.scale = nn.Parameter(torch.randn(len(channels), dim) * 0.02)
        self.gate = nn.Parameter(torch.zeros(len(channels), dim))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, C_s, H_s, W_s)] -> [(B, D, H_s, W_s)]."""
        xs = [norm(project(x)) for project, norm, x in zip(self.project, self.norm, maps, strict=True)]
        if self.within is not None:
            xs = [attend(x) for attend, x in zip(self.within, xs, strict=True)]
        if not len(self.blocks):
            return xs
        g, dim = self.grid, xs[0].shape[1]
        tokens = [F.adaptive_avg_pool2d(x, g).flatten(2).transpose(1, 2) for x in xs]  # S x (B, G*G, D)
        position = sine_positions(g, g, dim, xs[0].device)
        y = torch.cat([t + position + s for t, s in zip(tokens, self.scale, strict=True)], dim=1)  # (B, S*G*G, D)
        for block in self.blocks:
            y = block(y)
        out = []
        for x, part, gate in zip(xs, y.split(g * g, dim=1), self.gate, strict=True):
            context = part.transpose(1, 2).unflatten(2, (g, g)) * gate[:, None, None]  # (B, D, G, G)
            out.append(x + F.interpolate(context, size=x.shape[2:], mode="bilinear", align_corners=False))
        return out
