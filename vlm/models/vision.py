"""Multi-resolution image features from any timm model.

A backbone that timm can cut into stages gives them at strides 4, 8, 16, 32. A plain ViT has one resolution: its last map is taken
to strides 8, 16, 32 by a transposed convolution, identity and pooling (ViTDet, Li et al. 2022, arXiv:2203.16527; here
without their stride 4, which costs most and which a ViT at stride 16 cannot fill).

Shapes: B images, C channels, H W pixels, D width, s stride.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class VisionEncoder(nn.Module):
    """A timm backbone that takes grey images and returns one feature map a scale.

    Args:
        backbone: a timm model made with `features_only=True`.
        mean, std: normalisation of grey levels in [0, 1], as the backbone's weights expect.
        freeze_norm: keeps batch normalisation in evaluation mode, for weights into which it was folded and for small batches.
        image_size: for a ViT, the square size (pixels) its position embedding was built for; other sizes are interpolated.
    """

    def __init__(self, backbone: nn.Module, mean: float, std: float, freeze_norm: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = mean, std
        self.freeze_norm = freeze_norm
        reductions = backbone.feature_info.reduction()  # type: ignore[union-attr, operator]
        channels = backbone.feature_info.channels()  # type: ignore[union-attr, operator]
        self.pyramid_of_one = SimplePyramid(channels[-1], reductions[-1]) if len(set(reductions)) == 1 else None
        if self.pyramid_of_one is None:
            self.keep = [i for i, r in enumerate(reductions) if r in STRIDES]
            self.strides = tuple(reductions[i] for i in self.keep)
            self.channels = tuple(channels[i] for i in self.keep)
        else:
            self.strides = self.pyramid_of_one.strides
            self.channels = (channels[-1],) * len(self.strides)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Grey images (B, 1, H, W) in [0, 1] -> one map (B, C_s, H/s, W/s) a stride, finest first."""
        x = ((pixel_values - self.mean) / self.std).expand(-1, 3, -1, -1)  # (B, 3, H, W), a view: no copy
        maps = self.backbone(x)
        if self.pyramid_of_one is not None:
            return self.pyramid_of_one(maps[-1])
        return [maps[i] for i in self.keep]

    def train(self, mode: bool = True) -> VisionEncoder:
        """Training mode, but for batch normalisation when it is frozen."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class SimplePyramid(nn.Module):
    """Strides 8, 16, 32 from one map at stride 14 or 16 (a patch of 14 is counted as 16: maps are aligned by size, not stride)."""

    strides = (8, 16, 32)

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if reduction not in (14, 16):
            raise ValueError(f"a plain ViT needs patches of 14 or 16 pixels, not {reduction}")
        self.up = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H/16, W/16) -> maps at strides 8, 16, 32."""
        return [self.up(x), x, nn.functional.max_pool2d(x, 2)]


def build_backbone(name: str, weights: str | None, options: dict, image_size: int) -> nn.Module:
    """Makes the timm model.

    Args:
        name: any timm model name.
        weights: a safetensors file of `timm.create_model(name)`, "pretrained" (timm fetches them from its hub), or None.
        options: keyword arguments of `timm.create_model`.
        image_size: pixels, for models that fix it at construction.

    Raises:
        ValueError: no such model or file, or a file that is not of this model.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:8]}*")[:5]
        raise ValueError(f"timm knows no model {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    extra = {"img_size": image_size, "dynamic_img_size": True} if name.startswith(("vit_", "deit", "eva")) else {}
    backbone = timm.create_model(
        name, pretrained=weights == "pretrained", features_only=True, in_chans=3, **{**extra, **options}
    )
    if weights and weights != "pretrained":
        load_backbone_weights(backbone, Path(weights))
    return backbone


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Loads a classifier's weights into its `features_only` form; the classifier's own layers are left over."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file of vision weights")
    state = load_file(path)
    wanted = backbone.state_dict()
    prefix = "model." if any(k.startswith("model.") for k in wanted) else ""
    state = {prefix + k: v for k, v in state.items() if prefix + k in wanted}
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k, v in state.items() if v.shape != wanted[k].shape]
    if missing or wrong:
        raise ValueError(f"{path}: not weights of this model: {(missing + wrong)[0]!r} is missing or has another shape")
    backbone.load_state_dict(state, strict=False)


def norm_layers(module: nn.Module) -> list[nn.Module]:
    """Batch-normalisation layers, whose affine parameters stay fixed when they were folded into convolutions."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def feature_flops(encoder: VisionEncoder, size: int) -> int:
    """Floating-point operations of one image (multiplications and additions counted apart)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 1, size, size))
    return counter.get_total_flops()
