"""Drop-out with cheaper random numbers keeps what drop-out promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlm.models.dropout import QuickDropout, dropout


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
