"""Without constraints, beam search returns what transformers' generate() returns."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from generation_models import FAMILIES, VOCABULARY, tiny

from vlm.generation.beam_search import BeamSettings, beam_search

load = cache(tiny)


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


def compare(model: torch.nn.Module, settings: BeamSettings, embeds: torch.Tensor, mask: torch.Tensor) -> None:
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
    scores = expected.sequences_scores.view(-1, width)
    sequences = expected.sequences.view(len(scores), width, -1)
    found = beam_search(model, settings, inputs_embeds=embeds, attention_mask=mask)
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
    width = draw.choice([1, 2, 3, 4, 7, 16])
    if width == 1:
        width = 2  # generate(num_beams=1) is greedy search, compared below
    embeds, mask = padded_prompt(model, draw.choice([1, 2, 5, 8]), draw)
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
