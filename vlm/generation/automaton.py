"""Aho-Corasick over bytes, at word boundaries: which terms end here, and what could still become one (Aho and Corasick
1975).

The automaton reads folded bytes (lower case, all white space alike). A term starts at a boundary (after a byte that is
no letter or digit) and counts when the byte behind it is one, so "mass" is not found in "massive". Tokens are read byte
by byte, whatever their cut. The table is filled level by level with whole rows: 10,000 terms take well under a second.

States: 0 after white space, 1 after other punctuation, 2 inside a word that is no term's, from 3 on the trie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AFTER_SPACE, AFTER_MARK, IN_WORD, FIRST_NODE = range(4)

SPACE, MARK, WORD, FIRST_CLASS = range(4)
"""Classes of bytes that no term uses; from FIRST_CLASS on one class for each byte that some term uses. The last class
is padding."""


def fold(text: bytes) -> bytes:
    """Lower-case ASCII, every white space a plain space."""
    return text.lower().translate(_SPACES)


_SPACES = bytes(32 if chr(byte).isspace() and byte < 128 else byte for byte in range(256))


def is_word(byte: int) -> bool:
    """Whether a byte belongs to words: letters, digits and everything that is not ASCII."""
    return byte >= 128 or chr(byte).isalnum()


@dataclass(frozen=True, slots=True)
class Automaton:
    """Compiled terms.

    Args:
        classes: (257,) int64, class of a byte; of 256 (padding) the last.
        moves: (S, C) int32, next state.
        jumps: (S * C,) int64, C times the next state, so that a step is one look-up at `jump + class`.
        fails: (S,) state of the longest other suffix that is a term's beginning.
        ends: state at the end of each term.
        levels: states by length of their text, from length 1 on.
        nodes: state of every folded beginning of a term.
        after_space: (S,) bool, the last byte was white space.
    """

    classes: np.ndarray
    moves: np.ndarray
    jumps: np.ndarray
    fails: np.ndarray
    ends: tuple[int, ...]
    levels: tuple[np.ndarray, ...]
    nodes: dict[bytes, int]
    after_space: np.ndarray


def build(terms: Sequence[bytes]) -> Automaton:
    """Compile folded terms that begin and end with a word byte."""
    nodes, ends, parents, last, levels = _trie(terms)
    classes, spare = _classes(last)
    states, width = FIRST_NODE + len(nodes), spare + 1
    moves = np.empty((states, width), dtype=np.int32)
    fails = np.zeros(states, dtype=np.int32)
    base = np.full(width, IN_WORD, dtype=np.int32)
    for byte in range(256):
        if not is_word(byte):
            base[classes[byte]] = AFTER_SPACE if fold(bytes([byte])) == b" " else AFTER_MARK
    moves[:FIRST_NODE] = base
    last_class = classes[last]
    first = levels[0] if levels else np.empty(0, dtype=np.int64)
    moves[AFTER_SPACE, last_class[first - FIRST_NODE]] = first
    moves[AFTER_MARK, last_class[first - FIRST_NODE]] = first
    for depth, ids in enumerate(levels):
        row = last_class[ids - FIRST_NODE]
        fails[ids] = base[row] if depth == 0 else moves[fails[parents[ids - FIRST_NODE]], row]
        moves[ids] = moves[fails[ids]]
        if depth + 1 < len(levels):
            children = levels[depth + 1]
            moves[parents[children - FIRST_NODE], last_class[children - FIRST_NODE]] = children
    moves[:, spare] = np.arange(states)
    after_space = np.concatenate([[True, False, False], last == 32])
    jumps = moves.astype(np.int64).ravel() * width
    return Automaton(classes, moves, jumps, fails, ends, levels, nodes, after_space)


def _trie(
    terms: Sequence[bytes],
) -> tuple[dict[bytes, int], tuple[int, ...], np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    nodes: dict[bytes, int] = {}
    parents: list[int] = []
    last: list[int] = []
    depths: list[int] = []
    ends = []
    for term in terms:
        state = AFTER_SPACE
        for length in range(1, len(term) + 1):
            prefix = term[:length]
            found = nodes.get(prefix)
            if found is None:
                found = nodes[prefix] = FIRST_NODE + len(parents)
                parents.append(state)
                last.append(term[length - 1])
                depths.append(length)
            state = found
        ends.append(state)
    depth = np.array(depths, dtype=np.int64)
    order = np.argsort(depth, kind="stable")
    cuts = np.cumsum(np.bincount(depth)[1:])[:-1].tolist() if len(depth) else []
    levels = tuple(np.split(order + FIRST_NODE, cuts)) if len(depth) else ()
    return nodes, tuple(ends), np.array(parents, dtype=np.int64), np.array(last, dtype=np.int64), levels


def _classes(last: np.ndarray) -> tuple[np.ndarray, int]:
    """Class of each byte and the number of the padding class."""
    used = np.unique(last)
    classes = np.full(257, MARK, dtype=np.int64)
    for byte in range(256):
        if is_word(byte):
            classes[byte] = WORD
        elif fold(bytes([byte])) == b" ":
            classes[byte] = SPACE
    classes[used] = FIRST_CLASS + np.arange(len(used))
    for byte in range(256):
        classes[byte] = classes[fold(bytes([byte]))[0]]
    classes[256] = FIRST_CLASS + len(used)
    return classes, int(classes[256])
