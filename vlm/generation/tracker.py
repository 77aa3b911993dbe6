"""Constraint states of all beams at once: a function of the tokens alone, held in tensors, advanced for every offer of
a step.

A step walks the bytes of the offered tokens through the tables of `compiling.py`: a loop over the bytes of the longest
token, never over beams, studies or the vocabulary. A lexicon's size shows only in the size of the tables.

Shapes: `B` studies, `K` beams, `M` offers a beam, `X` = K * M, `L` bytes of a token, `Q` sets with a bit, `R`
remembered sentences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.generation.negation import FORBIDDEN, UNDENIED
from vlm.generation.structure import INSIDE
from vlm.generation.tables import ASSERTED, RULE_BITS
from vlm.generation.timing import CLOSING, Timed
from vlm.generation.tracked import Tracked

REMEMBERED = 32
"""Sentences of a report that are compared with a new one."""

GLUED = -10.0
"""Nats for denying a required term, which only another ending of the word can save ("no effusion" -> "no
effusionable"), and for
such an ending: a way out, but only where there is no other."""

CAUGHT = -5.0
"""Nats for writing a forbidden term that a denial must follow ("effusion is not seen")."""

IDLE = -1.0
"""Nats for each token that brings no missing term on, once the best beam would have ended the text. Scores are divided
by lengths, so without a price a text would rather go on than pay for its terms."""


class Tracker(Timed):
    """States of a batch's beams under its constraints."""

    tracing = False
    """Keep what each rule refused of the last offers, in `refused`."""

    refused: dict[str, Tensor]

    def start(self, batch: int, width: int) -> Tracked:
        """State before the first token."""
        self.waiting = torch.zeros(batch, 1, dtype=torch.bool, device=self.device)
        zeros = torch.zeros(batch, width, dtype=torch.long, device=self.device)
        written = torch.zeros(batch, width, REMEMBERED if self.remembers else 0, dtype=torch.long, device=self.device)
        first = [self.term_start, self.assertion_start, None, None, self.frame_start, None]
        fields = [zeros if value is None else value[:, None] + zeros for value in first]
        return Tracked(torch.stack(fields, -1), written)

    def advance(
        self, state: Tracked, tokens: Tensor, logprobs: Tensor, live: Tensor, step: int, over: Tensor | None = None
    ) -> tuple[Tracked, Tensor, Tensor]:
        """States behind every offered token: `tokens`, their `logprobs`, whether their beam is `live`, and whether the
        model finds an end likeliest there (`over`); (B, X) each.

        Returns:
            The states, (B, X); which offers are allowed; and which were refused for what they write (not for being
            late).
        """
        size = len(self.lengths)
        known = tokens.clamp(max=size - 1)
        silent = (tokens >= size) | self.silent[known]  # special tokens: they would fill up the length
        tokens = known
        ends = self.is_end[tokens]
        terms, assertion, met, frame, broken = self._walk(state, tokens, ends)
        sentence, written, repeated = self._sentences(state, tokens)
        begun = self._count(state, tokens)
        after = Tracked((terms, assertion, met, sentence, frame, begun), written)
        refused = {"must_not_assert": self.broken[assertion], "special token": silent}
        missing = self.hard_column & ~met  # (B, X)
        refused["must_appear"] = ends & (missing != 0)
        if self.has_rules:
            broken |= self._broken_rules(after, ends, repeated)
            if self.has_soft:
                after.add_met(broken & self.soft_rules[:, None])
            broken = broken & self.hard_rules[:, None]
            refused["rules"] = broken != 0
            refused["must_appear"] |= self._missed(after, missing)
        if step + 1 == self.settings.max_new_tokens:
            refused["must_not_assert"] |= self._breaks_at_end(after) & ~ends
        banned = refused["must_not_assert"]
        for reason in list(refused.values())[1:]:
            banned = banned | reason
        if self.any_free:
            banned, live = banned & ~self.free[:, None], live | self.free[:, None]
        allowed = ~banned & live
        timely = allowed
        if self.has_must or (self.forbids and self.is_late(step)) or (self.has_rules and self.is_late(step)):
            apt = self._apt(state, after, tokens, logprobs) if self.has_must else allowed
            if over is not None and self.has_must and (bool(self.waiting.any()) or bool(over.any())):
                apt = apt & ~self._rambles(state, after, over, tokens)
            allowed = self._in_time(state, after, missing, allowed, apt, tokens, step)
        if self.tracing:
            self.refused = {**refused, "length": timely & ~allowed, **self._named_rules(broken)}
            self.refused.pop("rules", None)
        return after, allowed, banned

    def _broken_rules(self, after: Tracked, ends: Tensor, repeated: Tensor) -> Tensor:
        """Bits of the rules, the vocabulary's aside, that an offer breaks by what it writes or by ending there."""
        broken = torch.zeros_like(after.met)
        if self.remembers:
            broken |= repeated.long() << RULE_BITS["repeat_sentences"]
        if self.has_frame:
            lost = self.frame_lost[after.frame] | (ends & ~self.frame_final[after.frame])
            broken |= lost.long() << RULE_BITS["template"]
        if self.has_count:
            begun = after.begun >> 2
            wrong = (begun > self.most) | (ends & (begun < self.least))
            if self.has_frame:  # no sentence is left for what the template still wants
                closed = (begun == self.most) & ((after.begun & 3) != INSIDE) & ~ends
                wrong = wrong | (closed & (self.frame_need[after.frame] > 0))
            broken |= wrong.long() << RULE_BITS["sentences"]
        return broken

    def _missed(self, after: Tracked, missing: Tensor) -> Tensor:
        """Whether a missing required term can't follow any more: its section has passed, or the last sentence has."""
        missed = torch.zeros_like(missing, dtype=torch.bool)
        if self.has_frame:
            missed = (missing & self.frame_passed[after.frame]) != 0
        if self.has_count:
            closed = ((after.begun >> 2) >= self.most) & ((after.begun & 3) != INSIDE)
            missed = missed | (closed & ((missing & ~self.pending(after)) != 0))
        return missed

    def _named_rules(self, broken: Tensor) -> dict[str, Tensor]:
        return {rule: ((broken >> bit) & 1) != 0 for rule, bit in RULE_BITS.items()} if self.has_rules else {}

    def asks(self, step: int) -> Tensor:
        """Which studies (B,) may ask for tokens by themselves, whatever the others of the batch ask for."""
        return self.always_asks | ((self.least[:, 0] > 0) & self.late(step)) if self.has_count else self.always_asks

    def advancing(self, state: Tracked, step: int) -> Tensor | None:
        """Tokens that begin or carry on a missing required term, or end the sentence before it, or that the text's
        structure asks for; (B, K, A), -1 for none."""
        groups = []
        if self.has_must:
            groups += self._term_tokens(state, step)
        if self.has_frame:
            owing = (self.hard_column & ~(state.met | self.pending(state)) & self.frame_own[state.frame]) != 0
            groups.append(self.frame_tokens[state.frame].masked_fill(owing[..., None], -1))
        if self.has_vocabulary:
            groups.append(self.owed_token[self._meaning(state)][..., None])
        if self.has_count and self.is_late(step):
            lack = ((state.begun >> 2) < self.least) & self.late(step)[:, None]
            inside = (state.begun & 3) == INSIDE
            fill = self.fill_tokens.expand(*lack.shape, -1).masked_fill((inside | ~lack)[..., None], -1)
            groups += [fill, torch.where(lack & inside, self.stop_token_column, -1)[..., None]]
        if not groups:
            return None
        tokens = torch.cat(groups, -1)
        ordered = tokens.sort(-1)[0]  # the same token twice would be two beams of one text
        twice = torch.zeros_like(ordered, dtype=torch.bool)
        twice[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
        return ordered.masked_fill(twice, -1)

    def _term_tokens(self, state: Tracked, step: int) -> list[Tensor]:
        """Tokens that begin or carry on a missing required term, or end the sentence before it."""
        missing = self.hard_column & ~(state.met | self.pending(state))  # (B, K)
        blocked = self.negated[state.assertion]
        usable = torch.where(blocked, missing & ~self.asserted_column, missing) if self.any_asserted else missing
        usable = self._countable(state, usable)
        meaning = self._meaning(state)
        row = self.row_of[meaning]
        inside = state.sentence != 0
        begin = self.begin_row + self.after_space[meaning] - 2 * inside.long()
        tokens = torch.cat([self.carry_tokens[row], self.begin_tokens[begin]], -1)
        bits = torch.cat([self.carry_bits[row], self.begin_bits[begin]], -1)
        tokens = tokens.masked_fill((bits & usable[..., None]) == 0, -1)
        # A required assertion can't begin inside a negation's scope: a full stop ends that. So it does before a late
        # term.
        left = self.settings.max_new_tokens - step
        if left <= self.most_cost + 2 + CLOSING:
            blocked = blocked | ((left <= self.total_cost + 2 + CLOSING)[:, None] & inside)
        stops = (missing != 0) & blocked
        if self.is_late(step):  # a term counts once it has ended, and whatever is likelier may go on with its letters
            held = (self.hard_column & ~state.met & self.pending(state)) != 0
            stops = stops | (held & self.late(step)[:, None])
        if left > CLOSING:
            return [tokens, torch.where(stops, self.stop_token_column, -1)[..., None]]
        # What has all its terms ends its last sentence and then itself.
        done = (missing == 0) & (self.hard != 0)[:, None]
        stop = torch.where(stops | (done & inside), self.stop_token_column, -1)
        end = torch.where(done & ~inside, self.settings.eos_token_ids[0], -1)
        return [tokens, stop[..., None], end[..., None]]

    def levels(self, state: Tracked) -> Tensor:
        """How far each offer (B, X) has come: twice the required sets met, one more with a term under way."""
        met = (state.met | self.pending(state)) & self.hard_column
        number = ((met[..., None] >> self.bits) & 1).sum(-1)
        under_way = self.inside[self._meaning(state)] & self.hard_column & ~met
        if self.any_asserted:
            under_way = under_way & torch.where(self.negated[state.assertion], ~self.asserted_column, -1)
        under_way = self._countable(state, under_way)
        return 2 * number + (under_way != 0)

    def _caught(self, state: Tracked, event: int) -> Tensor:
        """Whether a term has just ended that may not stand here."""
        ended = (self.events[self._meaning(state)] & event) != 0
        return ended & (self.negated if event == UNDENIED else self.plain)[state.assertion]

    def _bound(self, state: Tracked) -> Tensor:
        """1 for studies with constraints, 0 for those without."""
        return (~self.free).float()[:, None]

    def bonus(self, before: Tracked, after: Tracked, tokens: Tensor) -> Tensor:
        """What each offer (B, X) earns: soft weights, and the price of evading a forbidden term."""
        price = torch.zeros((), device=self.device)
        if self.forbids:
            glued = self.begins_in_word[tokens.clamp(max=len(self.lengths) - 1)]
            price = self._caught(after, FORBIDDEN) * CAUGHT + (self._caught(before, FORBIDDEN) & glued) * GLUED
            if self.undenied:
                price = price + (self._caught(after, UNDENIED) | (self._caught(before, UNDENIED) & glued)) * GLUED
            if self.any_free:
                price = price * self._bound(after)
        if self.has_must and bool(self.waiting.any()):
            missing = self.hard_column & ~before.met
            idle = (missing != 0) & ~self._goes_on(after, missing) & ((missing & self.pending(after)) == 0)
            goes = self.waiting & ~self.ends_sentence[tokens.clamp(max=len(self.lengths) - 1)]
            price = price + (idle & goes) * IDLE
        if not self.has_soft:
            return price
        new = after.met & ~before.met
        earned = ((new[..., None] >> self.bits) & 1).float() * self.weights[:, None]
        return price + earned.sum(-1).masked_fill(self.free[:, None], 0.0)

    def unmet(self, state: Tracked, cut: Tensor) -> Tensor:
        """Bits of what answers (B, C) don't hold; `cut` marks those that end without an end token. Bit `ASSERTED`: a
        forbidden assertion; those of `RULE_BITS`: a hard rule."""
        met = state.met | torch.where(cut, self.pending(state), 0)
        broken = torch.where(cut, self._breaks_at_end(state), self.broken[state.assertion]) & ~self.free[:, None]
        bits = (self.hard_column & ~met) | (broken.long() << ASSERTED)
        if not self.has_rules:
            return bits
        rules = self._broken_rules(state, torch.ones_like(cut), torch.zeros_like(cut))
        if self.has_vocabulary:
            stop = self.term_classes[self.class_rows[0] + ord(".")]
            half = self.breaks[self._meaning(state) * self.term_width + stop] & cut
            rules = rules | (half.long() << RULE_BITS["vocabulary"])
        return bits | (rules & self.hard_rules[:, None])

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
        broken = ("must_not_assert",) if unmet >> ASSERTED & 1 else ()
        rules = tuple(rule for rule, bit in RULE_BITS.items() if unmet >> bit & 1)
        return missing + entry.left_out + broken + rules
