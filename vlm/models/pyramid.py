"""Feature pyramid: coarse meaning flows down to fine maps (Lin et al. 2017, arXiv:1612.03144).

Departs from the paper: inputs have one width already (hierarchical attention projected them), and the smoothing
convolutions are depthwise-separable, which costs an eighth and loses nothing measurable at this width.

Shapes: B images, D width, H W pixels at a scale.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def separable_conv(dim: int) -> nn.Sequential:
    """Depthwise 3x3, pointwise 1x1, group norm, ReLU: (B, D, H, W) -> (B, D, H, W)."""
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
        nn.Conv2d(dim, dim, 1, bias=False),
        nn.GroupNorm(8, dim),
        nn.ReLU(inplace=True),
    )


class FeaturePyramid(nn.Module):
    """Top-down sums, then one separable convolution a scale, added to its input."""

    def __init__(self, scales: int, dim: int) -> None:
        super().__init__()
        self.smooth = nn.ModuleList(separable_conv(dim) for _ in range(scales))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, D, H_s, W_s)], finest first -> the same shapes."""
        out = [maps[-1]]
        for x in reversed(maps[:-1]):
            out.insert(0, x + F.interpolate(out[0], size=x.shape[2:], mode="nearest"))
        return [x + smooth(x) for x, smooth in zip(out, self.smooth, strict=True)]
