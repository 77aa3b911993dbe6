"""Multi-resolution image features from any timm model.

A backbone that timm can cut into stages gives them at strides 4, 8, 16, 32. The map at stride 4 is folded into the one
at stride 8: each 2x2 block of it becomes channels (pixel unshuffle), so that no detail is lost and what follows works
on a quarter of the places. A plain ViT has one resolution: its last map is taken to strides 8, 16, 32 by a transposed
convolution, identity and pooling (ViTDet, Li et al. 2022, arXiv:2203.16527; here without their stride 4, which costs
most and which a ViT at stride 16 cannot fill).

Shapes: B images, C channels, H W pixels, D width, s stride.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from timm.models import adapt_input_conv
from torch import Tensor, nn

STRIDES = (8, 16, 32)


class VisionEncoder(nn.Module):
    """A timm backbone that takes grey images and returns one feature map a scale.

    Args:
        backbone: a timm model made with `features_only=True`.
        mean, std: normalisation of grey levels in [0, 1], as the backbone's weights expect.
        inputs: channels that the backbone takes; a grey image stands in all of them.
        freeze_norm: keeps batch normalisation in evaluation mode, for weights into which it was folded and for small
            batches.
    """

    def __init__(self, backbone: nn.Module, mean: float, std: float, freeze_norm: bool, inputs: int = 3) -> None:
        super().__init__()
        self.backbone, self.inputs = backbone, inputs
        self.mean, self.std = mean, std
        self.freeze_norm = freeze_norm
        reductions = backbone.feature_info.reduction()  # type: ignore[union-attr, operator]
        channels = backbone.feature_info.channels()  # type: ignore[union-attr, operator]
        self.pyramid_of_one = SimplePyramid(channels[-1], reductions[-1]) if len(set(reductions)) == 1 else None
        if self.pyramid_of_one is not None:
            self.strides, self.channels = self.pyramid_of_one.strides, (channels[-1],) * 3
            return
        at = {r: i for i, r in enumerate(reductions)}
        if not {8, 16, 32} <= set(at):
            raise ValueError(f"the vision model gives maps at strides {reductions}; 8, 16 and 32 are needed")
        self.keep = [at[s] for s in STRIDES]
        self.finest = at.get(4)
        own = [channels[i] for i in self.keep]
        own[0] += 4 * channels[self.finest] if self.finest is not None else 0
        self.strides, self.channels = STRIDES, tuple(own)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (B, 1 or C, H, W) in [0, 1] -> one map (B, C_s, H/s, W/s) a stride of 8, 16, 32."""
        x = ((pixel_values - self.mean) / self.std).expand(-1, self.inputs, -1, -1)  # a view: no copy
        maps = self.backbone(x)
        if self.pyramid_of_one is not None:
            return self.pyramid_of_one(maps[-1])  # type: ignore[no-any-return]
        out = [maps[i] for i in self.keep]
        if self.finest is not None:
            out[0] = torch.cat([out[0], nn.functional.pixel_unshuffle(maps[self.finest], 2)], dim=1)
        return out

    def train(self, mode: bool = True) -> VisionEncoder:
        """Training mode, but for batch normalisation when it is frozen."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class SimplePyramid(nn.Module):
    """Strides 8, 16, 32 from one map at stride 14 or 16 (a patch of 14 is counted as 16: maps are aligned by size, not
    stride)."""

    strides = (8, 16, 32)

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if reduction not in (14, 16):
            raise ValueError(f"a plain ViT needs patches of 14 or 16 pixels, not {reduction}")
        self.up = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H/16, W/16) -> maps at strides 8, 16, 32."""
        return [self.up(x), x, nn.functional.max_pool2d(x, 2)]


