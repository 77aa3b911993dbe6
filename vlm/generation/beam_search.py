"""Beam search over any causal LM: without constraints what transformers' `generate(num_beams=k)` returns, with them
what must hold.

The scoring, the order of hypotheses and the three ways to stop early follow transformers 5
(`GenerationMixin._beam_search`). Three things differ. All beams of a step are one forward pass over a tree
(`tree_cache.py`). Each beam offers its best tokens only, and more of them when constraints took too many away, so a
lexicon's size never enters a step. And with terms that must appear, beams are shared out over how far they have come
(`banks.py`; dynamic beam allocation, Post and Vilar 2018).

Shapes: `B` studies, `K` beams, `M` tokens that a beam offers, `C` candidates that a study keeps, `T` new tokens, `V`
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vlm.generation.banks import share_out
from vlm.generation.compiling import CompiledConstraints
from vlm.generation.lean_llama import LeanLlamaStepper, supported
from vlm.generation.tracker import Tracked, Tracker
from vlm.generation.tree_cache import HuggingFaceStepper, Stepper
from vlm.types import InputError

NEVER = -1.0e9
"""Score of what can't be chosen; transformers' value, so that sums round alike."""

UNMET = -1.0e6
"""What each unmet constraint takes from a finished answer's place in the order; not from its score."""

SPARE = 32
"""Offers of a study beyond what plain search can use, so that a few forbidden ones seldom mean a second look."""

