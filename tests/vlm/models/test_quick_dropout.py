"""Drop-out with cheaper random numbers keeps what drop-out promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlm.models.dropout import QuickDropout, _Attention, attention, dropout, dropped_at


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_share_mean_and_gradient(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 500, dtype=dtype, requires_grad=True)
    y = dropout(x, p)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    assert y.float().mean().item() == pytest.approx(1.0, abs=0.01)
    assert (y == 0).float().mean(0).std() < 0.03  # rows and columns alike: no pattern
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_torch_seeds_it() -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, other = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3), first)
    assert not torch.equal(first, other)


def test_modules_take_it_while_it_is_on_and_evaluation_is_left_alone() -> None:
    layer, x = nn.Dropout(0.5), torch.ones(1000)
    torch.manual_seed(3)
    plain = layer(x)
    with QuickDropout():
        torch.manual_seed(3)
        quick = layer(x)
        assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(3)
    assert torch.equal(quick, dropout(x, 0.5))
    assert not torch.equal(quick, plain)
    assert torch.equal(dropout(x, 0.0), x)
    assert not dropout(x, 1.0).any()


@pytest.mark.parametrize("p", [1e-6, 0.02, 0.3, 0.9])
def test_positions_are_a_bernoulli_process(p: float) -> None:
    torch.manual_seed(0)
    count = 1_000_000
    at = dropped_at(torch.empty(count), p)
    assert len(at) == pytest.approx(count * p, abs=5 * (count * p * (1 - p)) ** 0.5 + 1)
    assert (at.diff() > 0).all()
    assert not len(at) or (at[0] >= 0 and at[-1] < count)
    if p > 0.01:
        assert (at.diff() == 1).float().mean().item() == pytest.approx(p, abs=0.03)  # neighbours are independent


def masks(kind: str) -> torch.Tensor | None:
    """Of 3 studies, 21 query rows and keys: padding on the left and what comes later are hidden."""
    if kind in ("none", "causal"):
        return None
    open_to = torch.ones(21, 21, dtype=torch.bool).tril()[None, None].repeat(3, 1, 1, 1)
    for study, padding in enumerate((0, 4, 9)):
        open_to[study, :, padding:, :padding] = False
    if kind == "bool":
        return open_to
    return torch.zeros(open_to.shape).masked_fill(~open_to, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_is_torchs_where_nothing_falls_out(kind: str, heads: int) -> None:
    torch.manual_seed(0)
    first = [torch.randn(3, n, 21, 8, requires_grad=True) for n in (4, heads, heads)]
    second = [t.detach().clone().requires_grad_() for t in first]
    options = {"attn_mask": masks(kind), "is_causal": kind == "causal", "scale": 0.3, "enable_gqa": heads == 2}
    one = F.scaled_dot_product_attention(*first, **options)
    with QuickDropout():
        other = F.scaled_dot_product_attention(*second, **options, dropout_p=1e-12)
    assert type(other.grad_fn).__name__ == "_AttentionBackward"
    torch.testing.assert_close(other, one)
    weights = torch.randn_like(one)
    (one * weights).sum().backward()
    (other * weights).sum().backward()
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(b.grad, a.grad)


def test_attention_drops_weights_and_its_gradient_is_that_of_what_was_drawn() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 2, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def drawn(*given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return _Attention.apply(*given, None, True, 0.3)

    assert torch.autograd.gradcheck(drawn, tensors)
    values = torch.ones(400, 2, 9, 4)
    out = attention(torch.randn(400, 2, 9, 4), torch.randn(400, 2, 9, 4), values, dropout_p=0.3)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (out - 1).abs().max() > 0.5
