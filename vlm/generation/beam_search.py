"""Beam search over any causal LM: without constraints what transformers' `generate(num_beams=k)` returns, with them
what must hold.

The scoring, the order of answers and the three ways to stop early follow transformers 5 (`_beam_search`). Three things
differ. All beams of a step are one forward pass over a tree (`tree_cache.py`). Constraints look at the best offers of a
study only, and at more of them when they refused too many (`offers.py`), so a lexicon's size never enters a step. And
with terms that must appear, beams are shared out over how far they have come (`banks.py`).

Shapes: `B` studies, `K` beams, `C` offers that a study keeps, `T` new tokens, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm.generation.compiling import CompiledConstraints
from vlm.generation.ensemble_stepper import EnsembleStepper, Joint
from vlm.generation.judging import Judges
from vlm.generation.lean_llama import LeanLlamaStepper, supported
from vlm.generation.offers import NEVER, Offers, Proposer, Running
from vlm.generation.settings import BeamSettings, Candidate
from vlm.generation.trace import Recorder
from vlm.generation.tracker import Tracker
from vlm.generation.tree_cache import HuggingFaceStepper, Stepper, prompted
from vlm.generation.widening import widened
from vlm.types import InputError

__all__ = ["BeamSettings", "Candidate", "beam_search", "search"]

UNMET = -1.0e6
"""What each unmet constraint takes from a finished answer's place in the order; not from its score."""


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
    judges: Judges | None = None,
    trace: Recorder | None = None,
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
        judges: what finished sentences are held against while searching (`judging.py`); None for nothing.
        trace: notes every step (`trace.py`); None for no trace.

    Returns:
        For each study at most `num_beams` answers, best first: first those with the fewest constraints unmet, then by
        score.

    Raises:
        InputError: no prompt or two, padding on the right, shapes that don't fit, or a model that keeps a recurrent
            state.
    """
    if constraints is not None:
        studies = len(_check_prompt(inputs_embeds, input_ids))
        if len(constraints) != studies:
            raise InputError(
                f"{len(constraints)} constraints for {studies} prompts: give one for each (None for a prompt without)"
            )
    stepper = make_stepper(model, settings, inputs_embeds, input_ids, attention_mask, lean)
    return search(stepper, settings, constraints=constraints, prompt_ids=input_ids, judges=judges, trace=trace)


def make_stepper(
    model: nn.Module,
    settings: BeamSettings,
    inputs_embeds: Tensor | None,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    lean: bool = True,
) -> Stepper:
    """What gives the search its logits (arguments as in `beam_search`)."""
    prompt = _check_prompt(inputs_embeds, input_ids)
    if attention_mask is None:
        attention_mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
    _check_mask(attention_mask, prompt)
    if isinstance(model, Joint):  # its members have prompts of their own; the one that was given is the first's
        return EnsembleStepper([make_stepper(m, settings, e, None, a, lean) for m, e, a in model.parts])
    most = settings.num_beams, settings.max_new_tokens
    if lean and not prompted(model) and supported(model):
        return LeanLlamaStepper(model, inputs_embeds, input_ids, attention_mask, *most)
    wide = widened(model)
    if inputs_embeds is not None and wide is not model:
        inputs_embeds = inputs_embeds.to(wide.dtype)
    return HuggingFaceStepper(wide, inputs_embeds, input_ids, attention_mask, *most)


@torch.inference_mode()
def search(
    stepper: Stepper,
    settings: BeamSettings,
    *,
    constraints: Sequence[CompiledConstraints | None] | None = None,
    prompt_ids: Tensor | None = None,
    judges: Judges | None = None,
    trace: Recorder | None = None,
) -> list[list[Candidate]]:
    """The search itself, over whatever gives logits (arguments as in `beam_search`; prompt ids count in n-gram
    blocking)."""
    suppressed = list(settings.suppress_token_ids)
    logits = stepper.prefill()  # (B, V)
    logits[..., suppressed] = float("-inf")
    tracker = None
    if constraints is not None and any(entry is not None for entry in constraints):
        tracker = Tracker(constraints, settings, logits.device)
        tracker.tracing = trace is not None
    beams = _Beams(settings, logits, tracker, prompt_ids, judges, trace)
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
        self,
        settings: BeamSettings,
        logits: Tensor,
        tracker: Tracker | None,
        prompt_ids: Tensor | None,
        judges: Judges | None = None,
        trace: Recorder | None = None,
    ) -> None:
        batch, vocabulary = logits.shape
        width, device = settings.num_beams, logits.device
        self.settings, self.tracker = settings, tracker
        # One beam is greedy search, which ends at the first end token whatever the mode.
        self.first_wins = settings.early_stopping is True or width == 1
        self.ends = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self.ends[list(settings.eos_token_ids)] = True
        if judges is not None:
            judges = judges.to(device)
        self.trace = trace
        self.proposer = Proposer(settings, tracker, self.ends, prompt_ids, judges, trace)
        self.first = torch.arange(self.proposer.keep, device=device) < width  # (C,): only the best K may finish
        pad = settings.eos_token_ids[0] if settings.pad_token_id is None else settings.pad_token_id
        tokens = torch.full((batch, width, settings.max_new_tokens), pad, device=device)
        scores = torch.full((batch, width), NEVER, device=device)
        scores[:, 0] = 0.0
        tracked = tracker.start(batch, width) if tracker else None
        self.running = Running(tokens, scores, torch.zeros(batch, width, device=device), tracked)
        if judges is not None:
            self.running.paid = torch.zeros(batch, width, device=device)
        self.finished_tokens = self.running.tokens.clone()
        # Scores less a penalty for each unmet constraint, in float64 so that the penalty doesn't round them.
        self.finished_scores = torch.full((batch, width), NEVER, dtype=torch.float64, device=device)
        self.finished_logprobs = torch.zeros(batch, width, device=device)
        self.finished_lengths = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.finished_unmet = torch.zeros(batch, width, dtype=torch.long, device=device)  # bits
        self.finished = torch.zeros(batch, width, dtype=torch.bool, device=device)
        self.hopeful = torch.ones(batch, 1, dtype=torch.bool, device=device)  # running beams may still win
        self.last_tokens = self.running.tokens[:, :, 0]
        self.parents = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.all_hit = False

    def extend(self, logits: Tensor) -> None:
        """Choose the next token of every beam from `logits` (B, K or 1, V)."""
        width = self.settings.num_beams
        offers = self.proposer.propose(logits, self.running)
        hits = self.ends[offers.tokens]  # (B, C)
        if self.running.step + 1 == self.settings.max_new_tokens:
            hits = torch.ones_like(hits)
        hits = hits | (offers.scores == -math.inf)
        self._close_dead_ends(offers)
        running = offers.scores + hits * NEVER
        order = self._run_order(running)[:, :width]
        kept = offers.pick(order)
        self._finish(offers, hits)
        self.parents, self.last_tokens, self.running.tracked = kept.beams, kept.tokens, kept.tracked
        self.running.scores, self.running.logprobs = running.gather(1, order), kept.logprobs
        self.running.tokens = self.running.tokens.gather(1, kept.beams[:, :, None].expand_as(self.running.tokens))
        self.running.tokens[:, :, self.running.step] = kept.tokens
        self.running.step += 1
        self.running.paid = kept.paid
        if self.trace is not None:
            now = self.running
            self.trace.step(now.tokens, now.scores, now.step, now.tracked, self.tracker)
        self.all_hit = bool(hits.all())
        self._judge_hope()

    def _run_order(self, running: Tensor) -> Tensor:
        """The best running first; with terms that must appear, in the order in which banks took them."""
        if self.tracker is None or not self.tracker.has_must:
            return running.topk(self.settings.num_beams)[1]
        return (running <= NEVER / 2).to(torch.uint8).argsort(dim=-1, stable=True)

    def _finish(self, offers: Offers, hits: Tensor) -> None:
        """Take the answers that just ended among the K best offers into the pool of the K best answers."""
        settings = self.settings
        ended = hits & self.first[: hits.shape[1]] & (offers.scores > -math.inf)
        if not bool(ended.any()):
            return
        scores = (offers.scores / (self.running.step + 1) ** settings.length_penalty).double()
        unmet = torch.zeros_like(offers.tokens)
        if self.tracker is not None and offers.tracked is not None:
            unmet = self.tracker.unmet(offers.tracked, ~self.ends[offers.tokens])
            scores = scores + self.tracker.count(unmet) * UNMET
        full = self.finished.all(-1, keepdim=True) & self.first_wins
        scores = scores + (full | ~self.hopeful | ~ended) * NEVER
        scores, order = torch.cat([self.finished_scores, scores], 1).topk(settings.num_beams)
        grown = self.running.tokens.gather(
            1, offers.beams[:, :, None].expand(-1, -1, self.running.tokens.shape[-1])
        ).clone()
        grown[:, :, self.running.step] = offers.tokens
        tokens = torch.cat([self.finished_tokens, grown], 1)
        self.finished_tokens = tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[-1]))
        self.finished_scores = scores
        self.finished_logprobs = torch.cat([self.finished_logprobs, offers.logprobs], 1).gather(1, order)
        lengths = torch.full_like(offers.tokens, self.running.step + 1)
        self.finished_lengths = torch.cat([self.finished_lengths, lengths], 1).gather(1, order)
        self.finished_unmet = torch.cat([self.finished_unmet, unmet], 1).gather(1, order)
        self.finished = torch.cat([self.finished, ended], 1).gather(1, order)

    def _close_dead_ends(self, offers: Offers) -> None:
        """Where no beam can go on and nothing is finished, the best beam as it stands is the answer."""
        dead = (offers.scores == -math.inf).all(1) & ~self.finished.any(1)
        if self.running.step == 0 or self.tracker is None or self.running.tracked is None or not bool(dead.any()):
            return
        best = self.running.scores.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        self.finished[dead, 0] = True
        self.finished_tokens[dead, 0] = self.running.tokens[rows, best][dead]
        self.finished_lengths[dead, 0] = self.running.step
        self.finished_logprobs[dead, 0] = self.running.logprobs[rows, best][dead]
        unmet = self.tracker.unmet(self.running.tracked, torch.ones_like(self.running.tracked.met, dtype=torch.bool))[
            rows, best
        ]
        self.finished_unmet[dead, 0] = unmet[dead]
        scores = self.running.scores[rows, best].double() / self.running.step**self.settings.length_penalty
        self.finished_scores[dead, 0] = (scores + self.tracker.count(unmet) * UNMET)[dead]

    def _judge_hope(self) -> None:
        """Whether the best running beam could still beat the worst finished answer (transformers' heuristics)."""
        settings = self.settings
        exact = settings.early_stopping == "never" and settings.length_penalty > 0.0
        length = settings.max_new_tokens if exact else self.running.step
        best = self.running.scores[:, :1] / length**settings.length_penalty
        worst = self.finished_scores.amin(1, keepdim=True).where(self.finished, NEVER)
        self.hopeful = self.hopeful & (best > worst).any(-1, keepdim=True)

    def done(self) -> bool:
        """Whether no study can get a better answer."""
        stopped = bool(self.finished.all()) and self.first_wins
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
