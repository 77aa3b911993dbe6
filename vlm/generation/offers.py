"""Which continuations a step may choose from: the best of each study, less what constraints refuse, with what they ask
for.

Shapes: `B` studies, `K` beams, `M` tokens of a beam, `X` offers of a study, `C` of them kept, `A` asked for, `V`
vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.generation.banks import share_out
from vlm.generation.judging import Judges
from vlm.generation.settings import BeamSettings
from vlm.generation.trace import Recorder
from vlm.generation.tracked import Tracked
from vlm.generation.tracker import Tracker

NEVER = -1.0e9
"""Score of what can't be chosen; transformers' value, so that sums round alike."""

SPARE = 32
"""Offers of a study beyond what plain search can use, so that a few forbidden ones seldom mean a second look."""

BLOCK = 32
"""Tokens of a block, of which the best stands for all when the best offers are looked for."""

STUTTER = 20.0
"""Nats for repeating an n-gram of the sentence: dear, and not forbidden, for a required term may be in it."""

ASKED = 3
"""Offers that required terms may bring in, as a multiple of those kept."""


@dataclass(slots=True)
class Offers:
    """Continuations that the search may choose from: (B, X) each, X = K * M, or C once chosen."""

    scores: Tensor  # running score with soft weights, NEVER or less where not allowed
    logprobs: Tensor
    beams: Tensor
    tokens: Tensor
    tracked: Tracked | None = None
    paid: Tensor | None = None  # penalties of the judges, in the scores already

    def join(self, other: Offers, usable: Tensor) -> Offers:
        """These and the `usable` ones of others, both without constraint states."""
        scores = torch.cat([self.scores, other.scores.masked_fill(~usable, -math.inf)], 1)
        pairs = ((self.logprobs, other.logprobs), (self.beams, other.beams), (self.tokens, other.tokens))
        joined = [torch.cat(pair, 1) for pair in pairs]
        return Offers(scores, joined[0], joined[1], joined[2])

    def pick(self, index: Tensor) -> Offers:
        tracked = self.tracked.pick(index) if self.tracked else None
        scores, logprobs, beams, tokens = (
            f.gather(1, index) for f in (self.scores, self.logprobs, self.beams, self.tokens)
        )
        paid = None if self.paid is None else self.paid.gather(1, index)
        return Offers(scores, logprobs, beams, tokens, tracked, paid)


@dataclass(slots=True)
class Running:
    """The beams that go on.

    Args:
        tokens: (B, K, T) new tokens, filled up behind `step`.
        scores: (B, K) float32, log probability and soft weights.
        logprobs: (B, K) float32.
        tracked: their constraint states, (B, K).
        step: number of new tokens.
        paid: (B, K) float32, penalties of the judges, in the scores already; None without judges.
    """

    tokens: Tensor
    scores: Tensor
    logprobs: Tensor
    tracked: Tracked | None
    step: int = 0
    paid: Tensor | None = None


class Proposer:
    """Offers for every step of one search.

    Args:
        settings: of the search.
        tracker: its constraints, or None.
        ends: (V,) bool, the end tokens.
        prompt_ids: (B, N), counted in n-gram blocking; None for a prompt of embeddings.
        judges: who make contradictions cost; None for nobody.
        trace: who notes what was refused; None for nobody.
    """

    def __init__(
        self,
        settings: BeamSettings,
        tracker: Tracker | None,
        ends: Tensor,
        prompt_ids: Tensor | None,
        judges: Judges | None = None,
        trace: Recorder | None = None,
    ) -> None:
        self.judges, self.trace = judges, trace
        self.settings, self.tracker, self.ends, self.prompt_ids = settings, tracker, ends, prompt_ids
        self.keep = max(2, 1 + len(settings.eos_token_ids)) * settings.num_beams  # C
        self.closes = torch.zeros(len(ends), dtype=torch.bool, device=ends.device)  # (V,) tokens that end a sentence
        self.closes[[id for id in settings.sentence_end_ids if id < len(ends)]] = True

    def propose(self, logits: Tensor, beams: Running) -> Offers:
        """The C continuations that go on: from each beam's best tokens, and from those that a constraint asks for."""
        if logits.shape[1] == 1 and self.settings.num_beams > 1:
            logits = logits.expand(-1, self.settings.num_beams, -1)
        total = torch.logsumexp(logits, -1, keepdim=True)  # (B, K, 1)
        logits = self._block(logits, beams)
        if self.tracker is not None and beams.tracked is not None:
            return self._bound_offers(logits, total, beams, self.tracker, beams.tracked)
        wanted = self.keep + (SPARE if self.judges else 0)
        pool = self._pool(logits, total, beams, min(wanted, logits.shape[1] * logits.shape[-1]))
        pool.logprobs = pool.logprobs + beams.logprobs.gather(1, pool.beams)
        if self.judges is None:
            return pool
        self._judge(pool, beams, self.judges)
        return pool.pick(pool.scores.topk(min(self.keep, pool.scores.shape[1]))[1])

    def _judge(self, offers: Offers, beams: Running, judges: Judges) -> None:
        """Let the best offers pay for what they contradict."""
        assert beams.paid is not None
        before = beams.paid.gather(1, offers.beams)
        paid, read = before.clone(), torch.zeros_like(before, dtype=torch.bool)
        most = min(2 * self.keep, offers.scores.shape[1])
        while True:  # what moves up where others pay is read too
            scores = offers.scores - (paid - before)
            live = (scores >= scores.topk(most)[0][:, -1:]) & (scores > NEVER / 2) & ~read
            if not bool(live.any()):
                break
            said = judges.penalties(beams.paid, beams.tokens, beams.step, offers.beams, offers.tokens, live, self.ends)
            paid, read = torch.where(live, said, paid), read | live
        more = paid - before
        if self.trace is not None:
            reasons = {"contradiction": more > 0}
            self.trace.refused(beams.tokens, beams.step, offers.beams, offers.tokens, offers.scores, reasons)
        offers.scores = offers.scores - more
        offers.paid = paid

    def _pool(self, logits: Tensor, total: Tensor, beams: Running, count: int) -> Offers:
        """The best `count` continuations of each study, best first.

        The best lie in the `count` blocks of tokens whose best one is best, so no beam's whole vocabulary is sorted.
        """
        batch, _, vocabulary = logits.shape
        shift = beams.scores[:, :, None]
        blocks = vocabulary // BLOCK
        if count >= blocks:
            scores = (logits - total + shift).flatten(1)  # (B, K * V)
            scores, order = scores.topk(min(count, scores.shape[1]))
            own, tokens = order // vocabulary, order % vocabulary
        else:
            whole = logits[..., : blocks * BLOCK].unflatten(-1, (blocks, BLOCK))
            best = whole.amax(-1) - total + shift  # (B, K, blocks)
            chosen = best.flatten(1).topk(count, sorted=False)[1]  # (B, count)
            rows, block = chosen // blocks, chosen % blocks
            place = torch.arange(batch, device=logits.device)[:, None]
            inside = whole[place, rows, block] - total[place, rows] + shift[place, rows]  # (B, count, BLOCK)
            # The last tokens, which fill no block, stand behind.
            tail = logits[..., blocks * BLOCK :] - total + shift
            scores, order = torch.cat([inside.flatten(1), tail.flatten(1)], 1).topk(count)
            rest = max(1, vocabulary - blocks * BLOCK)
            spot, beyond = order // BLOCK, order - count * BLOCK
            spot = spot.clamp(max=count - 1)
            in_block = order < count * BLOCK
            own = torch.where(in_block, rows.gather(1, spot), beyond // rest)
            tokens = torch.where(
                in_block, block.gather(1, spot) * BLOCK + order % BLOCK, blocks * BLOCK + beyond % rest
            )
        logprobs = logits[torch.arange(batch, device=logits.device)[:, None], own, tokens] - total[..., 0].gather(
            1, own
        )
        return Offers(scores, logprobs, own, tokens)  # logprobs are the tokens' own here

    def _bound_offers(
        self, logits: Tensor, total: Tensor, beams: Running, tracker: Tracker, tracked: Tracked
    ) -> Offers:
        """The C continuations that go on under constraints: of the best ones, and of those that a constraint asks for.

        A study of whose best too many are refused gets four times as many, so what is kept is what a search through
        the whole vocabulary would keep.
        """
        size = logits.shape[1] * logits.shape[-1]
        wanted = min(size, self.keep)
        count = min(size, wanted + SPARE)
        enough = torch.full((len(logits),), count, device=logits.device)  # (B,) offers that each study looks at
        likeliest = logits.argmax(-1, keepdim=True) if tracker.has_must else None
        over = None if likeliest is None else self.ends[likeliest[..., 0]]  # (B, K)
        if over is not None:
            tracker.wait(tracked, beams.scores, over)
        asked = self._asked(logits, total, beams, tracker, tracked, likeliest)
        looked: Tensor | None = None  # which offers each study looks at; None for all
        while True:
            pool = self._pool(logits, total, beams, count)
            least = pool.scores[:, -1:] if looked is None else pool.scores.gather(1, enough[:, None] - 1)
            offers = pool if asked is None else pool.join(asked, asked.scores < least)
            before = tracked.pick(offers.beams)
            live = offers.scores > NEVER / 2
            if looked is not None:  # what another study looks at further down is no way out for this one
                live[:, :count] &= looked
            after, allowed, banned = tracker.advance(
                before, offers.tokens, offers.logprobs, live, beams.step,
                None if over is None else over.gather(1, offers.beams),
            )  # fmt: skip
            refused = banned[:, :count] & (pool.scores > NEVER / 2)
            lost = (refused if looked is None else refused & looked).sum(1)
            short = (lost > enough - wanted) & (enough < size)
            if not bool(short.any()):
                break
            enough = torch.where(short, (4 * enough).clamp(max=size), enough)
            count = int(enough.max())
            looked = torch.arange(count, device=logits.device) < enough[:, None]
        if looked is not None:
            allowed[:, :count] &= looked  # of a study without constraints too
        offered = offers.scores
        bonus = tracker.bonus(before, after, offers.tokens)
        offers.scores = offers.scores.masked_fill(~allowed, -math.inf) + bonus
        offers.logprobs = offers.logprobs + beams.logprobs.gather(1, offers.beams)
        offers.tracked = after
        if self.trace is not None:
            self.trace.refused(beams.tokens, beams.step, offers.beams, offers.tokens, offered, tracker.refused)
        if self.judges is not None:
            self._judge(offers, beams, self.judges)
        if tracker.has_must:
            return offers.pick(share_out(offers.scores, tracker.levels(after), tracker.max_level, self.keep))
        return offers.pick(offers.scores.topk(min(self.keep, offers.scores.shape[1]))[1])

    def _asked(
        self,
        logits: Tensor,
        total: Tensor,
        beams: Running,
        tracker: Tracker,
        tracked: Tracked,
        likeliest: Tensor | None,
    ) -> Offers | None:
        """Each beam's best token and the tokens that bring a missing required term on; the best of them."""
        tokens = tracker.advancing(tracked, beams.step)  # (B, K, A), -1 for none
        if tokens is None:
            return None
        likeliest = logits.argmax(-1, keepdim=True) if likeliest is None else likeliest
        tokens = torch.cat([likeliest.masked_fill(~tracker.asks(beams.step)[:, None, None], -1), tokens], -1)
        tokens[..., 1:].masked_fill_(tokens[..., 1:] == tokens[..., :1], -1)
        logprobs = logits.gather(-1, tokens.clamp(min=0)) - total
        scores = (logprobs + beams.scores[:, :, None]).masked_fill(tokens < 0, -math.inf).flatten(1)
        # Near the end it may be any of them that is still in time.
        most = max(32, ASKED * self.keep)
        late = tracker.is_late(beams.step)
        scores, order = scores.topk(scores.shape[1] if late else min(most, scores.shape[1]))
        if late:
            scores[:, most:] = scores[:, most:].masked_fill(~tracker.late(beams.step)[:, None], -math.inf)
        own = torch.arange(tokens.shape[1], device=tokens.device)[None, :, None].expand_as(tokens)
        chosen = [field.flatten(1).gather(1, order) for field in (logprobs, own, tokens.clamp(min=0))]
        return Offers(scores, chosen[0], chosen[1], chosen[2])

    def _block(self, logits: Tensor, beams: Running) -> Tensor:
        """Logits without end tokens before the minimum length and without tokens that would repeat an n-gram."""
        size = self.settings.no_repeat_ngram_size
        if beams.step < self.settings.min_new_tokens:
            if beams.step == 0:  # all beams are one there, and share their logits
                logits = logits.masked_fill(self.ends, -math.inf)
            else:
                logits[..., list(self.settings.eos_token_ids)] = -math.inf
        logits = self._unstutter(logits, beams)
        history = beams.tokens[:, :, : beams.step]
        if size and self.prompt_ids is not None:
            prompt = self.prompt_ids[:, None].expand(-1, history.shape[1], -1)
            history = torch.cat([prompt, history], -1)
        if not size or history.shape[-1] < size:
            return logits
        repeated, last = _again(history, size)
        banned = torch.zeros(*logits.shape[:-1], logits.shape[-1] + 1, dtype=torch.bool, device=logits.device)
        banned.scatter_(-1, last.where(repeated, logits.shape[-1]), True)
        return logits.masked_fill(banned[..., :-1], -math.inf)

    def _unstutter(self, logits: Tensor, beams: Running) -> Tensor:
        """Logits with a price on tokens that repeat an n-gram of their sentence."""
        size, step = self.settings.no_repeat_in_sentence, beams.step
        if not size or step < size:
            return logits
        history = beams.tokens[:, :, :step]
        closed = self.closes[history.clamp(max=len(self.closes) - 1)]
        # The sentence begins behind the last token that ended one.
        begun = (closed * torch.arange(1, step + 1, device=history.device)).amax(-1, keepdim=True)
        repeated, last = _again(history, size)
        study, beam, place = (repeated & (torch.arange(step + 1 - size, device=begun.device) >= begun)).nonzero(
            as_tuple=True
        )
        tokens = last[study, beam, place]
        logits[study, beam, tokens] = logits[study, beam, tokens] - STUTTER  # the same one twice pays once
        return logits


def _again(history: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which n-grams of the history (B, K, T) begin as it ends, (B, K, T - n + 1) bool, and the last token of each."""
    windows = history.unfold(-1, size, 1)  # (B, K, W, n)
    prefix = history[..., history.shape[-1] + 1 - size :]
    return (windows[..., :-1] == prefix[:, :, None]).all(-1), windows[..., -1]
