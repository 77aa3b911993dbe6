"""The short way through Llama: a study's answers are the same to the last bit, whatever it is batched with."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlm.generation.beam_search import BeamSettings, beam_search

LENGTHS = (23, 40, 31, 7, 40)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=611, hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_and_scores_do_not_depend_on_the_batch(
    model: LlamaForCausalLM, beams: int, dtype: torch.dtype, threads: int
) -> None:
    model = model.to(dtype)
    prompts = [torch.randn(n, 96, generator=torch.Generator().manual_seed(n)).to(dtype) for n in LENGTHS]
    settings = BeamSettings(beams, 24, eos_token_ids=(1, 2), suppress_token_ids=(3,))

    def answers(chosen: list[int]) -> list[list[tuple[tuple[int, ...], float]]]:
        longest = max(len(prompts[i]) for i in chosen)
        embeds = torch.zeros(len(chosen), longest, 96, dtype=dtype)
        mask = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, i in enumerate(chosen):
            embeds[row, longest - len(prompts[i]) :] = prompts[i]
            mask[row, longest - len(prompts[i]) :] = 1
        found = beam_search(model, settings, inputs_embeds=embeds, attention_mask=mask)
        return [[(c.tokens, c.score) for c in row] for row in found]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [answers([i])[0] for i in range(len(prompts))]
        torch.set_num_threads(threads)
        assert answers([0, 1, 2, 3, 4]) == alone
        assert answers([3, 1]) == [alone[3], alone[1]]
    finally:
        torch.set_num_threads(before)
        model.float()
