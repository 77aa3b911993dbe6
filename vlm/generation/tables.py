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

from vlm.generation.automaton import AFTER_SPACE, fold, is_word
from vlm.generation.compiling import CompiledConstraints
from vlm.generation.negation import BROKEN, FORBIDDEN, PADDING, PLAIN, SPACE, STOP, UNDENIED
from vlm.generation.settings import BeamSettings
from vlm.types import InputError

PRIME = 1_099_511_628_211
"""Multiplier of the rolling hash of a sentence's letters and digits (FNV's prime; sums wrap at 64 bits)."""


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
        asserted = self._tensor([entry.asserted for entry in distinct])
        self.any_bits = ~asserted[self.which]  # (B,) bits that a negated mention meets too
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
        lower_case_only = capital.mean() < 0.01
        self.may_open = self._tensor(capital | lower_case_only, torch.bool)
        self.begins_in_word = self._tensor([row[0] < 256 and is_word(int(row[0])) for row in matrix], torch.bool)
        self.is_end = torch.zeros(len(matrix), dtype=torch.bool, device=self.device)
        self.is_end[ends] = True

    def _stack_ways(self, distinct: list[CompiledConstraints]) -> None:
        """What required terms cost, and the tokens that begin and carry them on."""
        self.has_must = any(entry.hard for entry in distinct)
        self.max_level = 2 * max(entry.hard for entry in distinct)
        sets = max(1, max(len(entry.names) for entry in distinct))
        self.bits = torch.arange(sets, device=self.device)
        self.weights = self._padded([entry.weights for entry in distinct], sets)  # (B, Q)
        self.cost = self._padded([entry.cost[:, 0] for entry in distinct], sets)  # (B, Q)
        hard = self._tensor([(1 << entry.hard) - 1 for entry in distinct])[self.which]
        self.hard = hard.masked_fill(self.free, 0)  # (B,) bits of the sets that must appear
        totals = [int(entry.cost.max(1, initial=0).sum()) + entry.hard for entry in distinct]
        self.total_cost = self._tensor(totals)[self.which]  # (B,) tokens of all required terms, a full stop for each
        self.longest_need = max(totals)
        self.asserted = self._tensor([entry.asserted & ((1 << entry.hard) - 1) for entry in distinct])[self.which]
        self._stack_rows(distinct, sets)
        self.begin_tokens, self.begin_bits = self._ragged([tokens for entry in distinct for tokens in entry.begin])
        self.after_space = self._tensor(np.concatenate([entry.terms.after_space for entry in distinct]), torch.bool)
        stops = [-1 if entry.stop_token is None else entry.stop_token for entry in distinct]
        self.stop_token = self._tensor(stops)[self.which]

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
