"""bfloat16 models on CPUs that have no instructions for it: computed in float32.

There torch multiplies bfloat16 by converting it again in every product, twenty and more times slower than float32. A
search runs a copy in float32, which holds the same numbers; it is kept as long as the weights don't change, and costs
twice the model's memory.
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_WIDE: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], nn.Module]] = WeakKeyDictionary()


def computed_in(weight: Tensor) -> torch.dtype:
    """The dtype that a model of such weights is computed in."""
    wide = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return torch.float32 if wide and not torch.ops.mkldnn._is_mkldnn_bf16_supported() else weight.dtype


def stamp_of(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes when a weight does; tensors made in inference mode don't count their changes."""
    return tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in model.parameters())


def widened(model: Any) -> Any:
    """The model, or its float32 copy where it holds bfloat16 that this CPU is slow at and nothing in fewer bits."""
    parameters = list(model.parameters())
    narrow = any(computed_in(p) != p.dtype for p in parameters)
    if not narrow or not all(p.is_floating_point() for p in parameters):
        return model
    stamp = stamp_of(model)
    known = _WIDE.get(model)
    if known is None or known[0] != stamp:
        known = (stamp, copy.deepcopy(model).float().eval())
        _WIDE[model] = known
    return known[1]
