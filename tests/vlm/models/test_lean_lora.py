"""LoRA layers in one operation give PEFT's numbers, and leave alone what PEFT alone can do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from vlm.models.dropout import QuickDropout
from vlm.models.lean_lora import _Updated, lean_lora


class Two(nn.Module):
    """Two layers of which both learn by adapter, the first with a bias."""

    def __init__(self, convolved: bool) -> None:
        super().__init__()
        self.first = Conv1D(10, 6) if convolved else nn.Linear(6, 10)
        self.second = nn.Linear(10, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def adapted(convolved: bool = False, dropout: float = 0.0, **options: object) -> PeftModel:
    torch.manual_seed(0)
    targets = ["first"] if convolved else ["first", "second"]
    spec = LoraConfig(r=3, lora_alpha=5, lora_dropout=dropout, target_modules=targets, **options)
    if convolved:
        spec.fan_in_fan_out = True
    model = get_peft_model(Two(convolved), spec).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def learnt(model: PeftModel, x: Tensor) -> list[Tensor]:
    """Output and gradients."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(3)
    with QuickDropout():
        out = model(x)
    out.float().square().sum().backward()
    return [out.detach(), x.grad, *[p.grad for p in model.parameters() if p.requires_grad]]  # type: ignore[list-item]


def operations(out: Tensor) -> set[str]:
    """Names of what autograd holds of a tensor."""
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(type(node).__name__)
            todo += [parent for parent, _ in node.next_functions]
    return names


@pytest.mark.parametrize("convolved", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_numbers_are_pefts(convolved: bool, dropout: float) -> None:
    model, x = adapted(convolved, dropout), torch.randn(2, 7, 6)
    plain = learnt(model, x)
    with lean_lora(model):
        assert "_UpdatedBackward" in operations(model(x))
        lean = learnt(model, x)
    for a, b in zip(plain, lean, strict=True):
        torch.testing.assert_close(a, b)
    assert "_UpdatedBackward" not in operations(model(x))


def test_half_precision_rounds_as_autocast_does() -> None:
    model, x = adapted(), torch.randn(2, 7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        plain = learnt(model, x)
        with lean_lora(model):
            lean = learnt(model, x)
    for a, b in zip(plain, lean, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * float(a.abs().max()))


def hooked(model: PeftModel) -> None:
    model.base_model.model.first.base_layer.register_forward_hook(lambda *_: None)
    model.base_model.model.second.base_layer.register_forward_pre_hook(lambda *_: None)


def thawed(model: PeftModel) -> None:
    for layer in (model.base_model.model.first, model.base_model.model.second):
        layer.base_layer.weight.requires_grad_()


def merged(model: PeftModel) -> None:
    model.base_model.merge_adapter()


def disabled(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


@pytest.mark.parametrize("changed", [hooked, thawed, merged, disabled])
def test_what_is_more_than_the_sum_is_left_to_peft(changed: Callable[[PeftModel], None]) -> None:
    model, x = adapted(), torch.randn(2, 7, 6)
    changed(model)
    plain = model(x)
    with lean_lora(model):
        out = model(x)
        assert "_UpdatedBackward" not in operations(out)
    assert torch.equal(out, plain)


def test_dora_is_left_to_peft() -> None:
    model, x = adapted(use_dora=True), torch.randn(2, 7, 6)
    with lean_lora(model):
        assert "_UpdatedBackward" not in operations(model(x))


def test_only_what_learns_gets_a_gradient() -> None:
    model, x = adapted(), torch.randn(2, 7, 6)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    with lean_lora(model):
        model(x).sum().backward()
    assert all((p.grad is not None) == ("lora_B" in n) for n, p in model.named_parameters())


def test_gradients_are_those_of_the_drawn_drop_out() -> None:
    torch.manual_seed(0)
    shapes = ((4, 5, 6), (7, 6), (7,), (2, 6), (7, 2))
    x, weight, bias, a, b = (torch.randn(s, dtype=torch.float64) for s in shapes)

    def drawn(*learnt: Tensor) -> Tensor:
        torch.manual_seed(9)
        return _Updated.apply(learnt[0], weight, bias, *learnt[1:], 0.7, 0.4)

    assert torch.autograd.gradcheck(drawn, [t.requires_grad_() for t in (x, a, b)])
