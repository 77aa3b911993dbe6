"""Assertion or not, byte by byte: a small automaton for negation triggers, the end of their scope, and denials behind a term.

After NegEx (Chapman et al. 2001): a trigger ("no", "without") negates every term up to the end of the sentence or a word that ends
its scope ("but", "change in"). Departure: nothing is taken back. A forbidden term that no trigger precedes must be followed at
once by a denial ("is not seen"); a required one must not be.

The automaton's state is (inside a scope?, progress through a denial). Events of the term automaton reach it at the byte behind the
term's or trigger's last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from vlm.generation.automaton import fold, is_word
from vlm.types import InputError

OPEN, CLOSE, FORBIDDEN, REQUIRED = 1, 2, 4, 8
"""Events, as bits: a trigger ended, a scope ended, a forbidden term ended, a term that must be asserted ended."""

EVENTS = 16
LETTERS, SPACE, STOP, MARK, WORD, PADDING = 0, 36, 37, 38, 39, 40
CLASSES = 41
PLAIN, NEGATED, BROKEN = range(3)

_COPULAS = ("is", "are", "was", "were", "has been", "have been", "")
_DENIALS = ("seen", "identified", "present", "visualized", "noted", "evident", "appreciated", "demonstrated", "detected", "found")


@dataclass(frozen=True, slots=True)
class Negation:
    """The words that negate.

    Args:
        before: triggers; what follows in the sentence is negated.
        stop: words that end a trigger's scope, pseudo-negations among them ("no change in" negates nothing).
        after: denials, read from the term's last letter on.
    """

    before: tuple[str, ...] = (
        "no",
        "not",
        "without",
        "negative for",
        "free of",
        "absence of",
        "absent",
        "lack of",
        "denies",
        "neither",
        "nor",
        "never",
        "rather than",
        "resolution of",
        "rules out",
        "rule out",
        "ruled out",
        "clear of",
    )
    stop: tuple[str, ...] = (
        "but",
        "however",
        "although",
        "though",
        "except",
        "except for",
        "apart from",
        "other than",
        "aside from",
        "which",
        "there is",
        "there are",
        "not only",
        "no longer",
        "change in",
        "change of",
        "changes in",
        "change to",
        "increase in",
        "decrease in",
        "improvement in",
        "secondary to",
        "due to",
        "not excluded",
        "cannot exclude",
        "not exclude",
    )
    after: tuple[str, ...] = tuple(
        f"{copula} not {denial}".strip() for copula in _COPULAS for denial in _DENIALS
    ) + tuple(f"{copula} {word}" for copula in _COPULAS if copula for word in ("absent", "resolved", "excluded", "ruled out")) + (
        "has resolved",
        "have resolved",
        "is no longer seen",
        "are no longer seen",
    )  # fmt: skip

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Negation:
        """From plain data; raises `InputError` for a key that is not known or a value that is no list of texts."""
        values = {}
        for key, words in data.items():
            if key not in ("before", "stop", "after") or not isinstance(words, list | tuple):
                raise InputError(f"negation.{key}: expected lists of words under 'before', 'stop' and 'after'")
            values[key] = tuple(str(word) for word in words)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class AssertionAutomaton:
    """Compiled negation.

    Args:
        moves: (A, EVENTS, CLASSES) int32.
        negated: (A,) bool, inside a scope.
        classes: (257,) int64, class of a byte.
    """

    moves: np.ndarray
    negated: np.ndarray
    classes: np.ndarray


@lru_cache(maxsize=16)
def compile_negation(negation: Negation) -> AssertionAutomaton:
    """States PLAIN, NEGATED, BROKEN, then the trie of denials twice: behind a forbidden term, behind a required one."""
    trie: dict[bytes, int] = {b"": 0}
    for phrase in negation.after:
        text = b" " + fold(phrase.encode())
        for length in range(1, len(text) + 1):
            trie.setdefault(text[:length], len(trie))
    complete = {b" " + fold(phrase.encode()) for phrase in negation.after}
    size = len(trie)
    states = 3 + 2 * size
    classes = _classes()
    moves = np.zeros((states, EVENTS, CLASSES), dtype=np.int32)
    for event in range(EVENTS):
        for state in (PLAIN, NEGATED):
            moves[state, event] = _scope(state == NEGATED, event, first=(3 if event & FORBIDDEN else 0, 3 + size))
    moves[BROKEN] = BROKEN
    plain = moves[PLAIN].copy()
    for text, node in trie.items():
        if not node:
            continue
        forbidden, required = 3 + node, 3 + size + node
        moves[forbidden], moves[required] = BROKEN, plain
        if text in complete:
            moves[forbidden] = plain
    for text, node in trie.items():
        if not text:
            continue
        parent, byte_class = trie[text[:-1]], classes[text[-1]]
        done = text in complete
        if parent:
            moves[3 + parent, :, byte_class] = PLAIN if done else 3 + node
            moves[3 + size + parent, :, byte_class] = BROKEN if done else 3 + size + node
    _start_denials(moves, trie, classes, size)
    moves[:, :, PADDING] = np.arange(states)[:, None]
    negated = np.zeros(states, dtype=bool)
    negated[NEGATED] = True
    return AssertionAutomaton(moves, negated, classes)


def _scope(negated: bool, event: int, first: tuple[int, int]) -> np.ndarray:
    """Next state by class, denials left out: events count at a byte that is no word's, a full stop ends the scope."""
    row = np.full(CLASSES, NEGATED if negated else PLAIN, dtype=np.int32)
    after = bool(event & OPEN) or negated
    if event & CLOSE:
        after = False
    for boundary in (SPACE, MARK):
        row[boundary] = NEGATED if after else PLAIN
    if event & FORBIDDEN and not negated:
        row[[SPACE, MARK, STOP]] = BROKEN
    else:
        row[STOP] = PLAIN
    return row


def _start_denials(moves: np.ndarray, trie: dict[bytes, int], classes: np.ndarray, size: int) -> None:
    """A term's last letter followed by a space opens the trie of denials."""
    node = trie.get(b" ")
    if node is None:
        return
    for event in range(EVENTS):
        if event & FORBIDDEN:
            moves[PLAIN, event, SPACE] = 3 + node
        elif event & REQUIRED and not event & OPEN:
            moves[PLAIN, event, SPACE] = 3 + size + node


def _classes() -> np.ndarray:
    classes = np.full(257, MARK, dtype=np.int64)
    for byte in range(256):
        low = fold(bytes([byte]))[0]
        if 97 <= low <= 122:
            classes[byte] = LETTERS + low - 97
        elif 48 <= byte <= 57:
            classes[byte] = 26 + byte - 48
        elif low == 32:
            classes[byte] = SPACE
        elif chr(byte) in ".!?;":
            classes[byte] = STOP
        elif is_word(byte):
            classes[byte] = WORD
    classes[256] = PADDING
    return classes
