"""bfloat16 on CPUs without its instructions: the search computes in float32, with the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from generation_models import tiny
from torch import Tensor

from vlm.generation import widening
from vlm.generation.beam_search import BeamSettings, beam_search

SETTINGS = BeamSettings(3, 8, eos_token_ids=(1,), pad_token_id=2)
PROMPT = torch.arange(3, 15).view(2, 6)


@pytest.fixture(autouse=True)
def _without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed_in(weight: Tensor) -> torch.dtype:
        return torch.float32 if weight.dtype == torch.bfloat16 else weight.dtype

    monkeypatch.setattr(widening, "computed_in", computed_in)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_answers_are_those_of_the_same_numbers_in_float32(family: str) -> None:
    narrow = tiny(family).to(torch.bfloat16)
    wide = copy.deepcopy(narrow).float()
    found = beam_search(narrow, SETTINGS, input_ids=PROMPT)
    assert found == beam_search(wide, SETTINGS, input_ids=PROMPT)
    embeds = narrow.get_input_embeddings()(PROMPT).detach()
    assert beam_search(narrow, SETTINGS, inputs_embeds=embeds) == beam_search(
        wide, SETTINGS, inputs_embeds=embeds.float()
    )
    assert next(narrow.parameters()).dtype == torch.bfloat16


def test_the_copy_is_kept_until_a_weight_changes() -> None:
    narrow = tiny("gpt2").to(torch.bfloat16)
    first = widening.widened(narrow)
    assert widening.widened(narrow) is first
    with torch.no_grad():
        narrow.transformer.wte.weight.mul_(2.0)
    again = widening.widened(narrow)
    assert again is not first
    assert torch.equal(again.transformer.wte.weight, narrow.transformer.wte.weight.float())


def test_float32_and_fewer_bits_stay_as_they_are() -> None:
    model = tiny("gpt2")
    assert widening.widened(model) is model
    few = tiny("gpt2").to(torch.bfloat16)
    few.register_parameter("codes", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    assert widening.widened(few) is few
