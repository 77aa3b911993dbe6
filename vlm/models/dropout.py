"""Drop-out whose random numbers cost less on a CPU.

torch draws a Bernoulli number for every element one after the other, which took a quarter of a training step with a
LoRA adapter (a drop-out before each of its layers), and a third of an attention whose weights are dropped. Here the
gaps between dropped elements are drawn, which are geometric: twenty times fewer numbers for a drop-out of 0.05, and
positions to remember instead of a mask. They come from a generator that torch's own generator seeds, so that whoever
seeds torch has the same drop-out again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

BLOCKS = 4
"""Of query rows in an attention: each looks no further than its last row does, and a causal one is spared three
eighths of its work."""


def dropped_at(input: Tensor, p: float) -> Tensor:
    """Which elements of a tensor a drop-out sets to zero, each alone with probability p: flat positions, ascending.

    Args:
        input: on the CPU; of a fake tensor, the memory of whose step is estimated, as many positions as expected.
        p: above 0 and below 1.
    """
    count = input.numel()
    if isinstance(input, FakeTensor):
        return input.new_empty(round(count * p), dtype=torch.int64)
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    expected = count * p
    parts, last = [], -1.0
    while last < count:
        drawn = 2 * int(expected / 2 + 4 * math.sqrt(expected) + 8)
        uniform = torch.from_numpy(generator.random_raw(drawn // 2).view(np.int32)).double()
        uniform.add_(2**31 + 0.5).mul_(2.0**-32)  # between 0 and 1, neither of them
        positions = uniform.log_().mul_(1 / math.log1p(-p)).ceil_().cumsum(0).add_(last)
        parts.append(positions)
        last = float(positions[-1])
    found = torch.cat(parts) if len(parts) > 1 else parts[0]
    return found[: int(torch.searchsorted(found, float(count)))].long()


def drop(input: Tensor, at: Tensor, p: float) -> Tensor:
    """A new tensor: zero at the flat positions, elsewhere scaled so that the mean stays."""
    out = torch.mul(input, 1 / (1 - p)).contiguous()
    out.view(-1).index_fill_(0, at, 0.0)
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        at = dropped_at(input, p)
        ctx.save_for_backward(at)
        ctx.p = p
        return drop(input, at, p)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        return drop(gradient, at, ctx.p), None


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `torch.nn.functional.dropout`, for tensors on the CPU."""
    if not training or not 0 < p < 1 or input.device.type != "cpu" or not input.numel():
        return F.dropout(input, p, training, inplace)
    out: Tensor = _Dropout.apply(input, p)  # type: ignore[no-untyped-call]
    return input.copy_(out) if inplace else out


class _Attention(torch.autograd.Function):
    """Softmax attention whose weights are dropped, over blocks of query rows.

    Shapes: q (B, H, T, D), k and v (B, H, S, D), bias None or broadcastable to (B, H, T, S).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, p: float) -> Tensor:
        ctx.p, ctx.scale = p, 1 / math.sqrt(q.shape[-1])
        ctx.blocks = _blocks(q.shape[2], k.shape[2], bias, causal)
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        kept: list[Tensor] = []
        for first, end, seen in ctx.blocks:
            scores = torch.matmul(q[:, :, first:end] * ctx.scale, k[:, :, :seen].transpose(2, 3))
            if bias is not None:
                scores += bias[:, :, first:end, :seen]
            if causal:
                after = torch.ones(end - first, seen, dtype=torch.bool).triu_(first + 1)
                scores.masked_fill_(after, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1)
            at = dropped_at(weights, p)
            out[:, :, first:end] = torch.matmul(drop(weights, at, p), v[:, :, :seen])
            kept += [weights, at]
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scaled = v / (1 - ctx.p)
        for (first, end, seen), weights, at in zip(ctx.blocks, kept[::2], kept[1::2], strict=True):
            rows = gradient[:, :, first:end]
            of_v[:, :, :seen] += torch.matmul(drop(weights, at, ctx.p).transpose(2, 3), rows)
            of_weights = torch.matmul(rows, scaled[:, :, :seen].transpose(2, 3))
            of_weights.view(-1).index_fill_(0, at, 0.0)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q[:, :, first:end] = torch.matmul(of_scores, k[:, :, :seen] * ctx.scale)
            of_k[:, :, :seen] += torch.matmul(of_scores.transpose(2, 3), q[:, :, first:end] * ctx.scale)
        return of_q, of_k, of_v, None, None, None


def _blocks(queries: int, keys: int, bias: Tensor | None, causal: bool) -> list[tuple[int, int, int]]:
    """(first row, row after the last, keys that any of them looks at)."""
    size = max(1, math.ceil(queries / BLOCKS))
    blocks = []
    for first in range(0, queries, size):
        end = min(first + size, queries)
        seen = min(end, keys) if causal else keys
        if bias is not None:
            open_to = (bias[:, :, first:end] > torch.finfo(bias.dtype).min / 2).any(dim=(0, 1, 2)).nonzero()
            seen = min(seen, int(open_to[-1]) + 1) if len(open_to) else seen
        blocks.append((first, end, seen))
    return blocks


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """As `torch.nn.functional.scaled_dot_product_attention`, for float32 on the CPU whose weights are dropped.

    torch's fused kernel drops nothing, and what stands in for it makes a pass over all scores for each of its
    operations. A row that may look nowhere looks everywhere alike here, and is zero there.
    """
    plain = query.dtype == key.dtype == value.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    fits = query.dim() == 4 and query.device.type == "cpu" and (attn_mask is None or not attn_mask.requires_grad)
    if not 0 < dropout_p < 1 or not plain or not fits or (attn_mask is not None and attn_mask.dim() != 4):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    if scale is not None:
        query = query * (scale * math.sqrt(query.shape[-1]))
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape).masked_fill_(~bias, torch.finfo(torch.float32).min)
        bias = bias.expand(-1, -1, query.shape[2], key.shape[2])
    return _Attention.apply(query, key, value, bias, is_causal, dropout_p)  # type: ignore[no-any-return, no-untyped-call]


QUICK: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: dropout,
    F.scaled_dot_product_attention: attention,
}


class QuickDropout(TorchFunctionMode):
    """While it is on, every drop-out of this thread is `dropout`, also those that libraries call themselves, and every
    attention that drops weights is `attention`."""

    _here = threading.local()

    def __enter__(self) -> QuickDropout:
        QuickDropout._here.depth = getattr(QuickDropout._here, "depth", 0) + 1
        super().__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        QuickDropout._here.depth -= 1

    @classmethod
    def again(cls) -> AbstractContextManager[Any]:
        """For what is computed anew in a backward pass: the drop-out that is on here. torch leaves a mode while it runs
        what the mode was asked about, and `Tensor.backward` is such a thing."""
        return QuickDropout() if getattr(cls._here, "depth", 0) else nullcontext()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls ours for torch's own."""
        return QUICK.get(func, func)(*args, **(kwargs or {}))
