"""Constraints of a batch, stacked into tensors: what `tracker.py` looks up, and nothing that changes while searching.

Studies may share an automaton (of one wording) and still give its states different meanings, so two indices are kept: a
state's place in the stacked automata, and, `shift` further, its place in the tables of meanings.

Shapes: `B` studies, `V` tokens, `S` states, `Q` sets with a bit, `P` states with tokens that carry a term on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.generation.automaton import AFTER_SPACE
from vlm.generation.compiling import CompiledConstraints
from vlm.generation.constraints import RULES
from vlm.generation.negation import BROKEN, FIRST_DENIAL, FORBIDDEN, PADDING, PLAIN, REQUIRED, SPACE, STOP, UNDENIED
from vlm.generation.settings import BeamSettings
from vlm.generation.structure import LOST, fillers, sentence_table
from vlm.generation.tokens import TokenTable
from vlm.types import InputError

RULE_BITS = {rule: 57 + place for place, rule in enumerate(RULES)}
"""Bits of the rules beside those of sets; 62 stands for a forbidden assertion."""

ASSERTED = 62

MOST_SENTENCES = 1 << 30
"""Where there is no most."""


class ConstraintTables:
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
        self._stack_tokens(table, settings)
        self._stack_rules(distinct)
        self._stack_ways(distinct)
        self.remembers = any("repeat_sentences" in rules for entry in distinct for rules in entry.rules)
        self.has_sets = any(entry.names for entry in distinct)
        self.forbids = bool((self.events & (FORBIDDEN | UNDENIED)).any())
        self.may_deny = bool((self.events & (FORBIDDEN | REQUIRED)).any())
        self.undenied = bool((self.events & UNDENIED).any())
        self.has_soft = any(entry.weights.any() or entry.rules[1] for entry in distinct)
        self.any_free, self.any_asserted = bool(self.free.any()), bool(self.asserted.any())
        self.most_cost = int(self.total_cost.max())
        # (B, 1), as every step needs them.
        self.hard_column, self.stop_token_column = self.hard[:, None], self.stop_token[:, None]
        self.any_bits_column, self.shift_column = self.any_bits[:, None], self.shift[:, None]
        self.asserted_column, self.begin_row = self.asserted[:, None], self.which[:, None] * 4 + 2

    def _tensor(self, array: Any, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(self.device, dtype)

    def _stack_terms(self, distinct: list[CompiledConstraints]) -> None:
        """Studies may share an automaton and differ in what its states mean: `meaning` - `terms` is a study's
        offset."""
        automata = list({id(entry.terms): entry.terms for entry in distinct}.values())
        self.term_width = max(automaton.moves.shape[1] for automaton in automata)
        offsets = np.concatenate([[0], np.cumsum([len(automaton.moves) for automaton in automata])])
        place = {id(automaton): number for number, automaton in enumerate(automata)}
        if len(automata) == 1:
            jumps = automata[0].jumps
        else:
            moves = np.zeros((int(offsets[-1]), self.term_width), dtype=np.int64)
            for automaton, offset in zip(automata, offsets, strict=False):
                size, width = automaton.moves.shape
                moves[offset : offset + size, :width] = automaton.moves + offset
            jumps = moves.ravel() * self.term_width
        own = np.array([place[id(entry.terms)] for entry in distinct])
        self.meaning_offsets = np.concatenate([[0], np.cumsum([len(entry.events) for entry in distinct])])
        self.jumps = self._tensor(jumps)  # (S * C,) `term_width` times the next state
        self.term_classes = self._tensor(np.stack([entry.terms.classes for entry in distinct])).flatten()
        self.class_rows = 257 * self.which[None, :, None]
        self.term_start = self._tensor(offsets[own])[self.which] + AFTER_SPACE
        self.shift = self._tensor(self.meaning_offsets[:-1] - offsets[own])[self.which]  # (B,)
        self.shifted = bool(self.shift.any())
        self.own_classes = automata[0].classes if len(automata) == 1 else None
        self.events = self._tensor(np.concatenate([entry.events for entry in distinct]))
        self.meets = self._tensor(np.concatenate([entry.meets for entry in distinct]))
        self.inside = self._tensor(np.concatenate([entry.inside for entry in distinct]))
        self.torn = self._tensor(np.concatenate([entry.torn for entry in distinct]))
        self.letters = self._tensor(np.concatenate([entry.letters for entry in distinct]))

    def _stack_assertion(self, distinct: list[CompiledConstraints]) -> None:
        automata = list({id(entry.assertion): entry.assertion for entry in distinct}.values())
        offsets = np.concatenate([[0], np.cumsum([len(automaton.moves) for automaton in automata])])
        place = {id(automaton): int(offset) for automaton, offset in zip(automata, offsets, strict=False)}
        moves = np.concatenate([automaton.moves + place[id(automaton)] for automaton in automata])
        self.assertion_moves = self._tensor(moves).flatten()
        self.assertion_shape = moves.shape[1:]
        denial = np.concatenate([np.arange(len(automaton.moves)) >= FIRST_DENIAL for automaton in automata])
        self.denying = self._tensor(denial, torch.bool)
        self.assertion_start = self._tensor([place[id(entry.assertion)] for entry in distinct])[self.which] + PLAIN
        self.assertion_classes = self._tensor(automata[0].classes)
        self.broken = torch.zeros(len(moves), dtype=torch.bool, device=self.device)
        self.broken[self._tensor(offsets[:-1] + BROKEN)] = True
        to_deny = {id(entry.assertion): entry.to_deny for entry in distinct}
        self.to_deny = self._tensor(np.concatenate([to_deny[id(automaton)] for automaton in automata]), torch.float32)
        longest = [int(entry.to_deny.max()) for entry in distinct]
        self.longest_denial = self._tensor(longest)[self.which]  # (B,)
        self.plain = torch.zeros_like(self.broken)
        self.plain[self._tensor(offsets[:-1] + PLAIN)] = True
        self.negated = self._tensor(np.concatenate([automaton.negated for automaton in automata]), torch.bool)
        self.unnegated_bits = (~self.negated).long().neg()  # -1 (all bits) outside a negation's scope, 0 inside
        asserted = self._tensor([entry.asserted for entry in distinct])
        self.any_bits = ~asserted[self.which]  # (B,) bits that a negated mention meets too
        boundary = np.zeros(PADDING + 1, dtype=np.int64)
        boundary[SPACE : STOP + 2] = -1
        self.boundary = self._tensor(boundary)

    def _stack_tokens(self, table: TokenTable, settings: BeamSettings) -> None:
        """Bytes of each token; an end token reads as a full stop. And each token's share in the hash of its
        sentence."""
        traits = table.traits
        size = len(table.matrix)
        self.bytes = self._tensor(table.matrix, torch.int16)
        self.lengths = self._tensor(traits.lengths)
        self.silent = self.lengths == 0
        self.token_hash, self.token_power = self._tensor(traits.hashes), self._tensor(traits.powers)
        self.ends_sentence = self._tensor(traits.ends_sentence, torch.bool)
        self.may_open = self._tensor(traits.may_open, torch.bool)
        self.begins_in_word = self._tensor(traits.begins_in_word, torch.bool)
        self.stops_early = self._tensor(traits.stops_early, torch.bool)
        self.stops_twice = self._tensor(traits.stops_twice, torch.bool)
        ends = [token for token in settings.eos_token_ids if token < size]
        stop = torch.full((self.bytes.shape[1],), 256, dtype=torch.int16, device=self.device)
        stop[0] = ord(".")
        values = {"bytes": stop, "lengths": 1, "token_hash": 0, "token_power": 1, "ends_sentence": True}
        values |= {"may_open": True, "begins_in_word": False, "stops_early": False, "stops_twice": False}
        for name, value in values.items():
            own = getattr(self, name).clone()  # the tokenizer's own arrays stay as they are
            own[ends] = value
            setattr(self, name, own)
        # What every byte of a token is to the automata, so that a step looks it up once.
        pieces = self.bytes.long()
        self.token_classes = self.assertion_classes[pieces]
        self.boundaries = self.boundary[self.token_classes] != 0
        self.token_columns = None if self.own_classes is None else self._tensor(self.own_classes)[pieces]
        self.is_end = torch.zeros(size, dtype=torch.bool, device=self.device)
        self.is_end[ends] = True
        self.silent[ends] = False

    def _stack_ways(self, distinct: list[CompiledConstraints]) -> None:
        """What required terms cost, and the tokens that begin and carry them on."""
        self.has_must = any(entry.hard for entry in distinct)
        self.max_level = 2 * max(entry.hard for entry in distinct)
        sets = max(1, max(len(entry.names) for entry in distinct))
        soft_rules = [rule for rule in RULES if any(rule in entry.rules[1] for entry in distinct)]
        self.bits = self._tensor([*range(sets), *(RULE_BITS[rule] for rule in soft_rules)])
        weights = []
        for entry in distinct:
            own = np.zeros(sets + len(soft_rules))
            own[: len(entry.weights)] = entry.weights
            own[sets:] = [-entry.rules[1].get(rule, 0.0) for rule in soft_rules]
            weights.append(own)
        sets += len(soft_rules)
        self.weights = self._padded(weights, sets)  # (B, Q)
        self.cost = self._padded([entry.cost[:, 0] for entry in distinct], sets)  # (B, Q)
        hard = self._tensor([(1 << entry.hard) - 1 for entry in distinct])[self.which]
        self.hard = hard.masked_fill(self.free, 0)  # (B,) bits of the sets that must appear
        totals = [int(entry.cost.max(1, initial=0).sum()) + entry.hard for entry in distinct]
        self.total_cost = self._tensor(totals)[self.which]  # (B,) tokens of all required terms, a full stop for each
        counts = [2 * entry.source.sentences[0] for entry in distinct]
        frames = [
            0 if entry.frame is None or "template" in entry.rules[1] else int(max(entry.frame.need))
            for entry in distinct
        ]
        needs = [sum(parts) for parts in zip(totals, counts, frames, strict=True)]
        self.most_need = self._tensor(needs)[self.which]  # (B,) tokens that constraints take at most
        self.asserted = self._tensor([entry.asserted & ((1 << entry.hard) - 1) for entry in distinct])[self.which]
        self._stack_rows(distinct, sets)
        self.begin_tokens, self.begin_bits = self._ragged([tokens for entry in distinct for tokens in entry.begin])
        self.after_space = self._tensor(np.concatenate([entry.terms.after_space for entry in distinct]))
        stops = [-1 if entry.stop_token is None else entry.stop_token for entry in distinct]
        self.stop_token = self._tensor(stops)[self.which]

    def _stack_rules(self, distinct: list[CompiledConstraints]) -> None:
        """Which rules bind, templates, counts of sentences, terminologies, and where a required term counts."""
        hard = [sum(1 << RULE_BITS[rule] for rule in entry.rules[0]) for entry in distinct]
        soft = [sum(1 << RULE_BITS[rule] for rule in entry.rules[1]) for entry in distinct]
        self.hard_rules = self._tensor(hard)[self.which].masked_fill(self.free, 0)  # (B,)
        self.soft_rules = self._tensor(soft)[self.which].masked_fill(self.free, 0)
        self.has_rules = any(entry.rules[0] or entry.rules[1] for entry in distinct)
        ordered = [-1 if entry.source.in_order else 0 for entry in distinct]
        self.ordered = self._tensor(ordered)[self.which].masked_fill(self.free, 0)[:, None]  # (B, 1) all bits or none
        self.has_order = bool(self.ordered.any())
        counts = [entry.source.sentences for entry in distinct]
        self.least = self._tensor([least for least, _ in counts])[self.which].masked_fill(self.free, 0)[:, None]
        most = [MOST_SENTENCES if most is None else most for _, most in counts]
        self.most = self._tensor(most)[self.which].masked_fill(self.free, MOST_SENTENCES)[:, None]
        self.has_count = any(count != (0, None) for count in counts)
        self._stack_frames(distinct)
        self.has_vocabulary = any(entry.halves is not None for entry in distinct)
        asks = [entry.hard > 0 or entry.frame is not None or entry.halves is not None for entry in distinct]
        self.always_asks = self._tensor(asks, torch.bool)[self.which] & ~self.free  # (B,)
        if self.has_vocabulary:
            breaks = np.zeros((int(self.meaning_offsets[-1]), self.term_width), dtype=bool)
            left = np.zeros(len(breaks), dtype=np.int64)
            token = np.full(len(breaks), -1, dtype=np.int64)
            for entry, offset in zip(distinct, self.meaning_offsets, strict=False):
                if entry.halves is not None:
                    rows, columns = entry.halves.breaks.shape
                    breaks[offset : offset + rows, :columns] = entry.halves.breaks
                    left[offset : offset + rows] = entry.halves.left
                    token[offset : offset + rows] = entry.halves.token
            self.breaks = self._tensor(breaks, torch.bool).flatten()
            self.owed, self.owed_token = self._tensor(left), self._tensor(token)

    def _stack_frames(self, distinct: list[CompiledConstraints]) -> None:
        """Templates one behind another; state 0 is that of studies without one. And the sets that count where."""
        self.has_frame = any(entry.frame is not None for entry in distinct)
        self.sentence_phase, self.sentence_begun = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
        if self.has_count:
            table = sentence_table(distinct[0].table)
            self.sentence_phase, self.sentence_begun = self._tensor(table.phase), self._tensor(table.begun)
            self.fill_tokens = self._tensor(fillers(distinct[0].table))
        moves, final, need = [np.zeros((1, 257), dtype=np.int64)], [[True]], [[0]]
        bits, whole = [[0]], [[0]]
        counts, passed, starts, lost = [[-1]], [[0]], [], [[False]]
        tokens: list[tuple[int, ...]] = [()]
        size = 1
        for entry in distinct:
            sections = [own.section for own in entry.source.must_appear]
            names = [own.name for own in entry.source.must_appear]
            where = {name: section for name, section in zip(names, sections, strict=True) if section is not None}
            bound = {bit: where[name] for bit, name in enumerate(entry.names[: entry.must]) if name in where}
            frame = entry.frame
            if frame is None:
                starts.append(0)
                continue
            free = ~sum(1 << bit for bit in bound)
            soft = "template" in entry.rules[1]
            own, late = [], []
            for slot in frame.slot.tolist():
                here = sum(1 << bit for bit, name in bound.items() if slot >= 0 and frame.names[slot] == name)
                own.append(free | here)
                late.append(sum(1 << b for b, name in bound.items() if frame.names.index(name) < slot))
            own[LOST] = -1 if soft else own[LOST]
            bits.append([0 if value == -1 else value & ~free for value in own])
            most = {
                slot: max(int(n) for n, s in zip(frame.need, frame.slot, strict=True) if s == slot)
                for slot in set(frame.slot.tolist())
            }
            whole.append([0 if soft else most[slot] for slot in frame.slot.tolist()])
            moves.append(frame.moves + size)
            starts.append(frame.start + size)
            final.append([bool(value) or (soft and state == LOST) for state, value in enumerate(frame.final)])
            need.append([0 if soft else int(value) for value in frame.need])
            lost.append([state == LOST for state in range(len(frame.moves))])
            counts.append(own)
            passed.append(late)
            tokens += list(frame.tokens)
            size += len(frame.moves)
        self.frame_start = self._tensor(starts)[self.which].masked_fill(self.free, 0)
        if not self.has_frame:
            return
        self.frame_jumps = self._tensor(np.concatenate(moves) * 257).flatten()
        self.frame_final = self._tensor([value for row in final for value in row], torch.bool)
        self.frame_lost = self._tensor([value for row in lost for value in row], torch.bool)
        self.frame_need = self._tensor([value for row in need for value in row])
        self.frame_counts = self._tensor([value for row in counts for value in row])
        self.frame_own = self._tensor([value for row in bits for value in row])
        self.frame_whole = self._tensor([value for row in whole for value in row])
        self.frame_passed = self._tensor([value for row in passed for value in row])
        width = max(1, max(map(len, tokens)))
        self.frame_tokens = self._tensor([[*row, *[-1] * (width - len(row))] for row in tokens])

    def _stack_rows(self, distinct: list[CompiledConstraints], sets: int) -> None:
        """Tokens that carry a term on and what they save, by row; a study's first two rows are for states outside
        terms."""
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
        gains = (self.saved > 0).long() << torch.arange(sets, device=self.device).clamp(max=62)
        self.going = gains.sum(-1)[self.row_of]  # (S,) bits of the sets that a state brings on, by however few letters

    def _padded(self, values: Sequence[np.ndarray], sets: int) -> Tensor:
        rows = np.zeros((len(values), sets), dtype=np.float32)
        for row, own in zip(rows, values, strict=True):
            row[: len(own)] = own
        return self._tensor(rows, torch.float32)[self.which]

    def _ragged(self, rows: list[tuple[tuple[int, int], ...]]) -> tuple[Tensor, Tensor]:
        width = max(1, max(map(len, rows)))
        tokens = np.full((len(rows), width), -1, dtype=np.int64)
        bits = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            for column, (token, mask) in enumerate(row):
                tokens[number, column], bits[number, column] = token, mask
        return self._tensor(tokens), self._tensor(bits)