ASKED = 3
"""Offers that required terms may bring in, as a multiple of those kept."""


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """How to search.

    Args:
        num_beams: width, 1 or more.
        max_new_tokens: longest answer, the end token counted.
        min_new_tokens: no end token before this many.
        length_penalty: exponent of the length by which a finished log probability is divided; above 0 favours long
            answers.
        early_stopping: True stops at `num_beams` finished answers, False by transformers' estimate, "never" by the
            exact bound.
        no_repeat_ngram_size: n-grams of tokens of this size occur once; 0 for no such rule.
        eos_token_ids: any of them ends an answer.
        pad_token_id: fills up; None for the first end token.
        suppress_token_ids: never written (the de-identifier's mark, say).

    Raises:
        InputError: a value out of its range.
    """

    num_beams: int = 4
    max_new_tokens: int = 120
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: int = 0
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    suppress_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise InputError(f"num_beams is {self.num_beams}: it must be 1 or more")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}: it must be 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(
                f"min_new_tokens is {self.min_new_tokens}: it must lie in 0..{self.max_new_tokens} (max_new_tokens)"
            )
        if not math.isfinite(self.length_penalty):
            raise InputError(f"length_penalty is {self.length_penalty}: it must be a finite number")
        if self.no_repeat_ngram_size < 0:
            raise InputError(f"no_repeat_ngram_size is {self.no_repeat_ngram_size}: it must be 0 (off) or more")
        if self.early_stopping not in (True, False, "never"):
            raise InputError(f"early_stopping is {self.early_stopping!r}: it must be true, false or 'never'")
        if not self.eos_token_ids:
            raise InputError(
                "eos_token_ids is empty: the search needs a token that ends an answer; give the tokenizer one"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer.

    Args:
        tokens: new tokens, the end token included when there is one (`decode(..., skip_special_tokens=True)` drops it).
        score: what answers are ordered by, (logprob + soft weights) / length ** length_penalty.
        logprob: sum of the tokens' log probabilities.
        unmet: names of the constraints that it does not hold.
    """

    tokens: tuple[int, ...]
    score: float
    logprob: float
    unmet: tuple[str, ...] = ()


@dataclass(slots=True)
class _Offers:
    """Continuations that the search may choose from: (B, X) each, X = K * M, or C once chosen."""

    scores: Tensor  # running score with soft weights, NEVER or less where not allowed
    logprobs: Tensor
    beams: Tensor
    tokens: Tensor
    tracked: Tracked | None = None

    def join(self, other: _Offers, usable: Tensor) -> _Offers:
        """These and the `usable` ones of others, both without constraint states."""
        scores = torch.cat([self.scores, other.scores.masked_fill(~usable, -math.inf)], 1)
        pairs = ((self.logprobs, other.logprobs), (self.beams, other.beams), (self.tokens, other.tokens))
        joined = [torch.cat(pair, 1) for pair in pairs]
        return _Offers(scores, joined[0], joined[1], joined[2])

    def pick(self, index: Tensor) -> _Offers:
        tracked = self.tracked.pick(index) if self.tracked else None
        scores, logprobs, beams, tokens = (
            f.gather(1, index) for f in (self.scores, self.logprobs, self.beams, self.tokens)
        )
        return _Offers(scores, logprobs, beams, tokens, tracked)


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    settings: BeamSettings,
    *,
    inputs_embeds: Tensor | None = None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    constraints: Sequence[CompiledConstraints | None] | None = None,
    lean: bool = True,
) -> list[list[Candidate]]:
    """Answers of a causal LM to a batch of prompts.

    Args:
        model: a Hugging Face causal LM in evaluation mode, PEFT-wrapped or not.
        settings: how to search.
        inputs_embeds: (B, N, D) prompt; or
        input_ids: (B, N) int64 prompt.
        attention_mask: (B, N), 0 at left padding; None when nothing is padded.
        constraints: one entry a study, None for a study without; None for none at all.
        lean: take the short way through Llama-shaped models (`lean_llama.py`); False for the model's own forward.

    Returns:
        For each study at most `num_beams` answers, best first: first those with the fewest constraints unmet, then by
        score.

    Raises:
        InputError: no prompt or two, padding on the right, shapes that don't fit, or a model that keeps a recurrent
            state.
    """
    prompt = _check_prompt(inputs_embeds, input_ids)
    if attention_mask is None:
        attention_mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
    _check_mask(attention_mask, prompt)
    if constraints is not None and len(constraints) != len(prompt):
        raise InputError(
            f"{len(constraints)} constraints for {len(prompt)} prompts: give one for each (None for a prompt without)"
        )
    width, length = settings.num_beams, settings.max_new_tokens
    kind = LeanLlamaStepper if lean and supported(model) else HuggingFaceStepper
    stepper = kind(model, inputs_embeds, input_ids, attention_mask, width, length)
    return search(stepper, settings, constraints=constraints, prompt_ids=input_ids)


@torch.inference_mode()
def search(
    stepper: Stepper,
    settings: BeamSettings,
    *,
    constraints: Sequence[CompiledConstraints | None] | None = None,
    prompt_ids: Tensor | None = None,
) -> list[list[Candidate]]:
    """The search itself, over whatever gives logits (arguments as in `beam_search`; prompt ids count in n-gram
    blocking)."""
    suppressed = list(settings.suppress_token_ids)
    logits = stepper.prefill()  # (B, V)
    logits[..., suppressed] = float("-inf")
    tracker = None
    if constraints is not None and any(entry is not None for entry in constraints):
        tracker = Tracker(constraints, settings, logits.device)
    beams = _Beams(settings, logits, tracker, prompt_ids)
    logits = logits[:, None]  # (B, 1, V): before the first token all beams are one
    while True:
        beams.extend(logits)
        if beams.done():
            return beams.answers()
        logits = stepper.step(beams.last_tokens, beams.parents)
        logits[..., suppressed] = float("-inf")


class _Beams:
    """Running beams and finished answers of all studies."""

    def __init__(
        self, settings: BeamSettings, logits: Tensor, tracker: Tracker | None, prompt_ids: Tensor | None
    ) -> None:
        batch, vocabulary = logits.shape
        width, device = settings.num_beams, logits.device
        self.settings, self.tracker, self.step = settings, tracker, 0
        self.ends = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self.ends[list(settings.eos_token_ids)] = True
        self.keep = max(2, 1 + len(settings.eos_token_ids)) * width  # C
        self.first = torch.arange(self.keep, device=device) < width  # (C,): only the best K may finish
        self.prompt_ids = prompt_ids
        pad = settings.eos_token_ids[0] if settings.pad_token_id is None else settings.pad_token_id
        self.tokens = torch.full((batch, width, settings.max_new_tokens), pad, device=device)
        self.scores = torch.full((batch, width), NEVER, device=device)
        self.scores[:, 0] = 0.0
        self.logprobs = torch.zeros(batch, width, device=device)
        self.tracked = tracker.start(batch, width) if tracker else None
        self.finished_tokens = self.tokens.clone()
        self.finished_scores = torch.full(
            (batch, width), NEVER, dtype=torch.float64, device=device
        )  # minus a penalty for each unmet constraint
        self.finished_logprobs = torch.zeros(batch, width, device=device)
        self.finished_lengths = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.finished_unmet = torch.zeros(batch, width, dtype=torch.long, device=device)  # bits
        self.finished = torch.zeros(batch, width, dtype=torch.bool, device=device)
        self.hopeful = torch.ones(batch, 1, dtype=torch.bool, device=device)  # running beams may still win
        self.last_tokens = self.tokens[:, :, 0]
        self.parents = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.all_hit = False

    def extend(self, logits: Tensor) -> None:
        """Choose the next token of every beam from `logits` (B, K or 1, V)."""
        width = self.settings.num_beams
        offers = self._offers(logits)
        hits = self.ends[offers.tokens]  # (B, C)
        if self.step + 1 == self.settings.max_new_tokens:
            hits = torch.ones_like(hits)
        hits = hits | (offers.scores == -math.inf)
        self._close_dead_ends(offers)
        running = offers.scores + hits * NEVER
        order = self._run_order(running)[:, :width]
        kept = offers.pick(order)
        self._finish(offers, hits)
        self.parents, self.last_tokens, self.tracked = kept.beams, kept.tokens, kept.tracked
        self.scores, self.logprobs = running.gather(1, order), kept.logprobs
        self.tokens = self.tokens.gather(1, kept.beams[:, :, None].expand_as(self.tokens))
        self.tokens[:, :, self.step] = kept.tokens
        self.step += 1
        self.all_hit = bool(hits.all())
        self._judge_hope()

    def _run_order(self, running: Tensor) -> Tensor:
        """The best running first; with terms that must appear, in the order in which banks took them."""
        if self.tracker is None or not self.tracker.has_must:
            return running.topk(self.settings.num_beams)[1]
        return (running <= NEVER / 2).to(torch.uint8).argsort(dim=-1, stable=True)

    def _offers(self, logits: Tensor) -> _Offers:
        """The C continuations that go on: from each beam's best tokens, and from those that a constraint asks for."""
        if logits.shape[1] == 1 and self.settings.num_beams > 1:
            logits = logits.expand(-1, self.settings.num_beams, -1)
        total = torch.logsumexp(logits, -1, keepdim=True)  # (B, K, 1)
        logits = self._block(logits)
        if self.tracker is not None and self.tracked is not None:
            return self._bound_offers(logits, total, self.tracker, self.tracked)
        pool = self._pool(logits, total, min(self.keep, logits.shape[1] * logits.shape[-1]))
        pool.logprobs = pool.logprobs + self.logprobs.gather(1, pool.beams)
        return pool

    def _pool(self, logits: Tensor, total: Tensor, count: int) -> _Offers:
        """The best `count` continuations of each study, best first."""
        values, tokens = logits.topk(min(count, logits.shape[-1]), dim=-1)  # (B, K, M)
        logprobs = values - total
        beams = torch.arange(tokens.shape[1], device=tokens.device)[None, :, None].expand_as(tokens)
        scores, order = (logprobs + self.scores[:, :, None]).flatten(1).topk(min(count, tokens[0].numel()))
        chosen = [field.flatten(1).gather(1, order) for field in (logprobs, beams, tokens)]
        return _Offers(scores, chosen[0], chosen[1], chosen[2])  # logprobs are the tokens' own here

    def _bound_offers(self, logits: Tensor, total: Tensor, tracker: Tracker, tracked: Tracked) -> _Offers:
        """The C continuations that go on under constraints: of the best ones, and of those that a constraint asks for.

        A study of whose best too many are refused gets four times as many, so what is kept is what a search through
        the whole vocabulary would keep.
        """
        size = logits.shape[1] * logits.shape[-1]
        wanted = min(size, self.keep)
        count = min(size, wanted + SPARE)
        enough = torch.full((len(logits),), count, device=logits.device)  # (B,) offers that each study looks at
        asked = self._asked(logits, total, tracker, tracked)
        while True:
            pool = self._pool(logits, total, count)
            looked = torch.arange(count, device=logits.device) < enough[:, None]
            least = pool.scores.gather(1, enough[:, None] - 1)
            offers = pool if asked is None else pool.join(asked, asked.scores < least)
            before = tracked.pick(offers.beams)
            after, allowed, banned = tracker.advance(
                before, offers.tokens, offers.logprobs, offers.scores > NEVER / 2, self.step
            )
            lost = (banned[:, :count] & looked & (pool.scores > NEVER / 2)).sum(1)
            short = (lost > enough - wanted) & (enough < size)
            if not bool(short.any()):
                break
            enough = torch.where(short, (4 * enough).clamp(max=size), enough)
            count = int(enough.max())
        allowed[:, :count] &= looked
        bonus = tracker.bonus(before, after, offers.tokens)
        offers.scores = offers.scores.masked_fill(~allowed, -math.inf) + bonus
        offers.logprobs = offers.logprobs + self.logprobs.gather(1, offers.beams)
        offers.tracked = after
        if tracker.has_must:
            return offers.pick(share_out(offers.scores, tracker.levels(after), tracker.max_level, self.keep))
        return offers.pick(offers.scores.topk(min(self.keep, offers.scores.shape[1]))[1])

    def _asked(self, logits: Tensor, total: Tensor, tracker: Tracker, tracked: Tracked) -> _Offers | None:
        """Each beam's best token and the tokens that bring a missing required term on; the best of them."""
        tokens = tracker.advancing(tracked, self.step)  # (B, K, A), -1 for none
        if tokens is None:
            return None
        tokens = torch.cat([logits.argmax(-1, keepdim=True), tokens], -1)
        tokens[..., 1:].masked_fill_(tokens[..., 1:] == tokens[..., :1], -1)
        logprobs = logits.gather(-1, tokens.clamp(min=0)) - total
        scores = (logprobs + self.scores[:, :, None]).masked_fill(tokens < 0, -math.inf).flatten(1)
        # Near the end it may be any of them that is still in time.
        most = scores.shape[1] if tracker.is_late(self.step) else max(32, ASKED * self.keep)
        scores, order = scores.topk(min(most, scores.shape[1]))
        beams = torch.arange(tokens.shape[1], device=tokens.device)[None, :, None].expand_as(tokens)
        chosen = [field.flatten(1).gather(1, order) for field in (logprobs, beams, tokens.clamp(min=0))]
        return _Offers(scores, chosen[0], chosen[1], chosen[2])

    def _block(self, logits: Tensor) -> Tensor:
        """Logits without end tokens before the minimum length and without tokens that would repeat an n-gram."""
        size = self.settings.no_repeat_ngram_size
        early = self.step < self.settings.min_new_tokens
        if early:
            logits = logits.masked_fill(self.ends, -math.inf)
        history = self.tokens[:, :, : self.step]
        if size and self.prompt_ids is not None:
            prompt = self.prompt_ids[:, None].expand(-1, history.shape[1], -1)
            history = torch.cat([prompt, history], -1)
        if not size or history.shape[-1] < size:
            return logits
        windows = history.unfold(-1, size, 1)  # (B, K, W, n)
        prefix = history[..., history.shape[-1] + 1 - size :]
        repeated = (windows[..., :-1] == prefix[:, :, None]).all(-1)
        spare = logits.shape[-1]
        banned = torch.zeros(*logits.shape[:-1], spare + 1, dtype=torch.bool, device=logits.device)
        banned.scatter_(-1, windows[..., -1].where(repeated, spare), True)
        return logits.masked_fill(banned[..., :spare], -math.inf)

    def _finish(self, offers: _Offers, hits: Tensor) -> None:
        """Take the answers that just ended among the K best offers into the pool of the K best answers."""
        settings = self.settings
        ended = hits & self.first[: hits.shape[1]] & (offers.scores > -math.inf)
        scores = (offers.scores / (self.step + 1) ** settings.length_penalty).double()
        unmet = torch.zeros_like(offers.tokens)
        if self.tracker is not None and offers.tracked is not None:
            unmet = self.tracker.unmet(offers.tracked, ~self.ends[offers.tokens])
            scores = scores + self.tracker.count(unmet) * UNMET
        full = self.finished.all(-1, keepdim=True) & (settings.early_stopping is True)
        scores = scores + (full | ~self.hopeful | ~ended) * NEVER
        scores, order = torch.cat([self.finished_scores, scores], 1).topk(settings.num_beams)
        grown = self.tokens.gather(1, offers.beams[:, :, None].expand(-1, -1, self.tokens.shape[-1])).clone()
        grown[:, :, self.step] = offers.tokens
        tokens = torch.cat([self.finished_tokens, grown], 1)
        self.finished_tokens = tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[-1]))
        self.finished_scores = scores
        self.finished_logprobs = torch.cat([self.finished_logprobs, offers.logprobs], 1).gather(1, order)
        lengths = torch.full_like(offers.tokens, self.step + 1)
        self.finished_lengths = torch.cat([self.finished_lengths, lengths], 1).gather(1, order)
        self.finished_unmet = torch.cat([self.finished_unmet, unmet], 1).gather(1, order)
        self.finished = torch.cat([self.finished, ended], 1).gather(1, order)

    def _close_dead_ends(self, offers: _Offers) -> None:
        """Where no beam can go on and nothing is finished, the best beam as it stands is the answer."""
        dead = (offers.scores == -math.inf).all(1) & ~self.finished.any(1)
        if self.step == 0 or self.tracker is None or self.tracked is None or not bool(dead.any()):
            return
        best = self.scores.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        self.finished[dead, 0] = True
        self.finished_tokens[dead, 0] = self.tokens[rows, best][dead]
        self.finished_lengths[dead, 0] = self.step
        self.finished_logprobs[dead, 0] = self.logprobs[rows, best][dead]
        unmet = self.tracker.unmet(self.tracked, torch.ones_like(self.tracked.met, dtype=torch.bool))[rows, best]
        self.finished_unmet[dead, 0] = unmet[dead]
        scores = self.scores[rows, best].double() / self.step**self.settings.length_penalty
        self.finished_scores[dead, 0] = (scores + self.tracker.count(unmet) * UNMET)[dead]

    def _judge_hope(self) -> None:
        """Whether the best running beam could still beat the worst finished answer (transformers' heuristics)."""
        settings = self.settings
        exact = settings.early_stopping == "never" and settings.length_penalty > 0.0
        length = settings.max_new_tokens if exact else self.step
        best = self.scores[:, :1] / length**settings.length_penalty
        worst = self.finished_scores.amin(1, keepdim=True).where(self.finished, NEVER)
        self.hopeful = self.hopeful & (best > worst).any(-1, keepdim=True)

    def done(self) -> bool:
        """Whether no study can get a better answer."""
        stopped = bool(self.finished.all()) and self.settings.early_stopping is True
        return self.all_hit or stopped or not bool(self.hopeful.any())

    def answers(self) -> list[list[Candidate]]:
        """The finished answers of each study, best first."""
        scores = self.finished_scores
        if self.tracker is not None:
            scores = scores - self.tracker.count(self.finished_unmet) * UNMET
        found: list[list[Candidate]] = []
        for study in range(len(scores)):
            rows = []
            for beam in range(self.settings.num_beams):
                if not self.finished[study, beam]:
                    continue
                unmet = int(self.finished_unmet[study, beam])
                rows.append(
                    Candidate(
                        tuple(self.finished_tokens[study, beam, : int(self.finished_lengths[study, beam])].tolist()),
                        float(scores[study, beam]),
                        float(self.finished_logprobs[study, beam]),
                        self.tracker.names(study, unmet) if self.tracker else (),
                    )
                )
            found.append(rows)
        return found


def _check_prompt(inputs_embeds: Tensor | None, input_ids: Tensor | None) -> Tensor:
    if (inputs_embeds is None) == (input_ids is None):
        raise InputError("give the prompt either as inputs_embeds (B, N, D) or as input_ids (B, N)")
    prompt = inputs_embeds if inputs_embeds is not None else input_ids
    assert prompt is not None
    if prompt.dim() != (3 if inputs_embeds is not None else 2) or prompt.shape[1] == 0:
        raise InputError(
            f"prompt of shape {tuple(prompt.shape)}: it must be (B, N, D) embeddings or (B, N) ids with N > 0"
        )
    return prompt


def _check_mask(attention_mask: Tensor, prompt: Tensor) -> None:
    if attention_mask.shape != prompt.shape[:2]:
        raise InputError(f"attention_mask of shape {tuple(attention_mask.shape)}: it must be {tuple(prompt.shape[:2])}")
    if not bool(attention_mask[:, -1].all()):
        raise InputError(
            "attention_mask ends in 0: pad prompts on the left, so that every prompt ends where its answer begins"
        )
