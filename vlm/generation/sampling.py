"""Sampling: several answers of a causal LM to each prompt, drawn from its own distribution.

What a study draws depends on its own seed alone, never on the batch: each study has a generator, and a token is the
maximum of log p / T + Gumbel noise (Gumbel-max, which draws from the softmax exactly). Samples give consensus decoding
the variety that the beams of one search lack (`consistency.consensus_rerank`; Eikema and Aziz 2022, arXiv:2108.04718).

Shapes: B studies, K samples, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.generation.beam_search import make_stepper
from vlm.generation.compiling import CompiledConstraints
from vlm.generation.settings import BeamSettings, Candidate
from vlm.generation.tracker import Tracker
from vlm.types import InputError

LOOKED_AT = 32
"""Draws of a sample that constraints look at first."""

OUTSIDE = 1.0e4
"""What a token outside the nucleus loses."""


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
    constraints: Sequence[CompiledConstraints | None] | None = None,
) -> list[list[Candidate]]:
    """Draws `settings.num_beams` answers for each prompt.

    Args:
        model, inputs_embeds, input_ids, attention_mask: as in `beam_search`.
        settings: number of samples (`num_beams`), length, end tokens and suppressed tokens are read.
        seeds: one a study.
        temperature: above 0; 1 is the model's own distribution.
        top_p: only the most probable tokens that together reach this share are drawn, in (0, 1].
        constraints: one entry a study, None for a study without; None for none at all. A token that they refuse is
            never drawn: the next best draw takes its place, which samples the distribution over what is allowed.

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
    bound = None
    if constraints is not None and any(entry is not None for entry in constraints):
        bound = _Bound(constraints, settings, logits.device, temperature)
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
        log_p = logits - logits.logsumexp(-1, keepdim=True)  # log_softmax rounds by the number of threads
        noise = torch.stack([torch.rand(width, vocabulary, generator=g) for g in generators]).to(log_p.device)
        noise = -(-noise.clamp_min(1e-20).log()).log()
        drawn = _nucleus(log_p, top_p) / temperature + noise
        last = position == settings.max_new_tokens - 1
        if bound is None:
            token = drawn.argmax(-1)  # (B, K)
        else:
            # Outside the nucleus only where nothing inside is allowed.
            token = bound.choose(torch.maximum(drawn, log_p / temperature + noise - OUTSIDE), log_p, position)
            bound.note_ends(~done & (ends[token] | last), ends[token])
        total += torch.where(done, 0.0, log_p.gather(-1, token[..., None]).squeeze(-1))
        written.append(torch.where(done, -1, token))
        done = done | ends[token]
        if last or bool(done.all()):
            break
        # A sample that is done follows one that goes on, so that the slots of its own path are free.
        going = (~done).to(torch.uint8).argmax(-1, keepdim=True)
        logits = stepper.step(token, torch.where(done, going, parents))
    tokens = torch.stack(written, dim=-1).tolist()  # (B, K, T)
    nothing: list[list[tuple[str, ...]]] = [[()] * width] * batch
    unmet: Any = bound.names() if bound is not None else nothing
    return [
        [_candidate(*sampled) for sampled in zip(rows, values, names, strict=True)]
        for rows, values, names in zip(tokens, total.tolist(), unmet, strict=True)
    ]


class _Bound:
    """Constraint states of all samples: each is a study of one beam to the tracker, so that none waits for another.

    Shapes: R = B * K samples, M tokens looked at.
    """

    def __init__(
        self,
        constraints: Sequence[CompiledConstraints | None],
        settings: BeamSettings,
        device: torch.device,
        temperature: float,
    ) -> None:
        self.shape = (len(constraints), settings.num_beams)
        self.temperature = temperature
        rows = [entry for entry in constraints for _ in range(settings.num_beams)]
        self.tracker = Tracker(rows, settings, device)
        self.state = self.tracker.start(len(rows), 1)
        self.unmet = torch.zeros(len(rows), dtype=torch.long, device=device)

    def choose(self, drawn: Tensor, log_p: Tensor, step: int) -> Tensor:
        """The best draw of each sample that is allowed, (B, K); `drawn` and `log_p` are (B, K, V)."""
        drawn, log_p = drawn.flatten(0, 1), log_p.flatten(0, 1)  # (R, V)
        asked = self.tracker.advancing(self.state, step)  # (R, 1, A), -1 for none
        over = self.tracker.is_end[log_p.argmax(-1).clamp(max=len(self.tracker.is_end) - 1)]  # (R,)
        self.tracker.wait(self.state, torch.zeros_like(over[:, None], dtype=drawn.dtype), over[:, None])
        count = min(LOOKED_AT, drawn.shape[1])
        while True:
            tokens = drawn.topk(count)[1]
            if asked is not None:
                wanted = asked[:, 0]
                tokens = torch.cat([tokens, torch.where(wanted < 0, tokens[:, :1], wanted)], 1)
            before = self.state.pick(torch.zeros_like(tokens))
            live = drawn.gather(1, tokens) > float("-inf")
            ending = over[:, None].expand_as(tokens)
            after, allowed, _ = self.tracker.advance(before, tokens, log_p.gather(1, tokens), live, step, ending)
            if count == drawn.shape[1] or bool(allowed.any(1).all()):
                break
            count = min(16 * count, drawn.shape[1])
        worth = drawn.gather(1, tokens) + self.tracker.bonus(before, after, tokens) / self.temperature
        # Where nothing at all is allowed the best draw stands, and what it breaks is named.
        worth = torch.where(allowed.any(1, keepdim=True), worth.masked_fill(~allowed, float("-inf")), worth)
        best = worth.argmax(1, keepdim=True)
        self.state = after.pick(best)
        return tokens.gather(1, best).view(self.shape)

    def note_ends(self, ending: Tensor, ended: Tensor) -> None:
        """Keeps what the samples that end here, with an end token (`ended`) or cut off, do not hold; (B, K) each."""
        found = self.tracker.unmet(self.state, ~ended.reshape(-1, 1))[:, 0]
        self.unmet = torch.where(ending.reshape(-1), found, self.unmet)

    def names(self) -> list[list[tuple[str, ...]]]:
        """Names of what each sample does not hold."""
        found = [self.tracker.names(row, bits) for row, bits in enumerate(self.unmet.tolist())]
        width = self.shape[1]
        return [found[start : start + width] for start in range(0, len(found), width)]


def _nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """Log probabilities with the tail beyond `top_p` at minus infinity; the most probable token always stays."""
    if top_p >= 1:
        return log_p
    ordered, index = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    return log_p.masked_fill((before > top_p).gather(-1, index.argsort(-1)), float("-inf"))


def _candidate(row: list[int], log_probability: float, unmet: tuple[str, ...]) -> Candidate:
    tokens = tuple(token for token in row if token >= 0)
    return Candidate(tokens, log_probability / max(1, len(tokens)), log_probability, unmet)
