"""Sampling: several answers of a causal LM to each prompt, drawn from its own distribution.

What a study draws depends on its own seed alone, never on the batch: each study has a generator, and a token is the
maximum of log p / T + Gumbel noise (Gumbel-max, which draws from the softmax exactly). Samples give consensus decoding
the variety that the beams of one search lack (`consistency.consensus_rerank`; Eikema and Aziz 2022, arXiv:2108.04718).

Shapes: B studies, K samples, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm.generation.beam_search import make_stepper
from vlm.generation.settings import BeamSettings, Candidate
from vlm.types import InputError


@torch.inference_mode()
def sample(
    model: nn.Module,
    settings: BeamSettings,
    seeds: Sequence[int],
    *,
    inputs_embeds: Tensor | None = None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[Candidate]]:
    """Draws `settings.num_beams` answers for each prompt.

    Args:
        model, inputs_embeds, input_ids, attention_mask: as in `beam_search`.
        settings: number of samples (`num_beams`), length, end tokens and suppressed tokens are read.
        seeds: one a study.
        temperature: above 0; 1 is the model's own distribution.
        top_p: only the most probable tokens that together reach this share are drawn, in (0, 1].

    Returns:
        For each study its samples in the order of drawing; `score` is the log probability a token, at temperature 1.

    Raises:
        InputError: a temperature or share out of range, or another number of seeds than of prompts.
    """
    if not temperature > 0 or not 0 < top_p <= 1:
        raise InputError(f"temperature {temperature} must be above 0 and top_p {top_p} in (0, 1]")
    stepper = make_stepper(model, settings, inputs_embeds, input_ids, attention_mask)
    logits = stepper.prefill()  # (B, V)
    batch, vocabulary = logits.shape
    if len(seeds) != batch:
        raise InputError(f"{len(seeds)} seeds for {batch} prompts: give one for each")
    width = settings.num_beams
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ends = torch.zeros(vocabulary, dtype=torch.bool, device=logits.device)
    ends[list(settings.eos_token_ids)] = True
    parents = torch.arange(width, device=logits.device).expand(batch, -1)
    logits = logits[:, None].expand(-1, width, -1).clone()  # (B, K, V)
    done = torch.zeros(batch, width, dtype=torch.bool, device=logits.device)
    total = torch.zeros(batch, width, device=logits.device)
    written: list[Tensor] = []
    for position in range(settings.max_new_tokens):
        logits[..., list(settings.suppress_token_ids)] = float("-inf")
        if position < settings.min_new_tokens:
            logits[..., ends] = float("-inf")
        log_p = logits.log_softmax(-1)
        noise = torch.stack([torch.rand(width, vocabulary, generator=g) for g in generators]).to(log_p.device)
        token = (_nucleus(log_p, top_p) / temperature - (-noise.clamp_min(1e-20).log()).log()).argmax(-1)  # (B, K)
        total += torch.where(done, 0.0, log_p.gather(-1, token[..., None]).squeeze(-1))
        written.append(torch.where(done, -1, token))
        done = done | ends[token]
        if done.all() or position == settings.max_new_tokens - 1:
            break
        logits = stepper.step(token, parents)
    tokens = torch.stack(written, dim=-1).tolist()  # (B, K, T)
    return [
        [_candidate(row, log_probability) for row, log_probability in zip(rows, values, strict=True)]
        for rows, values in zip(tokens, total.tolist(), strict=True)
    ]


def _nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """Log probabilities with the tail beyond `top_p` at minus infinity; the most probable token always stays."""
    if top_p >= 1:
        return log_p
    ordered, index = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    return log_p.masked_fill((before > top_p).gather(-1, index.argsort(-1)), float("-inf"))


def _candidate(row: list[int], log_probability: float) -> Candidate:
    tokens = tuple(token for token in row if token >= 0)
    return Candidate(tokens, log_probability / max(1, len(tokens)), log_probability)
