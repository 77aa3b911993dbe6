"""The shape of a text: a template with slots (sections in order are one), and how many sentences it has.

A template is fixed text with named slots: `"Findings: {findings}\nImpression: {impression}"`. It becomes an automaton
over bytes: fixed text byte by byte, a slot by the Knuth-Morris-Pratt table of the fixed text behind it, so that the
first place where that text stands ends the slot. A slot must hold a letter or a digit.

A sentence begins with a letter or digit and ends with a line break, or with a full stop that white space or the text's
end follows ("3.5 cm" is inside one). Every token's effect on that is tabulated, so a step looks it up.

Shapes: `F` states of a template, `V` tokens, `L` bytes of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from weakref import WeakKeyDictionary

import numpy as np

from vlm.generation.automaton import is_word
from vlm.generation.tokens import TokenTable
from vlm.types import InputError

LOST = 0
"""State of a text that has left its template."""

OUTSIDE, INSIDE, STOPPED = range(3)
"""Phases of a sentence: none is open, one is, and one whose full stop has just been written."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A template in parts: fixed text before each slot and behind the last one.

    Args:
        fixed: n + 1 texts; the first and the last may be empty.
        slots: n names.
    """

    fixed: tuple[str, ...]
    slots: tuple[str, ...]


def parse_template(template: str) -> Layout:
    """Splits a template; `{{` and `}}` stand for braces.

    Raises:
        InputError: no slot, a slot without a name or named twice, or two slots with nothing between them.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template {template!r}: {error}") from None
    fixed: list[str] = [""]
    slots: list[str] = []
    for text, name, _, _ in parts:
        fixed[-1] += text
        if name is None:
            continue
        if not name or name in slots:
            raise InputError(f"template {template!r}: each slot needs a name of its own, such as {{findings}}")
        if slots and not fixed[-1].strip():
            raise InputError(f"template {template!r}: slots {slots[-1]!r} and {name!r} need fixed text between them")
        slots.append(name)
        fixed.append("")
    if not slots:
        raise InputError(f"template {template!r} has no slot: write {{findings}} where text is to be filled in")
    return Layout(tuple(fixed), tuple(slots))