def build_backbone(name: str, weights: str | None, options: dict, image_size: int, inputs: int = 3) -> nn.Module:
    """Makes the timm model.

    Args:
        name: any timm model name.
        weights: a safetensors file of `timm.create_model(name)`, "pretrained" (timm fetches them from its hub), or
            None.
        options: keyword arguments of `timm.create_model`.
        image_size: pixels, for models that fix it at construction.
        inputs: channels; weights of a first layer for three are spread over any other number, as timm does.

    Raises:
        ValueError: no such model or file, or a file that is not of this model.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:8]}*")[:5]
        raise ValueError(f"timm knows no model {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    extra = {"img_size": image_size, "dynamic_img_size": True} if name.startswith(("vit_", "deit", "eva")) else {}
    backbone = timm.create_model(
        name, pretrained=weights == "pretrained", features_only=True, in_chans=inputs, **{**extra, **options}
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
    state = {k: _fitted(v, wanted[k].shape) for k, v in state.items()}
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k, v in state.items() if v.shape != wanted[k].shape]
    if missing or wrong:
        raise ValueError(f"{path}: not weights of this model: {(missing + wrong)[0]!r} is missing or has another shape")
    backbone.load_state_dict(state, strict=False)


def _fitted(weight: Tensor, shape: torch.Size) -> Tensor:
    """The first layer's weights for another number of input channels than three."""
    same = weight.ndim == 4 and (weight.shape[0], *weight.shape[2:]) == (shape[0], *shape[2:])
    return adapt_input_conv(shape[1], weight) if same and weight.shape[1] == 3 != shape[1] else weight


@torch.no_grad()
def fold_norms(backbone: nn.Module, image_size: int, inputs: int = 3) -> int:
    """Folds frozen batch normalisation into the convolution before it: w' = w * g / sqrt(v + eps), b' = b - m * g /
    sqrt(v + eps).

    Saves a pass over every map, forward and backward, and leaves a bias that can learn. Pairs are found by order of
    registration and kept only when the folded network answers as before.

    Args:
        backbone: changed in place. image_size, inputs: pixels and channels of the trial image.

    Returns:
        How many layers were folded; 0 when the order misled and nothing was changed.
    """
    shape = (1, inputs, image_size, image_size)
    trial = torch.linspace(-1, 1, inputs * image_size * image_size).view(shape).sin()
    backbone.eval()
    before = backbone(trial)
    layers = [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    undo = []
    for (_, conv), (name, norm) in pairwise(layers):
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.bias is None):
            continue
        if conv.out_channels != norm.num_features or norm.running_var is None or norm.running_mean is None:
            continue
        parent = backbone.get_submodule(name.rpartition(".")[0]) if "." in name else backbone
        undo.append((conv, conv.weight.clone(), parent, name.rpartition(".")[2], norm))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.weight.mul_(scale.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter((norm.bias - norm.running_mean * scale).clone())
        # timm's norm layers carry their activation; torch's have none.
        setattr(parent, name.rpartition(".")[2], norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    after = backbone(trial)
    if all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) for a, b in zip(before, after, strict=True)
    ):
        return len(undo)
    for conv, weight, parent, name, norm in undo:
        conv.weight.copy_(weight)
        conv.bias = None
        setattr(parent, name, norm)
    return 0


def early_layers(backbone: nn.Module, stages: int, inputs: int = 3) -> list[nn.Parameter]:
    """Parameters of everything up to the map of the given stage (1 is stride 4 of a convolutional network), found by
    what a map of that stage depends on. Early layers hold edges and textures, cost most to differentiate, and gain
    least."""
    if stages == 0:
        return []
    probe = backbone(torch.zeros(1, inputs, 64, 64))[stages - 1].sum()
    wanted = [p for p in backbone.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(probe, wanted, allow_unused=True)
    return [p for p, g in zip(wanted, gradients, strict=True) if g is not None]


@torch.no_grad()
def feature_flops(encoder: VisionEncoder, size: int) -> int:
    """Floating-point operations of one image (multiplications and additions counted apart)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 1, size, size))
    return counter.get_total_flops()
