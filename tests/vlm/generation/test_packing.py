"""Packed linear layers in a model's own forward: the same products, for the time of a step alone."""

from __future__ import annotations

import pytest
import torch
from generation_models import tiny
from torch import nn

from vlm.generation import packing
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.packing import packed_layers


@pytest.mark.parametrize(("family", "count"), [("llama", 15), ("gpt2", 9)])
def test_layers_are_put_in_and_taken_out(family: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SMALLEST", 1)
    model = tiny(family)
    layers = packed_layers(model)
    assert len(layers.layers) == count
    for module, packed in layers.layers:
        x = torch.randn(2, 3, (module.weight if isinstance(module, nn.Linear) else module.weight.t()).shape[1])
        expected = module(x)
        with layers.in_place():
            torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
            assert module.forward is packed
        assert "forward" not in module.__dict__
    with pytest.raises(ZeroDivisionError), layers.in_place():
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_changed_weight_is_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SMALLEST", 1)
    model = tiny("gpt2")
    settings = BeamSettings(num_beams=3, max_new_tokens=8, eos_token_ids=(1,), pad_token_id=2)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = beam_search(model, settings, input_ids=ids)[0][0]
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(-1.0)
    with torch.inference_mode():
        after = beam_search(model, settings, input_ids=ids)[0][0]
        expected = model.generate(
            input_ids=ids, num_beams=3, max_new_tokens=8, eos_token_id=1, pad_token_id=2, do_sample=False
        )
    assert after.score != before.score
    assert expected[0, 3:].tolist()[: len(after.tokens)] == list(after.tokens)


def test_what_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2")
    assert packed_layers(model).layers == []  # all are small
    monkeypatch.setattr(packing, "SMALLEST", 1)
    monkeypatch.setattr(packing, "MOST", 1)
    assert packed_layers(tiny("gpt2")).layers == []  # no second copy of a large model
    monkeypatch.setattr(packing, "MOST", 2**30)
    hooked = tiny("gpt2")
    head = hooked.lm_head
    head.forward = head.forward  # as accelerate wraps a layer whose weights lie elsewhere
    assert head not in [module for module, _ in packed_layers(hooked).layers]
    assert packed_layers(tiny("gpt2").half()).layers == []
