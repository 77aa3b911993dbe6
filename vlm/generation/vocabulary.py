"""Inside a term the words are from the terminology: no term is half-written.

A term of several words is begun when its first word is written, and owed from then on: every letter must go on with it
or with another term of the terminology, until one is complete. A beginning that is a term itself owes nothing, so
"pleural" may stand alone where the terminology holds it.
Where the text's end is a beginning of two terms at once ("left pleural", of "left pleural plaque"
and "pleural effusion"), either may follow.

Shapes: `S` states of the term automaton, `C` classes of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.generation.automaton import Automaton, is_word
from vlm.generation.tokens import TokenTable


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """A compiled terminology.

    Args:
        breaks: (S, C) bool, this class of byte leaves a term half-written.
        left: (S,) int64, bytes to the end of the nearest term that is owed; 0 where none is.
        token: (S,) int64, a token that goes on with it; -1 where none is owed.
    """

    breaks: np.ndarray
    left: np.ndarray
    token: np.ndarray


def compile_vocabulary(terms: Sequence[bytes], automaton: Automaton, table: TokenTable) -> Halves:
    """Compiles folded terms that the automaton knows."""
    states = len(automaton.moves)
    nodes = {term[:size] for term in terms for size in range(1, len(term) + 1)}
    whole = set(terms)
    ids = {text: automaton.nodes[text] for text in nodes}
    ending = np.zeros(states, dtype=bool)
    ending[[ids[term] for term in whole]] = True
    owed, settled, parent, last = (np.zeros(states, dtype=kind) for kind in (bool, bool, np.int64, np.int64))
    own = np.zeros(states, dtype=bool)
    left = np.full(states, 10_000, dtype=np.int64)
    step = np.full(states, -1, dtype=np.int64)
    levels: dict[int, list[bytes]] = {}
    for text in nodes:
        levels.setdefault(len(text), []).append(text)
    for size in sorted(levels):
        for text in levels[size]:
            state = ids[text]
            own[state], last[state] = True, text[-1]
            parent[state] = ids[text[:-1]] if size > 1 else 0
            # A term that ends at a word's end pays what is owed so far, itself included.
            before = text[:-1]
            paid = size > 1 and (settled[parent[state]] or (before in whole and not is_word(text[-1])))
            settled[state] = paid
            owed[state] = not paid and (b" " in text)
    for size in sorted(levels, reverse=True):
        for text in levels[size]:
            state = ids[text]
            if ending[state]:
                left[state] = 0
            if size > 1 and left[state] + 1 < left[parent[state]]:
                left[parent[state]], step[parent[state]] = left[state] + 1, text[-1]
    breaks = _breaks(automaton, own, owed, settled, ending, ids)
    token = np.full(states, -1, dtype=np.int64)
    owing = breaks.any(1)
    for state in np.flatnonzero(owing & (step >= 0)).tolist():
        token[state] = table.by_bytes.get(bytes([int(step[state])]), -1)
    left = np.where(owing & own, left, 0)
    return Halves(breaks, np.where(left >= 10_000, 0, left), token)


def _breaks(
    automaton: Automaton,
    own: np.ndarray,
    owed: np.ndarray,
    settled: np.ndarray,
    ending: np.ndarray,
    ids: dict[bytes, int],
) -> np.ndarray:
    """By state and class of byte, whether it leaves a term half-written."""
    states, width = automaton.moves.shape
    boundary = np.ones(width, dtype=bool)
    for byte in range(256):
        if is_word(byte):
            boundary[automaton.classes[byte]] = False
    child = np.zeros((states, width), dtype=bool)
    inner = [(ids[text[:-1]], automaton.classes[text[-1]]) for text in ids if len(text) > 1]
    if inner:
        rows, columns = zip(*inner, strict=True)
        child[list(rows), list(columns)] = True
    first_word = own & ~owed & ~settled & ~ending & (child & boundary).any(1)
    mine = np.zeros((states, width), dtype=bool)
    mine[owed] = True
    mine[owed & ending] = ~boundary  # "pleural effusions" is another word than the term's
    mine[first_word] = boundary
    mine &= ~child
    breaks = np.zeros((states, width), dtype=bool)
    leaves = np.ones((states, width), dtype=bool)  # goes on with no beginning of a term
    paid = own & (settled | (ending & ~owed))
    begun = owed | first_word
    for level in automaton.levels:
        fails = automaton.fails[level]
        mine_here = begun[level][:, None]
        # Where a shorter beginning stands at the text's end too, either may follow.
        leaves[level] = np.where(mine_here, ~child[level] & leaves[fails], leaves[fails])
        inherited = np.where(paid[level][:, None], False, breaks[fails])
        breaks[level] = np.where(mine_here, mine[level] & leaves[fails], inherited)
        complete = (ending & owed)[level]
        breaks[level[complete]] = mine[level[complete]]
    breaks[:, -1] = False
    return breaks
