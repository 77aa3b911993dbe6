"""LoRA layers whose passes over a batch's activations are fewer, for learning on a CPU.

PEFT adds a layer's update in operations of its own: drop-out, two thin products, a scaling and a sum, each a pass over
activations that are far larger than the matrices, and autograd keeps what each was given. Here frozen product and
update are one operation: the update is added where the product lies, the scaling is folded into the thin product, and
what is kept for the backward pass is the input alone, of which layers that read the same one keep it once. Numbers are
PEFT's to the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from vlm.models.dropout import QuickDropout, drop, dropped_at


class _Updated(torch.autograd.Function):
    """x W' + bias + scaling * dropout(x) A' B'.

    Shapes: x (..., I), weight (O, I), a (r, I), b (O, r).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, p: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = F.linear(rows, weight, bias)
        at = dropped_at(rows, p) if p else None
        low = (rows if at is None else drop(rows, at, p)) @ a.T
        out.addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, low, at)
        ctx.scaling, ctx.p = scaling, p
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low, at = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.reshape(-1, gradient.shape[-1])
        of_x = of_a = of_b = None
        of_low = gradient @ (b * ctx.scaling)
        if ctx.needs_input_grad[4]:
            of_b = gradient.T @ (low * ctx.scaling)
        if ctx.needs_input_grad[3]:
            of_a = of_low.T @ (rows if at is None else drop(rows, at, ctx.p))
        if ctx.needs_input_grad[0]:
            of_x = of_low @ (a if at is None else a / (1 - ctx.p))
            if at is not None:
                of_x.view(-1).index_fill_(0, at, 0.0)
            of_x = of_x.addmm_(gradient, weight).view(*shape[:-1], -1)
        return of_x, None, None, of_a, of_b, None, None


def _bare(module: nn.Module) -> bool:
    """Whether a call of the module is its forward, and that the one of its class."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _update_of(layer: LoraLinear) -> tuple[Tensor, Tensor | None, nn.Module, nn.Module, float, float] | None:
    """Frozen weight (O, I) and bias, A, B, scaling and drop-out of a layer whose sum is that of `_Updated`; None where
    PEFT does more, or somebody else has a hand in it (hooks, shared-out weights)."""
    base, names = layer.base_layer, layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    name = names[0]
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    known = type(base) in (nn.Linear, Conv1D) and type(a) is type(b) is nn.Linear
    if not known or name in layer.lora_variant or not all(map(_bare, (base, a, b))):
        return None
    weights = (base.weight, a.weight, b.weight)
    if base.weight.requires_grad or a.bias is not None or b.bias is not None or any(w.dim() != 2 for w in weights):
        return None
    if any(type(w) not in (nn.Parameter, Tensor, FakeTensor) or hasattr(w, "ds_id") for w in weights):
        return None
    if base.bias is not None and base.bias.requires_grad:
        return None
    weight = base.weight.T if type(base) is Conv1D else base.weight
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    return weight, base.bias, a, b, layer.scaling[name], p


def _forward(layer: LoraLinear, plain: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    found = None if args or kwargs or x.device.type != "cpu" else _update_of(layer)
    if found is None:
        return plain(x, *args, **kwargs)
    weight, bias, a, b, scaling, p = found
    narrows = torch.is_autocast_enabled("cpu")
    if not narrows and not x.dtype == weight.dtype == a.weight.dtype:
        return plain(x)
    kind = torch.get_autocast_dtype("cpu") if narrows else x.dtype
    tensors = (None if t is None else t.to(kind) for t in (x, weight, bias, a.weight, b.weight))
    with torch.autocast("cpu", enabled=False):
        return _Updated.apply(*tensors, scaling, p)  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def lean_lora(model: nn.Module) -> Iterator[None]:
    """While the block runs, PEFT's LoRA layers in a model compute their sum in one operation, on the CPU."""
    layers = [m for m in model.modules() if type(m) is LoraLinear and _bare(m)]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def quick_steps(model: nn.Module, device: str) -> Iterator[None]:
    """While the block runs, drop-out, attention and LoRA layers of a step cost less on the CPU; elsewhere nothing
    changes, and nothing is paid.

    Args:
        device: that the model computes on, "cpu" or another.
    """
    if device != "cpu":
        yield
        return
    with QuickDropout(), lean_lora(model):
        yield
