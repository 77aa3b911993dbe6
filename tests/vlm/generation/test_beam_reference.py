"""Without constraints, beam search returns what transformers' generate() returns."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from generation_models import FAMILIES, VOCABULARY, tiny

from vlm.generation import packing
from vlm.generation.beam_search import BeamSettings, beam_search

load = cache(tiny)


@pytest.fixture(autouse=True)
def small_layers_are_packed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SMALLEST", 1)


def padded_prompt(model: torch.nn.Module, batch: int, draw: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded embeddings (B, N, D) of unequal length and their mask."""
    lengths = [draw.randint(1, 9) for _ in range(batch)]
    longest = max(lengths)
    torch.manual_seed(draw.randint(0, 10**6))
    ids = torch.randint(3, VOCABULARY, (batch, longest))
    mask = torch.zeros(batch, longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, longest - length :] = 1
    return model.get_input_embeddings()(ids).detach(), mask


def compare(
    model: torch.nn.Module, settings: BeamSettings, embeds: torch.Tensor, mask: torch.Tensor, lean: bool = True
) -> None:
    width = settings.num_beams
    expected = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        eos_token_id=list(settings.eos_token_ids),
        pad_token_id=2,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = beam_search(model, settings, inputs_embeds=embeds, attention_mask=mask, lean=lean)
    if width == 1:  # greedy search, to which generate() gives no scores
        for row, candidates in zip(expected.sequences.tolist(), found, strict=True):
            got = list(candidates[0].tokens)
            assert got + [2] * (len(row) - len(got)) == row
        return
    scores = expected.sequences_scores.view(-1, width)
    sequences = expected.sequences.view(len(scores), width, -1)
    for study, rows in enumerate(found):
        assert len(rows) == int((scores[study] > -1e8).sum())
        for rank, candidate in enumerate(rows):
            sequence = sequences[study, rank].tolist()
            got = list(candidate.tokens) + [2] * (len(sequence) - len(candidate.tokens))
            assert candidate.score == pytest.approx(float(scores[study, rank]), abs=1e-4)
            assert got == sequence


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("family", FAMILIES)
def test_same_sequences_and_scores_as_generate(family: str, seed: int) -> None:
    draw = random.Random(f"{family}{seed}")
    model = load(family)
    # Every family meets the ends of the ranges; the rest is drawn.
    width = (1, 16)[seed] if seed < 2 else draw.randint(1, 16)
    embeds, mask = padded_prompt(model, (8, 1)[seed] if seed < 2 else draw.randint(1, 8), draw)
    length = draw.randint(3, 24)
    settings = BeamSettings(
        num_beams=width,
        max_new_tokens=length,
        min_new_tokens=draw.choice([0, 0, 2]),
        length_penalty=draw.choice([1.0, 0.0, 0.6, 2.0, -0.5]),
        early_stopping=draw.choice([True, False, "never"]),
        no_repeat_ngram_size=draw.choice([0, 0, 1, 2, 3]),
        eos_token_ids=draw.choice([(1,), (1, 5), (1, 5, 9)]),
        pad_token_id=2,
    )
    with torch.inference_mode():
        compare(model, settings, embeds, mask)
        if family == "llama":
            compare(model, settings, embeds, mask, lean=False)


def test_a_lora_adapter_takes_part_wrapped_or_not() -> None:
    from peft import LoraConfig, get_peft_model

    from vlm.generation.lean_llama import supported

    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(tiny("llama"), config).eval()
    assert supported(model)
    embeds, mask = padded_prompt(model, 3, random.Random(0))
    settings = BeamSettings(num_beams=4, max_new_tokens=12, eos_token_ids=(1,), pad_token_id=2)
    with torch.inference_mode():
        compare(model, settings, embeds, mask)
        compare(model, settings, embeds, mask, lean=False)
    with torch.no_grad():  # a changed weight must not be answered from a packed copy
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.mul_(-1.0)
    with torch.inference_mode():
        compare(model, settings, embeds, mask)


def test_prompt_ids_count_in_n_gram_blocking() -> None:
    model = load("llama")
    ids = torch.tensor([[5, 6, 7, 5], [8, 9, 8, 9]])
    settings = BeamSettings(num_beams=3, max_new_tokens=10, no_repeat_ngram_size=2, eos_token_ids=(1,), pad_token_id=2)
    with torch.inference_mode():
        expected = model.generate(
            input_ids=ids,
            num_beams=3,
            max_new_tokens=10,
            no_repeat_ngram_size=2,
            eos_token_id=1,
            pad_token_id=2,
            do_sample=False,
        )
        found = beam_search(model, settings, input_ids=ids)
    for row, candidates in zip(expected[:, 4:].tolist(), found, strict=True):
        assert row[: len(candidates[0].tokens)] == list(candidates[0].tokens)


def test_one_beam_is_greedy_search() -> None:
    model = load("llama")
    ids = torch.tensor([[5, 6, 7, 5], [8, 9, 8, 9]])
    settings = BeamSettings(num_beams=1, max_new_tokens=10, eos_token_ids=(1,), pad_token_id=2)
    with torch.inference_mode():
        expected = model.generate(input_ids=ids, max_new_tokens=10, eos_token_id=1, pad_token_id=2, do_sample=False)
        found = beam_search(model, settings, input_ids=ids)
    for row, candidates in zip(expected[:, 4:].tolist(), found, strict=True):
        assert row[: len(candidates[0].tokens)] == list(candidates[0].tokens)
