"""Samples follow the model's distribution, and a study's samples do not depend on its batch."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlm.generation.sampling import sample
from vlm.generation.settings import BeamSettings
from vlm.types import InputError


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(40)
    return made


def test_first_tokens_follow_the_distribution(model: LlamaForCausalLM) -> None:
    prompt = torch.tensor([[3, 5, 7]])
    settings = BeamSettings(num_beams=4000, max_new_tokens=1, eos_token_ids=(1,), suppress_token_ids=(2,))
    (drawn,) = sample(model, settings, [0], input_ids=prompt)
    share = torch.bincount(torch.tensor([c.tokens[0] for c in drawn]), minlength=12) / 4000
    with torch.no_grad():
        logits = model(prompt).logits[0, -1]
    logits[2] = float("-inf")
    assert share[2] == 0
    torch.testing.assert_close(share, logits.softmax(-1), atol=0.03, rtol=0)


def test_a_study_draws_the_same_in_any_batch(model: LlamaForCausalLM) -> None:
    settings = BeamSettings(num_beams=3, max_new_tokens=8, eos_token_ids=(1,))
    alone = sample(model, settings, [7], input_ids=torch.tensor([[4, 9]]))[0]
    padded, mask = torch.tensor([[0, 4, 9], [3, 5, 7]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    together = sample(model, settings, [7, 8], input_ids=padded, attention_mask=mask)
    assert [c.tokens for c in alone] == [c.tokens for c in together[0]]
    assert together[0][0].tokens != together[1][0].tokens


def test_log_probability_is_the_models(model: LlamaForCausalLM) -> None:
    settings = BeamSettings(num_beams=2, max_new_tokens=5, min_new_tokens=5, eos_token_ids=(1,))
    ((first, _),) = sample(model, settings, [3], input_ids=torch.tensor([[4, 9]]))
    with torch.no_grad():
        logits = model(torch.tensor([[4, 9, *first.tokens]])).logits[0, 1:-1]
    logits[:, 1] = float("-inf")
    expected = logits.log_softmax(-1).gather(1, torch.tensor(first.tokens)[:, None]).sum()
    assert first.logprob == pytest.approx(float(expected), abs=1e-3)
    assert first.score == pytest.approx(first.logprob / 5)


def test_a_small_nucleus_is_greedy(model: LlamaForCausalLM) -> None:
    settings = BeamSettings(num_beams=5, max_new_tokens=4, eos_token_ids=(1,))
    (drawn,) = sample(model, settings, [1], input_ids=torch.tensor([[4, 9]]), top_p=1e-6)
    assert len({c.tokens for c in drawn}) == 1


def test_wrong_settings_are_refused(model: LlamaForCausalLM) -> None:
    settings = BeamSettings(num_beams=1, max_new_tokens=2, eos_token_ids=(1,))
    with pytest.raises(InputError, match="temperature 0"):
        sample(model, settings, [1], input_ids=torch.tensor([[4]]), temperature=0)
    with pytest.raises(InputError, match="2 seeds for 1 prompts"):
        sample(model, settings, [1, 2], input_ids=torch.tensor([[4]]))
