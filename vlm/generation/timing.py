"""Time: what a text must still write has to fit into the tokens that are left, and to begin where it reads well.

Shapes as in `tracker.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.generation.compiling import CompiledConstraints
from vlm.generation.negation import FORBIDDEN
from vlm.generation.settings import BeamSettings
from vlm.generation.structure import INSIDE
from vlm.generation.tables import RULE_BITS
from vlm.generation.tracked import Tracked
from vlm.generation.walking import Walk

CLOSING = 6
"""Tokens kept free, where the length allows it, to end the sentence that holds the last required term."""

LAST_CALL = 16
"""Tokens before the last moment from which on a new sentence must begin with a missing required term."""

PLAUSIBLE = -5.0
"""Log probability from which on a required term may begin inside a sentence; at a sentence's start it always may."""


class Timed(Walk):
    """Refuses offers behind which what is required no longer fits, or would stand where the model finds it absurd."""

    waiting: Tensor
    """(B, 1) studies that only a missing term keeps from ending."""

    def __init__(
        self, constraints: Sequence[CompiledConstraints | None], settings: BeamSettings, device: torch.device
    ) -> None:
        super().__init__(constraints, settings, device)
        # (B,) tokens left from which on a study may be short of them for what it still must write.
        self.last_calls = self.most_need + 1 + CLOSING + self.longest_denial.clamp(min=LAST_CALL)
        self.last_calls = self.last_calls.masked_fill(self.free, -1)
        self.latest = int(self.last_calls.max())

    def _need(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens that the missing required terms take from here on, `missing` (B, ...) bits."""
        open_sets = ((missing[..., None] >> self.bits) & 1).float()  # (B, ..., Q)
        cost = self.cost[:, None]
        need = (open_sets * cost).sum(-1)
        usable = ~self.negated[state.assertion] | ((missing & self.asserted_column) == 0)
        # One of the missing terms goes on from here; the others begin behind a space.
        saved = self.saved[self.row_of[self._meaning(state)]]
        if self.has_frame or self.has_order:
            here = self._countable(state, missing)
            open_sets = ((here[..., None] >> self.bits) & 1).float()
            saved = saved.masked_fill(open_sets == 0, -1e9).amax(-1).clamp(min=0)
        else:
            saved = saved.masked_fill(open_sets == 0, -1e9).amax(-1)
        return torch.where(missing == 0, 0.0, torch.where(usable, need - saved, need + 1))

    def _apt(self, before: Tracked, after: Tracked, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Offers (B, X) that don't begin a missing required term, or begin it again, where the model finds it
        absurd."""
        missing = self.hard_column & ~before.met
        under_way = missing & self.inside[self._meaning(before)]
        reached = missing & (self.inside[self._meaning(after)] | self.pending(after))
        begins = (reached & ~under_way) != 0
        both = (under_way & reached) != 0
        if bool(both.any()):
            begins = begins | (both & (self._progress(after, missing) <= self._progress(before, missing)))
        if not bool(begins.any()):
            return ~begins
        at_start = (before.sentence == 0) & self.may_open[tokens]
        # Half a word is not left to write its term elsewhere ("P pacemaker").
        again = (self.torn[self._meaning(before)] & reached) != 0
        again = again & ~self.begins_in_word[tokens]
        return ~begins | (((logprobs >= PLAUSIBLE) | at_start) & ~again)

    def wait(self, state: Tracked, scores: Tensor, over: Tensor) -> None:
        """Notes the studies whose best beam (B, K) would end here were it not for a missing term."""
        if not bool(over.any()):
            return
        missing = self.hard_column & ~(state.met | self.pending(state))
        here = over & (state.sentence == 0) & (missing != 0)
        self.waiting |= here.gather(1, scores.argmax(1, keepdim=True))

    def _rambles(self, before: Tracked, after: Tracked, over: Tensor, tokens: Tensor) -> Tensor:
        """Offers (B, X) that begin another sentence than one with a missing term where the model would end the text.

        Without this a text goes on with what comes to the model's mind, for its score is divided by its length.
        """
        missing = self._countable(before, self.hard_column & ~before.met)
        opens = over & (before.sentence == 0) & (missing != 0)
        strays = opens & ~self._goes_on(after, missing)
        # Nor is the term that such a sentence begins with given up for another word ("A" of "Atelectasis").
        meaning = self._meaning(before)
        begun = self.waiting & ((self.torn[meaning] & missing) != 0) & (before.sentence == self.letters[meaning])
        goes_on = self.begins_in_word[tokens] & self._goes_on(after, missing)
        return strays | (begun & ~goes_on)

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
            missing = missing & ~self.pending(after)
            need = self._need(after, missing) + self._denial_need(after, missing) + self._shape_need(after, missing)
            stops = ((missing[..., None] >> self.bits) & 1).sum(-1) - (after.sentence == 0).long()
            in_time = (need <= left) | (need == 0)
            in_comfort = in_time & ((need + stops + CLOSING <= left) | (missing == 0))
            late = need + stops + CLOSING + LAST_CALL > left
            here = missing & self.frame_counts[before.frame] if self.has_frame else missing
            strays = (before.sentence == 0) & ~self._goes_on(after, here)
            strays = strays & late & (here != 0)
            tidy = in_comfort & ~self._frays(before, after, missing, need, tokens, left)
            hurried = [
                allowed & apt & tidy & ~strays,
                allowed & apt & tidy,
                allowed & tidy,
                allowed & in_comfort,
                allowed & in_time,
            ]
            late_studies = self.late(step)[:, None]  # the others follow the rules that they follow by themselves
            rules = [*(torch.where(late_studies, rule, rules[0]) for rule in hurried), *rules]
        chosen = allowed
        for rule in reversed(rules):
            chosen = torch.where(rule.any(-1, keepdim=True), rule, chosen)
        return chosen

    def _frays(
        self, before: Tracked, after: Tracked, missing: Tensor, need: Tensor, tokens: Tensor, left: int
    ) -> Tensor:
        """Offers (B, X) that begin a sentence which the length may cut although nothing is missing, or that leave the
        last one open."""
        done = (missing == 0) & (need == 0) & (self.hard != 0)[:, None]
        begins = (before.sentence == 0) & ~self.is_end[tokens] & (left < LAST_CALL)
        if left == 0:
            begins = begins | (after.sentence != 0)
        return done & begins

    def _shape_need(self, after: Tracked, missing: Tensor) -> Tensor | float:
        """Tokens that the template, the fewest sentences and a begun term of the terminology still take."""
        need: Tensor | float = 0.0
        if self.has_frame:
            # The next heading can't count as begun while this section lacks a term.
            owing = (missing & self.frame_own[after.frame]) != 0
            need = need + torch.where(owing, self.frame_whole[after.frame], self.frame_need[after.frame]).float()
        if self.has_count:
            begun, phase = after.begun >> 2, after.begun & 3
            binding = (self.hard_rules[:, None] >> RULE_BITS["sentences"]) & 1
            lack = (self.least - begun).clamp(min=0) * binding
            need = need + torch.where(lack > 0, 2 * lack + (phase == INSIDE).long(), 0).float()
        if self.has_vocabulary:
            binding = (self.hard_rules[:, None] >> RULE_BITS["vocabulary"]) & 1
            need = need + (self.owed[self._meaning(after)] * binding).float()
        return need

    def is_late(self, step: int) -> bool:
        """Whether some study may be short of tokens for what it still must write."""
        return self.settings.max_new_tokens - step - 1 <= self.latest

    def late(self, step: int) -> Tensor:
        """Which studies (B,) may be."""
        return self.settings.max_new_tokens - step - 1 <= self.last_calls

    def _denial_need(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens to the end of the denial that a forbidden term asks for.

        Right behind the term it is one token, that makes it another word; none if that goes on with a missing required
        term.
        """
        plain = self.plain[state.assertion]
        goes_on = self._goes_on(state, missing)
        term_ends = ((self.events[self._meaning(state)] & FORBIDDEN) != 0) & ~goes_on
        need = torch.where(plain, term_ends.float(), self.to_deny[state.assertion])
        return need * ~self.free[:, None]