def sections_template(names: Sequence[str]) -> str:
    """The template of sections under their headings, in order: "Findings: {Findings}\nImpression: {Impression}"."""
    return "\n".join(f"{name}: {{{name}}}" for name in names)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A compiled template.

    Args:
        moves: (F, 257) int64, next state; byte 256 is padding.
        final: (F,) bool, the text may end here.
        need: (F,) int64, tokens that what is left of the template takes: one for each empty slot.
        slot: (F,) int64, index of the slot, -1 inside fixed text before the first.
        tokens: by state, tokens that write the fixed text on, or fill an empty slot.
        start: first state.
        names: of the slots.
    """

    moves: np.ndarray
    final: np.ndarray
    need: np.ndarray
    slot: np.ndarray
    tokens: tuple[tuple[int, ...], ...]
    start: int
    names: tuple[str, ...]


def compile_template(template: str, table: TokenTable) -> Frame:
    """Compiles a template for a tokenizer (raises `InputError` for fixed text that it can't write)."""
    layout = parse_template(template)
    fixed = [text.encode() for text in layout.fixed]
    for text in fixed:
        if text and table.greedy(_bare(text)) is None:
            raise InputError(f"template: the tokenizer can't write {text.decode()!r}: change it")
    fill = fillers(table, 3)
    costs = [_cost(text, table) for text in fixed]
    rest = [sum(1 + costs[later + 1] for later in range(slot, len(layout.slots))) for slot in range(len(fixed))]
    maker = _Maker(table)
    head = fixed[0]
    heads = [
        maker.add(-1 if _bare(head[at:]) else 0, _cost(head[at:], table) + rest[0], head[at:], fill)
        for at in range(len(head))
    ]
    spaced = maker.add(-1, costs[0] + rest[0], head, ()) if head else None
    starts, ids = [], []
    for slot, text in enumerate(fixed[1:]):
        own = {}
        for filled in (False, True):
            for at in range(max(1, len(text))):
                left = _cost(text[at:], table) if filled else 1 + costs[slot + 1]
                # With only its space left the fixed text is written: what follows belongs to the next slot.
                place = slot + int(filled and at > 0 and not _bare(text[at:]) and slot + 1 < len(layout.slots))
                ahead = text[at:] if filled else b""
                state = maker.add(place, left + rest[slot + 1], ahead, fill if text or not filled else ())
                own[filled, at] = state
                maker.final[state] = filled and not text and slot + 1 == len(layout.slots)
        starts.append(own[False, 0])
        ids.append(own)
    end = maker.add(len(layout.slots) - 1, 0, b"", ())
    maker.final[end] = True
    moves = np.zeros((len(maker.need), 257), dtype=np.int64)
    for at, state in enumerate(heads):
        moves[state, head[at]] = heads[at + 1] if at + 1 < len(heads) else starts[0]
    if spaced is not None:  # a text may begin with the space that some tokenizers put there
        moves[spaced, head[0]] = moves[heads[0], head[0]]
        if head[:1] != b" ":
            moves[heads[0], 32] = spaced
    for slot, own in enumerate(ids):
        _slot_moves(moves, own, fixed[slot + 1], starts[slot + 1] if slot + 1 < len(starts) else end)
    moves[end, [9, 10, 13, 32]] = end
    moves[:, 256] = np.arange(len(moves))
    return Frame(
        moves, np.array([maker.final[s] for s in range(len(moves))]), np.array(maker.need), np.array(maker.slot),
        tuple(maker.tokens), heads[0] if heads else starts[0], layout.slots,
    )  # fmt: skip


class _Maker:
    """Collects states; the first is `LOST`."""

    def __init__(self, table: TokenTable) -> None:
        self.table = table
        self.need, self.slot = [0], [-1]
        self.tokens: list[tuple[int, ...]] = [()]
        self.final = {LOST: False}

    def add(self, slot: int, need: int, text: bytes, fill: tuple[int, ...]) -> int:
        """A state from which `text` is to be written, or one of the tokens `fill` where only its space is left."""
        bare = _bare(text)
        tokens = list(self.table.greedy(bare) or [])[:1]
        own = self.table.encode(bare.decode(errors="ignore")) if bare else []
        if own and self.table.write(own) == bare:
            tokens.append(own[0])
        self.need.append(need)
        self.slot.append(slot)
        self.tokens.append(tuple(dict.fromkeys(tokens or fill)))
        self.final[len(self.need) - 1] = False
        return len(self.need) - 1


def _bare(text: bytes) -> bytes:
    """Fixed text without the space behind it, which the next slot's first token brings along."""
    return text.rstrip(b" ")


def _cost(text: bytes, table: TokenTable) -> int:
    return len(table.greedy(_bare(text)) or ())


def fillers(table: TokenTable, most: int = 12) -> tuple[int, ...]:
    """Tokens that write a word each, for a slot or a sentence that nothing else fills in time."""
    found: dict[bytes, int] = {}
    for piece, token in table.by_bytes.items():
        word = piece[1:].lower()
        if piece[:1] == b" " and word.isalpha() and word.isascii():
            found.setdefault(word, token)
        if len(found) == most:
            break
    return tuple(found.values())


def _slot_moves(moves: np.ndarray, own: dict[tuple[bool, int], int], text: bytes, beyond: int) -> None:
    """Moves of a slot: on through the text behind it (Knuth, Morris and Pratt 1977), or back into the slot."""
    words = np.array([is_word(byte) for byte in range(256)])
    for (filled, at), state in own.items():
        if not text:
            moves[state, :256] = np.where(words, own[True, 0], state) if not filled else state
            continue
        for byte in range(256):
            back = _border(text[:at] + bytes([byte]), text)
            dropped = text[: at + 1 - back] if back <= at else b""
            full = filled or (back == 0 and bool(words[byte])) or any(words[b] for b in dropped[:at])
            if back == len(text):
                moves[state, byte] = beyond if filled else LOST
            else:
                moves[state, byte] = own[full, back]


def _border(written: bytes, text: bytes) -> int:
    """Length of the longest end of `written` that is a beginning of `text`."""
    return next(size for size in range(min(len(written), len(text)), -1, -1) if written.endswith(text[:size]))


@dataclass(frozen=True, slots=True, eq=False)
class SentenceTable:
    """What each token does to the count of sentences.

    Args:
        phase: (3, V) int64, phase behind the token, by the phase before it.
        begun: (3, V) int64, sentences that it begins.
    """

    phase: np.ndarray
    begun: np.ndarray


_TABLES: WeakKeyDictionary[TokenTable, SentenceTable] = WeakKeyDictionary()


def sentence_table(table: TokenTable) -> SentenceTable:
    """The table of a tokenizer, made once."""
    if table not in _TABLES:
        next_phase, opens = _sentence_moves()
        phases, begun = [], []
        for first in (OUTSIDE, INSIDE, STOPPED):
            phase = np.full(len(table.matrix), first)
            count = np.zeros(len(table.matrix), dtype=np.int64)
            for column in table.matrix.T:
                count += opens[phase, column]
                phase = next_phase[phase, column]
            phases.append(phase)
            begun.append(count)
        _TABLES[table] = SentenceTable(np.stack(phases).astype(np.int64), np.stack(begun))
    return _TABLES[table]


def _sentence_moves() -> tuple[np.ndarray, np.ndarray]:
    """Next phase and sentences begun, by phase and byte (256 is padding)."""
    moves = np.repeat(np.arange(3)[:, None], 257, axis=1)
    opens = np.zeros((3, 257), dtype=np.int64)
    for byte in range(256):
        if is_word(byte):
            moves[:, byte] = INSIDE
            opens[OUTSIDE, byte] = 1
        elif chr(byte) in ".!?":
            moves[INSIDE, byte] = STOPPED
        elif chr(byte) in "\n\r":
            moves[:, byte] = OUTSIDE
        elif chr(byte).isspace():
            moves[STOPPED, byte] = OUTSIDE
    return moves, opens


def count_sentences(text: str) -> int:
    """Sentences of a text, as the search counts them."""
    moves, opens = _sentence_moves()
    phase = count = 0
    for byte in text.encode():
        count += int(opens[phase, byte])
        phase = int(moves[phase, byte])
    return count
