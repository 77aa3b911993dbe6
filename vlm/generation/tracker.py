"""Constraint states of all beams at once: a function of the tokens alone, held in tensors, advanced for every offer of
a step.

A step walks the bytes of the offered tokens through the tables of `compiling.py`: a loop over the bytes of the longest
token, never over beams, studies or the vocabulary. A lexicon's size shows only in the size of the tables.

Shapes: `B` studies, `K` beams, `M` offers a beam, `X` = K * M, `L` bytes of a token, `Q` sets with a bit, `R`
remembered sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.generation.compiling import CompiledConstraints
from vlm.generation.negation import FORBIDDEN, STOP, UNDENIED
from vlm.generation.settings import BeamSettings
from vlm.generation.structure import INSIDE
from vlm.generation.tables import ASSERTED, RULE_BITS, ConstraintTables

REMEMBERED = 32
"""Sentences of a report that are compared with a new one."""

CLOSING = 6
"""Tokens kept free, where the length allows it, to end the sentence that holds the last required term."""

GLUED = -10.0
"""Nats for denying a required term, which only another ending of the word can save ("no effusion" -> "no
effusionable"), and for
such an ending: a way out, but only where there is no other."""

CAUGHT = -5.0
"""Nats for writing a forbidden term that a denial must follow ("effusion is not seen")."""

LAST_CALL = 16
"""Tokens before the last moment from which on a new sentence must begin with a missing required term."""

IDLE = -1.0
"""Nats for each token that brings no missing term on, once the best beam would have ended the text. Scores are divided
by lengths, so without a price a text would rather go on than pay for its terms."""

PLAUSIBLE = -5.0
"""Log probability from which on a required term may begin inside a sentence; at a sentence's start it always may."""


TERMS, ASSERTION, MET, SENTENCE, FRAME, BEGUN, FIELDS = range(7)


class Tracked:
    """Constraint state of each beam or offer, as int64 fields of one tensor, so that beams are picked in one go.

    What is looked up for it is kept: a step asks for the same things several times, and small operations are what
    constraints cost.

    Args:
        fields: (B, X, 6) state of the study's term automaton, offset by the study's place in the stacked tables; of
            its negation automaton, offset likewise; bits of the sets that the text holds and of the soft rules that it
            broke; hash of the sentence being written; state of the template; sentences begun, times 4, and the phase
            of the last one.
        written: (B, X, R) hashes of the sentences before it, 0 where there is none; R is 0 where they don't count.
    """

    __slots__ = ("_fields", "columns", "ended", "meaning", "written")

    def __init__(self, fields: Tensor | Sequence[Tensor], written: Tensor) -> None:
        whole = isinstance(fields, Tensor)
        self._fields: Tensor | None = fields if whole else None  # type: ignore[assignment]
        self.columns: list[Tensor] = list(fields.unbind(-1) if whole else fields)  # type: ignore[union-attr]
        self.written = written
        self.ended: Tensor | None = None  # `Tracker.pending`, once it was asked for
        self.meaning: Tensor | None = None  # `Tracker._meaning`, likewise

    @property
    def fields(self) -> Tensor:
        if self._fields is None:
            self._fields = torch.stack(self.columns, -1)
        return self._fields

    def add_met(self, bits: Tensor) -> None:
        """Sets more bits of what is met."""
        self.columns[MET] = self.columns[MET] | bits
        self._fields = None

    @property
    def terms(self) -> Tensor:
        return self.columns[TERMS]

    @property
    def assertion(self) -> Tensor:
        return self.columns[ASSERTION]

    @property
    def met(self) -> Tensor:
        return self.columns[MET]

    @property
    def sentence(self) -> Tensor:
        return self.columns[SENTENCE]

    @property
    def frame(self) -> Tensor:
        return self.columns[FRAME]

    @property
    def begun(self) -> Tensor:
        return self.columns[BEGUN]

    def pick(self, index: Tensor) -> Tracked:
        """Entries `index` (B, C) of (B, X)."""
        wide = index[:, :, None]
        written = self.written
        if written.shape[-1]:
            written = written.gather(1, wide.expand(-1, -1, written.shape[-1]))
        return Tracked(self.fields.gather(1, wide.expand(-1, -1, FIELDS)), written)


class Tracker(ConstraintTables):
    """States of a batch's beams under its constraints."""

    tracing = False
    """Keep what each rule refused of the last offers, in `refused`."""

    refused: dict[str, Tensor]

    def __init__(
        self, constraints: Sequence[CompiledConstraints | None], settings: BeamSettings, device: torch.device
    ) -> None:
        super().__init__(constraints, settings, device)
        # (B,) tokens left from which on a study may be short of them for what it still must write.
        self.last_calls = self.most_need + 1 + CLOSING + self.longest_denial.clamp(min=LAST_CALL)
        self.last_calls = self.last_calls.masked_fill(self.free, -1)
        self.latest = int(self.last_calls.max())

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

    def _countable(self, state: Tracked, missing: Tensor) -> Tensor:
        """Those of the missing bits whose terms would count here: in this section, and next in their order."""
        if self.has_frame:
            missing = missing & self.frame_counts[state.frame]
        if self.has_order:
            turn = ((((state.met | self.pending(state)) & self.hard_column) << 1) | 1) & missing
            missing = torch.where(self.ordered != 0, turn, missing)
        return missing

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

    def _progress(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens that what is written saves for one of the missing terms, at most."""
        open_sets = (missing[..., None] >> self.bits) & 1
        return (self.saved[self.row_of[self._meaning(state)]] * open_sets).amax(-1)

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

    def _goes_on(self, state: Tracked, missing: Tensor) -> Tensor:
        """Whether a missing required term is under way, by however few letters."""
        return (self.going[self._meaning(state)] & self._countable(state, missing)) != 0

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
