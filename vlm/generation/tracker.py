"""Constraint states of all beams at once: a function of the tokens alone, held in tensors, advanced for every offer of
a step.

A step walks the bytes of the offered tokens through the tables of `compiling.py`: a loop over the bytes of the longest
token, never over beams, studies or the vocabulary. A lexicon's size shows only in the size of the tables.

Shapes: `B` studies, `K` beams, `M` offers a beam, `X` = K * M, `L` bytes of a token, `Q` sets with a bit, `R`
remembered sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlm.generation.automaton import AFTER_SPACE, fold, is_word
from vlm.generation.compiling import CompiledConstraints
from vlm.generation.negation import BROKEN, FORBIDDEN, PADDING, PLAIN, SPACE, STOP, UNDENIED
from vlm.types import InputError

if TYPE_CHECKING:
    from vlm.generation.beam_search import BeamSettings

REMEMBERED = 32
"""Sentences of a report that are compared with a new one."""

PRIME = 1_099_511_628_211
"""Multiplier of the rolling hash of a sentence's letters and digits (FNV's prime; sums wrap at 64 bits)."""

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

    def flatten(self) -> Tracked:
        """(B, K, M, ...) -> (B, X, ...)."""
        flat = [field.flatten(1, 2) for field in (self.terms, self.assertion, self.met, self.sentence, self.written)]
        return Tracked(*flat)

    def pick(self, index: Tensor) -> Tracked:
        """Entries `index` (B, C) of (B, X)."""
        terms, assertion, met, sentence = (
            f.gather(1, index) for f in (self.terms, self.assertion, self.met, self.sentence)
        )
        wide = index[:, :, None].expand(-1, -1, self.written.shape[-1])
        return Tracked(terms, assertion, met, sentence, self.written.gather(1, wide))


class Tracker:
    """Stacked tables of a batch's constraints.

    Args:
        constraints: one entry a study; None is no constraint. At least one is not None, and all are of one tokenizer.
        settings: end tokens and length.
        device: where the search runs.

    Raises:
        InputError: constraints compiled for different tokenizers.
    """

    def __init__(
        self, constraints: Sequence[CompiledConstraints | None], settings: BeamSettings, device: torch.device
    ) -> None:
        self.constraints, self.settings, self.device = tuple(constraints), settings, device
        distinct = list({id(entry): entry for entry in constraints if entry is not None}.values())
        table = distinct[0].table
        if any(entry.table is not table for entry in distinct):
            raise InputError("constraints were compiled for different tokenizers: compile them all for the model's")
        place = {id(entry): number for number, entry in enumerate(distinct)}
        # A study without constraints follows the first one's tables, and nothing is made of what they say.
        self.which = torch.tensor([place.get(id(entry), 0) for entry in constraints], device=device)  # (B,)
        self.free = torch.tensor([entry is None for entry in constraints], device=device)  # (B,)
        self._stack_terms(distinct)
        self._stack_assertion(distinct)
        self._stack_tokens(table.matrix, settings)
        self._stack_ways(distinct)
        self.no_repeat = torch.tensor(
            [entry is not None and not entry.source.repeat_sentences for entry in constraints], device=device
        )
        self.remembers = bool(self.no_repeat.any())
        self.has_sets = any(entry.names for entry in distinct)
        self.forbids = bool((self.events & (FORBIDDEN | UNDENIED)).any())
        self.has_soft = any(entry.weights.any() for entry in distinct)

    def _tensor(self, array: Any, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(self.device, dtype)

    def _stack_terms(self, distinct: list[CompiledConstraints]) -> None:
        """Studies may share an automaton and differ in what its states mean: `meaning` - `terms` is a study's
        offset."""
        automata = list({id(entry.terms): entry.terms for entry in distinct}.values())
        self.term_width = max(automaton.moves.shape[1] for automaton in automata)
        offsets = np.concatenate([[0], np.cumsum([len(automaton.moves) for automaton in automata])])
        place = {id(automaton): number for number, automaton in enumerate(automata)}
        moves = np.zeros((int(offsets[-1]), self.term_width), dtype=np.int32)
        for automaton, offset in zip(automata, offsets, strict=False):
            size, width = automaton.moves.shape
            moves[offset : offset + size, :width] = automaton.moves + offset
        own = np.array([place[id(entry.terms)] for entry in distinct])
        self.meaning_offsets = np.concatenate([[0], np.cumsum([len(entry.events) for entry in distinct])])
        self.term_moves = self._tensor(moves, torch.int32).flatten()
        self.term_classes = self._tensor(np.stack([entry.terms.classes for entry in distinct]))
        self.term_start = self._tensor(offsets[own])[self.which] + AFTER_SPACE
        self.shift = self._tensor(self.meaning_offsets[:-1] - offsets[own])[self.which]  # (B,)
        self.events = self._tensor(np.concatenate([entry.events for entry in distinct]))
        self.meets = self._tensor(np.concatenate([entry.meets for entry in distinct]))
        self.inside = self._tensor(np.concatenate([entry.inside for entry in distinct]))

    def _stack_assertion(self, distinct: list[CompiledConstraints]) -> None:
        automata = list({id(entry.assertion): entry.assertion for entry in distinct}.values())
        offsets = np.concatenate([[0], np.cumsum([len(automaton.moves) for automaton in automata])])
        place = {id(automaton): int(offset) for automaton, offset in zip(automata, offsets, strict=False)}
        moves = np.concatenate([automaton.moves + place[id(automaton)] for automaton in automata])
        self.assertion_moves = self._tensor(moves, torch.int32).flatten()
        self.assertion_shape = moves.shape[1:]
        self.assertion_start = self._tensor([place[id(entry.assertion)] for entry in distinct])[self.which] + PLAIN
        self.assertion_classes = self._tensor(automata[0].classes)
        self.broken = torch.zeros(len(moves), dtype=torch.bool, device=self.device)
        self.broken[self._tensor(offsets[:-1] + BROKEN)] = True
        to_deny = {id(entry.assertion): entry.to_deny for entry in distinct}
        self.to_deny = self._tensor(np.concatenate([to_deny[id(automaton)] for automaton in automata]), torch.float32)
        self.longest_denial = int(self.to_deny.max())
        self.plain = torch.zeros_like(self.broken)
        self.plain[self._tensor(offsets[:-1] + PLAIN)] = True
        self.negated = self._tensor(np.concatenate([automaton.negated for automaton in automata]), torch.bool)
        self.unnegated_bits = (~self.negated).long().neg()  # -1 (all bits) outside a negation's scope, 0 inside
        self.any_bits = ~self._tensor([entry.asserted for entry in distinct])[
            self.which
        ]  # (B,) bits that a negated mention meets
        boundary = np.zeros(PADDING + 1, dtype=np.int64)
        boundary[SPACE : STOP + 2] = -1
        self.boundary = self._tensor(boundary)

    def _stack_tokens(self, matrix: np.ndarray, settings: BeamSettings) -> None:
        """Bytes of each token; an end token reads as a full stop. And each token's share in the hash of its
        sentence."""
        matrix = matrix.copy()
        ends = [token for token in settings.eos_token_ids if token < len(matrix)]
        matrix[ends] = 256
        matrix[ends, 0] = ord(".")
        self.bytes = self._tensor(matrix, torch.int16)
        self.lengths = self._tensor((matrix < 256).sum(1))
        folded = np.array(
            [fold(bytes([byte]))[0] if is_word(byte) else 0 for byte in range(256)] + [0], dtype=np.uint64
        )[matrix]
        hashes, powers = np.zeros(len(matrix), dtype=np.uint64), np.ones(len(matrix), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for column in folded.T:
                written = column > 0
                hashes = np.where(written, hashes * np.uint64(PRIME) + column, hashes)
                powers = np.where(written, powers * np.uint64(PRIME), powers)
        self.token_hash = torch.from_numpy(hashes.view(np.int64)).to(self.device)
        self.token_power = torch.from_numpy(powers.view(np.int64)).to(self.device)
        self.ends_sentence = self._tensor(np.isin(matrix, [ord(char) for char in ".!?\n"]).any(1), torch.bool)
        letters = np.array(
            [next((chr(byte) for byte in row if byte < 128 and chr(byte).isalpha()), "A") for row in matrix]
        )
        capital = np.char.isupper(letters)
        self.may_open = self._tensor(
            capital if capital[self.lengths.cpu().numpy() > 0].mean() > 0.01 else capital | True, torch.bool
        )
        self.begins_in_word = self._tensor([row[0] < 256 and is_word(int(row[0])) for row in matrix], torch.bool)
        self.is_end = torch.zeros(len(matrix), dtype=torch.bool, device=self.device)
        self.is_end[ends] = True

    def _stack_ways(self, distinct: list[CompiledConstraints]) -> None:
        """Tokens that carry a term on and what they save, by row; a study's first two rows are for all states outside
        terms."""
        self.has_must = any(entry.hard for entry in distinct)
        self.max_level = 2 * max(entry.hard for entry in distinct)
        sets = max(1, max(len(entry.names) for entry in distinct))
        self.bits = torch.arange(sets, device=self.device)
        pad = lambda values, fill: [list(row) + [fill] * (sets - len(row)) for row in values]  # noqa: E731
        self.weights = self._tensor(pad([entry.weights for entry in distinct], 0.0), torch.float32)[
            self.which
        ]  # (B, Q)
        self.cost = self._tensor(pad([entry.cost[:, 0] for entry in distinct], 0), torch.float32)[self.which]
        self.hard = self._tensor([(1 << entry.hard) - 1 for entry in distinct])[self.which].masked_fill(
            self.free, 0
        )  # (B,)
        self.total_cost = max(int(entry.cost.max(1, initial=0).sum()) for entry in distinct)
        self.asserted = self._tensor([entry.asserted & ((1 << entry.hard) - 1) for entry in distinct])[self.which]
        rows: list[tuple[tuple[int, int], ...]] = []
        saved: list[list[int]] = []
        row_of = np.zeros(int(self.meaning_offsets[-1]), dtype=np.int64)
        for entry, offset in zip(distinct, self.meaning_offsets, strict=False):
            spaced, bare = entry.cost.T.tolist() if entry.hard else ([], [])
            gain = [[0] * sets, [a - b for a, b in zip(spaced, bare, strict=True)] + [0] * (sets - entry.hard)]
            row_of[offset : offset + len(entry.terms.moves)] = len(rows) + entry.terms.after_space
            rows += [(), ()]
            saved += gain
            for state, left in entry.rest.items():
                row_of[offset + state] = len(rows)
                rows.append(entry.carry_on.get(state, ()))
                base = gain[int(entry.terms.after_space[state])]
                saved.append(
                    [max(base[bit], spaced[bit] - left[bit]) if bit in left else base[bit] for bit in range(sets)]
                )
        self.row_of = self._tensor(row_of)
        self.carry_tokens, self.carry_bits = self._ragged(rows)
        self.saved = self._tensor(saved, torch.float32)
        self.begin_tokens, self.begin_bits = self._ragged([tokens for entry in distinct for tokens in entry.begin])
        self.after_space = self._tensor(np.concatenate([entry.terms.after_space for entry in distinct]), torch.bool)
        stops = [-1 if entry.stop_token is None else entry.stop_token for entry in distinct]
        self.stop_token = self._tensor(stops)[self.which]

    def _ragged(self, rows: list[tuple[tuple[int, int], ...]]) -> tuple[Tensor, Tensor]:
        width = max(1, max(map(len, rows)))
        tokens = np.full((len(rows), width), -1, dtype=np.int64)
        bits = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            for column, (token, mask) in enumerate(row):
                tokens[number, column], bits[number, column] = token, mask
        return self._tensor(tokens), self._tensor(bits)

    def start(self, batch: int, width: int) -> Tracked:
        """State before the first token."""
        zeros = torch.zeros(batch, width, dtype=torch.long, device=self.device)
        written = torch.zeros(batch, width, REMEMBERED if self.remembers else 1, dtype=torch.long, device=self.device)
        terms, assertion = self.term_start[:, None] + zeros, self.assertion_start[:, None] + zeros
        return Tracked(terms, assertion, zeros, zeros, written)

    def advance(self, state: Tracked, tokens: Tensor, logprobs: Tensor, step: int) -> tuple[Tracked, Tensor, Tensor]:
        """States behind every offered token, `tokens` and their `logprobs` (B, K, M).

        Returns:
            The states, (B, K, M); which offers are allowed; and which were refused for what they write (not for being
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
        missing = self.hard[:, None, None] & ~met  # (B, K, M)
        banned = banned | (self.is_end[tokens] & (missing != 0))
        if step + 1 == self.settings.max_new_tokens:
            banned = banned | (self._breaks_at_end(after) & ~self.is_end[tokens])
        banned = banned & ~self.free[:, None, None]
        allowed = ~banned
        if self.has_must or self.forbids:
            allowed = self._in_time(
                state, after, missing, allowed, self._apt(state, after, tokens, logprobs), tokens, step
            )
        return after, allowed, banned

    def _walk(self, state: Tracked, pieces: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Read the bytes `pieces` (B, K, M, L); states (B, K, M) behind them."""
        pieces = pieces[..., :longest].movedim(-1, 0).long()  # (L, B, K, M)
        term_class = self.term_classes.flatten()[self.which[:, None, None] * 257 + pieces]
        class_ = self.assertion_classes[pieces]
        boundary = self.boundary[class_]
        events_width, classes_width = self.assertion_shape
        shape = pieces.shape[1:]
        any_bits, shift = self.any_bits[:, None, None], self.shift[:, None, None]
        terms, assertion, met = (field[:, :, None].expand(shape) for field in (state.terms, state.assertion, state.met))
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
        return terms + self.shift.view(-1, *[1] * (terms.dim() - 1))

    def _sentences(self, state: Tracked, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hash of the sentence behind each token, the sentences written, and whether one was written again."""
        shape = tokens.shape
        written = state.written[:, :, None].expand(*shape, -1)
        sentence = state.sentence[:, :, None].expand(shape)
        sentence = sentence * self.token_power[tokens] + self.token_hash[tokens]
        if not self.remembers:
            return (
                sentence.masked_fill(self.ends_sentence[tokens], 0),
                written,
                torch.zeros_like(tokens, dtype=torch.bool),
            )
        closes = self.ends_sentence[tokens] & (sentence != 0)
        repeated = closes & (written == sentence[..., None]).any(-1) & self.no_repeat[:, None, None]
        shifted = torch.cat([sentence[..., None], written[..., :-1]], -1)
        written = torch.where(closes[..., None], shifted, written)
        return sentence.masked_fill(self.ends_sentence[tokens], 0), written, repeated

    def _need(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens that the missing required terms take from here on, `missing` (B, ...) bits."""
        open_sets = ((missing[..., None] >> self.bits) & 1).float()  # (B, ..., Q)
        cost = self.cost.view(len(self.cost), *[1] * (missing.dim() - 1), -1)
        need = (open_sets * cost).sum(-1)
        usable = ~self.negated[state.assertion] | ((missing & self.asserted.view(-1, *[1] * (missing.dim() - 1))) == 0)
        # One of the missing terms goes on from here; the others begin behind a space.
        saved = self.saved[self.row_of[self._meaning(state.terms)]].masked_fill(open_sets == 0, -1e9).amax(-1)
        return torch.where(missing == 0, 0.0, torch.where(usable, need - saved, need + 1))

    def _apt(self, before: Tracked, after: Tracked, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Offers (B, K, M) that don't begin a missing required term where the model finds it absurd."""
        missing = (self.hard[:, None] & ~before.met & ~self.inside[self._meaning(before.terms)])[:, :, None]
        begins = missing & (self.inside[self._meaning(after.terms)] | self._pending(after))
        at_start = (before.sentence == 0)[:, :, None] & self.may_open[tokens]
        return (begins == 0) | (logprobs >= PLAUSIBLE) | at_start

    def _in_time(
        self, before: Tracked, after: Tracked, missing: Tensor, allowed: Tensor, apt: Tensor, tokens: Tensor, step: int
    ) -> Tensor:
        """Refuse offers behind which the missing terms no longer fit, each in a sentence of its own if the length
        allows that.

        Of the rules below, each beam follows the first that leaves it an offer.
        """
        left = self.settings.max_new_tokens - step - 1  # tokens behind this one
        rules = [allowed & apt]
        if left <= self.total_cost + self.max_level // 2 + 1 + CLOSING + max(self.longest_denial, LAST_CALL):
            missing = missing & ~self._pending(after)
            need = self._need(after, missing) + self._denial_need(after, missing)
            stops = ((missing[..., None] >> self.bits) & 1).sum(-1) - (after.sentence == 0).long()
            idle = need == 0
            in_comfort = (need + stops + CLOSING <= left) | idle
            in_time = (need <= left) | idle
            late = need + stops + CLOSING + LAST_CALL > left
            strays = (before.sentence == 0)[:, :, None] & ~self._goes_on(after, missing)
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

    def _goes_on(self, state: Tracked, missing: Tensor) -> Tensor:
        """Whether a missing required term is under way, by however few letters."""
        open_sets = (missing[..., None] >> self.bits) & 1
        return ((self.saved[self.row_of[self._meaning(state.terms)]] > 0) & (open_sets > 0)).any(-1)

    def _denial_need(self, state: Tracked, missing: Tensor) -> Tensor:
        """Tokens to the end of the denial that a forbidden term asks for.

        Right behind the term it is one token, that makes it another word; none if that goes on with a missing required
        term.
        """
        plain = self.plain[state.assertion]
        goes_on = self._goes_on(state, missing)
        term_ends = ((self.events[self._meaning(state.terms)] & FORBIDDEN) != 0) & ~goes_on
        need = torch.where(plain, term_ends.float(), self.to_deny[state.assertion])
        return need * ~self.free.view(-1, *[1] * (state.terms.dim() - 1))

    def _pending(self, state: Tracked) -> Tensor:
        """Bits of the terms that end here, if a boundary follows."""
        any_bits = self.any_bits.view(-1, *[1] * (state.terms.dim() - 1))
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
        late = self.settings.max_new_tokens - step <= self.total_cost + self.max_level // 2 + 2 + CLOSING
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
        return (~self.free).float().view(-1, *[1] * (state.terms.dim() - 1))

    def bonus(self, before: Tracked, after: Tracked, tokens: Tensor) -> Tensor:
        """What each offer (B, K, M) earns: soft weights, and the price of evading a forbidden term."""
        price = torch.zeros((), device=self.device)
        if self.forbids:
            glued = self.begins_in_word[tokens.clamp(max=len(self.lengths) - 1)]
            caught = [self._caught(before, event)[:, :, None] & glued for event in (FORBIDDEN, UNDENIED)]
            entered = [self._caught(after, event) for event in (FORBIDDEN, UNDENIED)]
            price = (entered[0] * CAUGHT + entered[1] * GLUED + (caught[0] | caught[1]) * GLUED) * self._bound(after)
        if not self.has_soft:
            return price
        new = after.met & ~before.met[:, :, None]
        earned = ((new[..., None] >> self.bits) & 1).float() * self.weights[:, None, None]
        return price + earned.sum(-1).masked_fill(self.free[:, None, None], 0.0)

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
