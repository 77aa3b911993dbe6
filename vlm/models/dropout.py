"""Drop-out whose random numbers cost less on a CPU.

torch draws a Bernoulli number for every element one after the other, which took a quarter of a training step with a
LoRA adapter: it has a drop-out before each of its layers. Here four elements share 64 random bits, from a generator
that torch's own generator seeds, so that whoever seeds torch has the same masks again. The share that is dropped is
rounded to 1/65536, and what is kept is scaled by what that makes of it: the mean stays exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SHARES = 1 << 16


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `torch.nn.functional.dropout`, for tensors on the CPU."""
    cut = round(p * SHARES)
    if not training or not 0 < cut < SHARES or input.device.type != "cpu" or not input.numel():
        return F.dropout(input, p, training, inplace)
    count = input.numel()
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    raw = torch.from_numpy(generator.random_raw((count + 3) // 4).view(np.int16)[:count]).view(input.shape)
    kept = (raw >= cut - SHARES // 2).to(input.dtype).mul_(SHARES / (SHARES - cut))
    return input.mul_(kept) if inplace else input * kept


class QuickDropout(TorchFunctionMode):
    """While it is on, every drop-out of this thread is `dropout`, also those that libraries call themselves."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls `dropout` for torch's own."""
        return (dropout if func is F.dropout else func)(*args, **(kwargs or {}))
