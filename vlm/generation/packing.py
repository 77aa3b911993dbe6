"""Linear layers with weights that are repacked once for oneDNN.

At the few rows of a beam search the library's own product of matrices is two to three times slower on the CPU. The
short way (`lean_llama.py`) is built of packed products; for any other model they are put in for the time of a step, so
that its own forward runs on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from vlm.generation.widening import computed_in, stamp_of

ROWS = 16
"""Rows that packing is told to expect; any number is served, only 1 would be packed badly."""

SMALLEST = 2**16
"""Weights of a layer below which packing gains nothing."""

MOST = 2 * 2**30
"""Bytes of packed weights beside a model's own; larger models keep the library's product."""

_READY: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], PackedLayers]] = WeakKeyDictionary()


class PackedLinear:
    """x W^T + b with W repacked for the CPU; the library's product elsewhere.

    A row's result does not depend on the other rows: oneDNN adds up in one order for any number of rows but 1, so a
    single row is computed twice. What follows the product is fused into it for the same reason (the library's `silu`
    rounds the end of a block differently).

    Args:
        weight: (out, in).
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        dtype = computed_in(weight)
        weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        packs = weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
        self.packed = packs and torch.backends.mkldnn.is_available()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self._unary(x, "none") if self.packed else functional.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """silu(x W^T + b)."""
        return self._unary(x, "swish") if self.packed else functional.silu(functional.linear(x, self.weight, self.bias))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other, `other` (..., out)."""
        return self._binary(x, other, "mul") if self.packed else functional.linear(x, self.weight, self.bias) * other

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) + other, `other` (..., out)."""
        return self._binary(x, other, "add") if self.packed else functional.linear(x, self.weight, self.bias) + other

    def _unary(self, x: Tensor, after: str) -> Tensor:
        if x.numel() == x.shape[-1]:
            return self._unary(torch.cat([x, x]), after)[:1]
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, after, [], "")

    def _binary(self, x: Tensor, other: Tensor, after: str) -> Tensor:
        if x.numel() == x.shape[-1]:
            return self._binary(torch.cat([x, x]), torch.cat([other, other]), after)[:1]
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, after)


class PackedLayers:
    """The large linear layers of a model, packed.

    Args:
        model: in evaluation mode; layers of other kinds than `nn.Linear` and transformers' `Conv1D` stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[tuple[nn.Module, PackedLinear]] = []
        chosen = [m for m in model.modules() if _packs(m)]
        if sum(m.weight.nbytes for m in chosen) > MOST:  # type: ignore[operator, union-attr, misc]
            return
        with torch.inference_mode():
            for module in chosen:
                weight: Tensor = module.weight.detach()  # type: ignore[union-attr, operator, assignment]
                bias = None if module.bias is None else module.bias.detach()  # type: ignore[union-attr, operator]
                packed = PackedLinear(weight.t() if isinstance(module, Conv1D) else weight, bias)  # type: ignore[arg-type]
                if packed.packed:
                    self.layers.append((module, packed))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model's layers multiply by their packed weights while the block runs."""
        for module, packed in self.layers:
            module.__dict__["forward"] = packed
        try:
            yield
        finally:
            for module, _ in self.layers:
                module.__dict__.pop("forward", None)


def packed_layers(model: nn.Module) -> PackedLayers:
    """A model's layers, packed; made again when one of its weights has changed."""
    stamp = stamp_of(model)
    known = _READY.get(model)
    if known is None or known[0] != stamp:
        known = (stamp, PackedLayers(model))
        _READY[model] = known
    return known[1]


def _packs(module: nn.Module) -> bool:
    """A wrapper's own forward (accelerate's, for weights that lie elsewhere) is left alone."""
    if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__:
        return False
    weight: Tensor = module.weight  # type: ignore[assignment]
    same = weight.device.type == "cpu" and weight.is_floating_point() and computed_in(weight) == weight.dtype
    return same and weight.numel() >= SMALLEST
