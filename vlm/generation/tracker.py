"""Constraint states of all beams at once: a function of the tokens alone, held in tensors, advanced for every offer of
a step.

A step walks the bytes of the offered tokens through the tables of `compiling.py`: a loop over the bytes of the longest
token, never over beams, studies or the vocabulary. A lexicon's size shows only in the size of the tables.

Shapes: `B` studies, `K` beams, `M` offers a beam, `X` = K * M, `L` bytes of a token, `Q` sets with a bit, `R`
remembered sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.generation.negation import FORBIDDEN, STOP, UNDENIED
from vlm.generation.tables import ConstraintTables

REMEMBERED = 32
"""Sentences of a report that are compared with a new one."""

CLOSING = 2
"""Tokens kept free, where the length allows it, to end the sentence that holds the last required term."""

GLUED = -10.0
"""Nats for denying a required term, which only another ending of the word can save ("no effusion" -> "no
effusionable"), and for
such an ending: a way out, but only where there is no other."""

CAUGHT = -5.0
"""Nats for writing a forbidden term that a denial must follow ("effusion is not seen")."""

LAST_CALL = 16
"""Tokens before the last moment from which on a new sentence must begin with a missing required term."""

PLAUSIBLE = -5.0
"""Log probability from which on a required term may begin inside a sentence; at a sentence's start it always may."""


@dataclass(slots=True)
class Tracked:
    """Constraint state of each beam or offer, (B, ...) int64 each.

    Args:
        terms: state of the study's term automaton, offset by the study's place in the stacked tables.
        assertion: state of the study's negation automaton, offset likewise.
        met: bits of the sets that the text holds.
        sentence: hash of the sentence being written.
        written: (B, ..., R) hashes of the sentences before it, 0 where there is none.
    """

    terms: Tensor
    assertion: Tensor
    met: Tensor
    sentence: Tensor
    written: Tensor

    def pick(self, index: Tensor) -> Tracked:
        """Entries `index` (B, C) of (B, X)."""
        terms, assertion, met, sentence = (
            f.gather(1, index) for f in (self.terms, self.assertion, self.met, self.sentence)
        )
        wide = index[:, :, None].expand(-1, -1, self.written.shape[-1])
        return Tracked(terms, assertion, met, sentence, self.written.gather(1, wide))


class Tracker(ConstraintTables):
    """States of a batch's beams under its constraints."""

    def start(self, batch: int, width: int) -> Tracked:
        """State before the first token."""
        zeros = torch.zeros(batch, width, dtype=torch.long, device=self.device)
        written = torch.zeros(batch, width, REMEMBERED if self.remembers else 1, dtype=torch.long, device=self.device)
        terms, assertion = self.term_start[:, None] + zeros, self.assertion_start[:, None] + zeros
        return Tracked(terms, assertion, zeros, zeros, written)

    def advance(
        self, state: Tracked, tokens: Tensor, logprobs: Tensor, live: Tensor, step: int
    ) -> tuple[Tracked, Tensor, Tensor]:
        """States behind every offered token: `tokens`, their `logprobs`, and whether their beam is `live`; (B, X) each.

        Returns:
            The states, (B, X); which offers are allowed; and which were refused for what they write (not for being
            late).
        """
        size = len(self.lengths)
        silent = (tokens >= size) | (
            self.lengths[tokens.clamp(max=size - 1)] == 0
        )  # special tokens: they would fill up the length
        tokens = tokens.clamp(max=size - 1)
        terms, assertion, met = self._walk(state, self.bytes[tokens], int(self.lengths[tokens].max()))
        sentence, written, repeated = self._sentences(state, tokens)
        after = Tracked(terms, assertion, met, sentence, written)
        banned = self.broken[assertion] | repeated | silent
        missing = self.hard[:, None] & ~met  # (B, X)
        banned = banned | (self.is_end[tokens] & (missing != 0))
        if step + 1 == self.settings.max_new_tokens:
            banned = banned | (self._breaks_at_end(after) & ~self.is_end[tokens])
        banned = banned & ~self.free[:, None]
        allowed = ~banned & (live | self.free[:, None])
        if self.has_must or self.forbids:
            allowed = self._in_time(
                state, after, missing, allowed, self._apt(state, after, tokens, logprobs), tokens, step
            )
        return after, allowed, banned

    def _walk(self, state: Tracked, pieces: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Read the bytes `pieces` (B, X, L); states (B, X) behind them."""
        pieces = pieces[..., :longest].movedim(-1, 0).long()  # (L, B, X)
        term_class = self.term_classes.flatten()[self.which[:, None] * 257 + pieces]
        class_ = self.assertion_classes[pieces]
        boundary = self.boundary[class_]
        events_width, classes_width = self.assertion_shape
        shape = pieces.shape[1:]
        any_bits, shift = self.any_bits[:, None], self.shift[:, None]
        terms, assertion, met = (field.expand(shape) for field in (state.terms, state.assertion, state.met))
        for position in range(longest):
            meaning = terms + shift
            if self.has_sets:
                met = met | (self.meets[meaning] & (self.unnegated_bits[assertion] | any_bits) & boundary[position])
            move = (assertion * events_width + self.events[meaning]) * classes_width + class_[position]
            assertion = self.assertion_moves[move].long()
            terms = self.term_moves[terms * self.term_width + term_class[position]].long()
        return terms, assertion, met

    def _meaning(self, terms: Tensor) -> Tensor:
        """Place of a state in the tables of what states mean to its study."""
        return terms + self.shift[:, None]

    def _sentences(self, state: Tracked, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hash of the sentence behind each token, the sentences written, and whether one was written again."""
        shape = tokens.shape
        written = state.written.expand(*shape, -1)
        sentence = state.sentence.expand(shape)
        sentence = sentence * self.token_power[tokens] + self.token_hash[tokens]
        if not self.remembers:
            return (
                sentence.masked_fill(self.ends_sentence[tokens], 0),
                written,
                torch.zeros_like(tokens, dtype=torch.bool),
            )
        closes = self.ends_sentence[tokens] & (sentence != 0)
        repeated = closes & (written == sentence[..., None]).any(-1) & self.no_repeat[:, None]
        shifted = torch.cat([sentence[..., None], written[..., :-1]], -1)
        written = torch.where(closes[..., None], shifted, written)
        return sentence.masked_fill(self.ends_sentence[tokens], 0), written, repeated

    def _need(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens that the missing required terms take from here on, `missing` (B, ...) bits."""
        open_sets = ((missing[..., None] >> self.bits) & 1).float()  # (B, ..., Q)
        cost = self.cost[:, None]
        need = (open_sets * cost).sum(-1)
        usable = ~self.negated[state.assertion] | ((missing & self.asserted[:, None]) == 0)
        # One of the missing terms goes on from here; the others begin behind a space.
        saved = self.saved[self.row_of[self._meaning(state.terms)]].masked_fill(open_sets == 0, -1e9).amax(-1)
        return torch.where(missing == 0, 0.0, torch.where(usable, need - saved, need + 1))

    def _apt(self, before: Tracked, after: Tracked, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Offers (B, X) that don't begin a missing required term, or begin it again, where the model finds it
        absurd."""
        missing = self.hard[:, None] & ~before.met
        under_way = missing & self.inside[self._meaning(before.terms)]
        reached = missing & (self.inside[self._meaning(after.terms)] | self._pending(after))
        again = (under_way & reached != 0) & (self._progress(after, missing) <= self._progress(before, missing))
        begins = (reached & ~under_way != 0) | again
        at_start = (before.sentence == 0) & self.may_open[tokens]
        return ~begins | (logprobs >= PLAUSIBLE) | at_start

    def _progress(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens that what is written saves for one of the missing terms, at most."""
        open_sets = (missing[..., None] >> self.bits) & 1
        return (self.saved[self.row_of[self._meaning(state.terms)]] * open_sets).amax(-1)

    def _in_time(
        self, before: Tracked, after: Tracked, missing: Tensor, allowed: Tensor, apt: Tensor, tokens: Tensor, step: int
    ) -> Tensor:
        """Refuse offers behind which the missing terms no longer fit, each in a sentence of its own if the length
        allows that.

        Of the rules below, each study follows the first that leaves it an offer.
        """
        left = self.settings.max_new_tokens - step - 1  # tokens behind this one
        rules = [allowed & apt]
        if self.is_late(step):
            missing = missing & ~self._pending(after)
            need = self._need(after, missing) + self._denial_need(after, missing)
            stops = ((missing[..., None] >> self.bits) & 1).sum(-1) - (after.sentence == 0).long()
            in_time = (need <= left) | (need == 0)
            in_comfort = in_time & ((need + stops + CLOSING <= left) | (missing == 0))
            late = need + stops + CLOSING + LAST_CALL > left
            strays = (before.sentence == 0) & ~self._goes_on(after, missing)
            strays = strays & late & (missing != 0)
            rules = [
                allowed & apt & in_comfort & ~strays,
                allowed & apt & in_comfort,
                allowed & in_comfort,
                allowed & in_time,
                *rules,
            ]
        chosen = allowed
        for rule in reversed(rules):
            chosen = torch.where(rule.any(-1, keepdim=True), rule, chosen)
        return chosen

    def is_late(self, step: int) -> bool:
        """Whether some study may be short of tokens for what it still must write."""
        left = self.settings.max_new_tokens - step - 1
        return left <= self.longest_need + 1 + CLOSING + max(self.longest_denial, LAST_CALL)

    def _goes_on(self, state: Tracked, missing: Tensor) -> Tensor:
        """Whether a missing required term is under way, by however few letters."""
        return self._progress(state, missing) > 0

    def _denial_need(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens to the end of the denial that a forbidden term asks for.

        Right behind the term it is one token, that makes it another word; none if that goes on with a missing required
        term.
        """
        plain = self.plain[state.assertion]
        goes_on = self._goes_on(state, missing)
        term_ends = ((self.events[self._meaning(state.terms)] & FORBIDDEN) != 0) & ~goes_on
        need = torch.where(plain, term_ends.float(), self.to_deny[state.assertion])
        return need * ~self.free[:, None]

    def _pending(self, state: Tracked) -> Tensor:
        """Bits of the terms that end here, if a boundary follows."""
        any_bits = self.any_bits[:, None]
        return self.meets[self._meaning(state.terms)] & (self.unnegated_bits[state.assertion] | any_bits)

    def _breaks_at_end(self, state: Tracked) -> Tensor:
        """Whether a text that ends here asserts what it must not."""
        events_width, classes_width = self.assertion_shape
        move = (state.assertion * events_width + self.events[self._meaning(state.terms)]) * classes_width + STOP
        return self.broken[self.assertion_moves[move].long()]

    def advancing(self, state: Tracked, step: int) -> Tensor | None:
        """Tokens that begin or carry on a missing required term, or end the sentence before it; (B, K, A), -1 for
        none."""
        if not self.has_must:
            return None
        missing = self.hard[:, None] & ~(state.met | self._pending(state))  # (B, K)
        blocked = self.negated[state.assertion]
        usable = torch.where(blocked, missing & ~self.asserted[:, None], missing)
        row = self.row_of[self._meaning(state.terms)]
        begin = (
            self.which[:, None] * 4
            + 2 * (state.sentence == 0).long()
            + self.after_space[self._meaning(state.terms)].long()
        )
        tokens = torch.cat([self.carry_tokens[row], self.begin_tokens[begin]], -1)
        bits = torch.cat([self.carry_bits[row], self.begin_bits[begin]], -1)
        tokens = tokens.masked_fill((bits & usable[..., None]) == 0, -1)
        # A required assertion can't begin inside a negation's scope: a full stop ends that. So it does before a late
        # term.
        late = (self.settings.max_new_tokens - step <= self.total_cost + 2 + CLOSING)[:, None]
        stop = torch.where((missing != 0) & (blocked | (late & (state.sentence != 0))), self.stop_token[:, None], -1)
        tokens = torch.cat([tokens, stop[..., None]], -1)
        ordered = tokens.sort(-1)[0]  # the same token twice would be two beams of one text
        twice = torch.zeros_like(ordered, dtype=torch.bool)
        twice[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
        return ordered.masked_fill(twice, -1)

    def levels(self, state: Tracked) -> Tensor:
        """How far each offer (B, X) has come: twice the required sets met, one more with a term under way."""
        met = (state.met | self._pending(state)) & self.hard[:, None]
        number = ((met[..., None] >> self.bits) & 1).sum(-1)
        usable = torch.where(self.negated[state.assertion], ~self.asserted[:, None], -1)
        under_way = self.inside[self._meaning(state.terms)] & self.hard[:, None] & ~met & usable
        return 2 * number + (under_way != 0)

    def _caught(self, state: Tracked, event: int) -> Tensor:
        """Whether a term has just ended that may not stand here."""
        ended = (self.events[self._meaning(state.terms)] & event) != 0
        return ended & (self.negated if event == UNDENIED else self.plain)[state.assertion]

    def _bound(self, state: Tracked) -> Tensor:
        """1 for studies with constraints, 0 for those without."""
        return (~self.free).float()[:, None]

    def bonus(self, before: Tracked, after: Tracked, tokens: Tensor) -> Tensor:
        """What each offer (B, X) earns: soft weights, and the price of evading a forbidden term."""
        price = torch.zeros((), device=self.device)
        if self.forbids:
            glued = self.begins_in_word[tokens.clamp(max=len(self.lengths) - 1)]
            caught = [self._caught(before, event) & glued for event in (FORBIDDEN, UNDENIED)]
            entered = [self._caught(after, event) for event in (FORBIDDEN, UNDENIED)]
            price = (entered[0] * CAUGHT + entered[1] * GLUED + (caught[0] | caught[1]) * GLUED) * self._bound(after)
        if not self.has_soft:
            return price
        new = after.met & ~before.met
        earned = ((new[..., None] >> self.bits) & 1).float() * self.weights[:, None]
        return price + earned.sum(-1).masked_fill(self.free[:, None], 0.0)

    def unmet(self, state: Tracked, cut: Tensor) -> Tensor:
        """Bits of what answers (B, C) don't hold; `cut` marks those that end without an end token. Bit 62: a broken
        rule."""
        met = state.met | torch.where(cut, self._pending(state), 0)
        broken = torch.where(cut, self._breaks_at_end(state), self.broken[state.assertion]) & ~self.free[:, None]
        return (self.hard[:, None] & ~met) | (broken.long() << 62)

    def count(self, unmet: Tensor) -> Tensor:
        """Number of bits set."""
        bits = torch.arange(63, device=self.device)
        return ((unmet[..., None] >> bits) & 1).sum(-1).double()

    def names(self, study: int, unmet: int) -> tuple[str, ...]:
        """Names of the unmet constraints of a study's answer, those that never fitted included."""
        entry = self.constraints[study]
        if entry is None:
            return ()
        missing = tuple(name for bit, name in enumerate(entry.names) if unmet >> bit & 1)
        broken = ("must_not_assert",) if unmet >> 62 & 1 else ()
        return missing + entry.left_out + broken
