"""Reading the bytes of offered tokens through the tables of constraints, and what the states behind them mean.

Shapes as in `tracker.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.generation.negation import STOP
from vlm.generation.tables import RULE_BITS, ConstraintTables
from vlm.generation.tracked import Tracked


class Walk(ConstraintTables):
    """States behind tokens, and what ends, goes on or is missing there."""

    def _walk(self, state: Tracked, tokens: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Read the bytes of `tokens` (B, X): terms, assertion, met bits, template, and bits of broken rules."""
        longest = int(self.lengths[tokens].max())
        columns = self._term_columns(tokens, longest)
        at_boundary = self.boundaries[tokens].flatten(0, -2).any(0).tolist()
        terms, assertion, met, frame = state.terms, state.assertion, state.met, state.frame
        rows = terms * self.term_width
        frames = frame * 257
        broken = torch.zeros_like(met)
        half = torch.zeros_like(ends)
        vocabulary_row = self.shift_column * self.term_width
        pieces = self.bytes[tokens] if self.has_frame else None
        classes: Tensor | None = None  # (B, X, L) of the negation automaton
        reads = self.may_deny and bool(self.denying[assertion].any())
        for position in range(longest):
            if at_boundary[position] or reads:  # inside a word only a denial reads letters
                meaning = torch.div(rows, self.term_width, rounding_mode="floor")
                meaning = meaning + self.shift_column if self.shifted else meaning
                classes = self.token_classes[tokens] if classes is None else classes
                class_ = classes[..., position]
                if self.has_sets:
                    met, early = self._meet(meaning, assertion, met, frames, self.boundary[class_])
                    broken |= early
                assertion = self._assert(meaning, assertion, class_)
                reads = self.may_deny and bool(self.denying[assertion].any())
            column = rows + columns[position]
            if self.has_vocabulary:
                half |= self.breaks[column + vocabulary_row]
            if pieces is not None:
                frames = self.frame_jumps[frames + pieces[..., position]]
            rows = self.jumps[column]
        if self.has_frame:
            frame = torch.where(ends, frame, frames // 257)
        if self.has_vocabulary:
            broken |= half.long() << RULE_BITS["vocabulary"]
        return rows // self.term_width, assertion, met, frame, broken

    def _term_columns(self, tokens: Tensor, longest: int) -> tuple[Tensor, ...]:
        """Class of each byte of the tokens (B, X) in their study's term automaton: `longest` tensors (B, X)."""
        if self.token_columns is not None:
            return self.token_columns[tokens].unbind(-1)[:longest]
        pieces = self.bytes[tokens][..., :longest].movedim(-1, 0).long()  # (L, B, X)
        return self.term_classes[self.class_rows + pieces].unbind(0)

    def _meet(
        self, meaning: Tensor, assertion: Tensor, met: Tensor, frames: Tensor, boundary: Tensor
    ) -> tuple[Tensor, Tensor | int]:
        """Bits met when the terms that end here are followed by a boundary, and the bit of a broken order."""
        here = self.meets[meaning] & (self.unnegated_bits[assertion] | self.any_bits_column) & boundary
        return self._ready(here, met, frames // 257 if self.has_frame else frames)

    def _ready(self, here: Tensor, met: Tensor, frame: Tensor) -> tuple[Tensor, Tensor | int]:
        """`met` and those bits of `here` that count in this section and in their order."""
        if self.has_frame:
            here = here & self.frame_counts[frame]
        if not self.has_order:
            return met | here, 0
        hard = self.hard_column
        turn = (((met & hard) << 1) | 1) | ~hard
        early = (here & ~met & ~turn & self.ordered) != 0
        binding = (self.hard_rules[:, None] >> RULE_BITS["order"]) & 1
        here = torch.where((self.ordered != 0) & (binding != 0), here & turn, here)
        return met | here, early.long() * (1 - binding) << RULE_BITS["order"]

    def _assert(self, meaning: Tensor, assertion: Tensor, class_: Tensor) -> Tensor:
        events_width, classes_width = self.assertion_shape
        return self.assertion_moves[(assertion * events_width + self.events[meaning]) * classes_width + class_]

    def _meaning(self, state: Tracked) -> Tensor:
        """Place of a state in the tables of what states mean to its study."""
        if state.meaning is None:
            state.meaning = state.terms + self.shift_column if self.shifted else state.terms
        return state.meaning

    def _count(self, state: Tracked, tokens: Tensor) -> Tensor:
        """Sentences begun, times 4, and the phase behind each token."""
        if not self.has_count:
            return state.begun
        phase = state.begun & 3
        size = self.sentence_phase.shape[1]
        place = phase * size + tokens
        begun = (state.begun >> 2) + self.sentence_begun.flatten()[place]
        return (begun << 2) | self.sentence_phase.flatten()[place]

    def _sentences(self, state: Tracked, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hash of the sentence behind each token, the sentences written, and whether one was written again."""
        written = state.written
        sentence = state.sentence * self.token_power[tokens] + self.token_hash[tokens]
        ends = self.ends_sentence[tokens]
        if not self.remembers:
            return sentence.masked_fill(ends, 0), written, ends
        closes = ends & (sentence != 0)
        repeated = closes & (written == sentence[..., None]).any(-1)
        # A second full stop ends a sentence of nothing.
        repeated = repeated | (self.stops_early[tokens] & (state.sentence == 0)) | self.stops_twice[tokens]
        shifted = torch.cat([sentence[..., None], written[..., :-1]], -1)
        written = torch.where(closes[..., None], shifted, written)
        return sentence.masked_fill(ends, 0), written, repeated

    def pending(self, state: Tracked) -> Tensor:
        """Bits of the terms that end here, if a boundary follows."""
        if state.ended is None:
            here = self.meets[self._meaning(state)]
            here = here & (self.unnegated_bits[state.assertion] | self.any_bits_column)
            if self.has_frame or self.has_order:
                here = self._ready(here, state.met, state.frame)[0] & ~state.met
            state.ended = here
        return state.ended

    def _breaks_at_end(self, state: Tracked) -> Tensor:
        """Whether a text that ends here asserts what it must not."""
        events_width, classes_width = self.assertion_shape
        move = (state.assertion * events_width + self.events[self._meaning(state)]) * classes_width + STOP
        return self.broken[self.assertion_moves[move]]

    def _countable(self, state: Tracked, missing: Tensor) -> Tensor:
        """Those of the missing bits whose terms would count here: in this section, and next in their order."""
        if self.has_frame:
            missing = missing & self.frame_counts[state.frame]
        if self.has_order:
            turn = ((((state.met | self.pending(state)) & self.hard_column) << 1) | 1) & missing
            missing = torch.where(self.ordered != 0, turn, missing)
        return missing

    def _goes_on(self, state: Tracked, missing: Tensor) -> Tensor:
        """Whether a missing required term is under way, by however few letters."""
        return (self.going[self._meaning(state)] & self._countable(state, missing)) != 0

    def _progress(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens that what is written saves for one of the missing terms, at most."""
        open_sets = (missing[..., None] >> self.bits) & 1
        return (self.saved[self.row_of[self._meaning(state)]] * open_sets).amax(-1)
