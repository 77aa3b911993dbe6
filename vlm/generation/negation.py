"""Assertion or not, byte by byte: a small automaton for negation triggers, the end of their scope, and denials behind a
term.

After NegEx (Chapman et al. 2001): a trigger ("no", "without") negates every term up to the end of the sentence or a
word that ends its scope ("but", "no change in"). Departure: nothing is taken back. A forbidden term that no trigger
precedes must be followed at once by a denial ("is not seen"); a required one must not.

The automaton's state is (inside a scope?, progress through a denial). Events of the term automaton reach it at the byte
behind the term's or trigger's last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlm.generation.automaton import fold, is_word
from vlm.types import InputError

OPEN, CLOSE, FORBIDDEN, REQUIRED, UNDENIED = 1, 2, 4, 8, 16
"""Events, as bits: a trigger ended, a scope ended, a forbidden term ended, a term that must be asserted ended,
a term that must not be denied ended."""

EVENTS = 32
SPACE, STOP, MARK, WORD, PADDING = 36, 37, 38, 39, 40
"""Classes of bytes; 0 to 35 are letters and digits, WORD is every byte beyond ASCII."""
CLASSES = 41
PLAIN, NEGATED, BROKEN, FIRST_DENIAL = range(4)

_COPULAS = ("is", "are", "was", "were")
_SEEN = (
    "seen",
    "identified",
    "present",
    "visualized",
    "noted",
    "evident",
    "appreciated",
    "demonstrated",
    "detected",
    "found",
)


@dataclass(frozen=True, slots=True)
class Negation:
    """The words that negate.

    Args:
        before: triggers; what follows in the sentence is negated.
        stop: words that end a trigger's scope, pseudo-negations among them ("no change in" negates nothing).
        after: denials that stand right behind a term.
    """

    before: tuple[str, ...] = (
        *(
            "no",
            "not",
            "without",
            "negative for",
            "free of",
            "clear of",
            "absence of",
            "lack of",
            "denies",
            "neither",
            "nor",
        ),
        *("never", "rather than", "ruled out for", "rules out", "resolution of"),
    )
    stop: tuple[str, ...] = (
        *(
            "but",
            "however",
            "although",
            "though",
            "except",
            "apart from",
            "aside from",
            "other than",
            "which",
            "due to",
        ),
        *(
            "secondary to",
            "there is",
            "there are",
            "no change in",
            "no increase in",
            "no decrease in",
            "no improvement in",
        ),
        *("no interval change in", "no significant change in", "not only"),
    )
    after: tuple[str, ...] = (
        *(f"{lead}not {word}" for lead in ("", *(f"{copula} " for copula in _COPULAS)) for word in _SEEN),
        *(f"{copula} {word}" for copula in _COPULAS for word in ("absent", "excluded", "ruled out", "no longer seen")),
        *("has resolved", "have resolved"),
    )

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data."""
        return {"before": list(self.before), "stop": list(self.stop), "after": list(self.after)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Negation:
        """From plain data; raises `InputError` for a key that is not known or a value that is no list of texts."""
        values = {}
        for key, words in data.items():
            if key not in ("before", "stop", "after") or not isinstance(words, list | tuple):
                raise InputError(f"negation.{key}: expected lists of words under 'before', 'stop' and 'after'")
            values[key] = tuple(str(word) for word in words)
        return cls(**values)


@dataclass(frozen=True, slots=True, eq=False)
class AssertionAutomaton:
    """Compiled negation.

    Args:
        moves: (A, EVENTS, CLASSES) int32.
        negated: (A,) bool, inside a scope.
        classes: (257,) int64, class of a byte; of 256 (padding) the last.
        denials: what may stand behind a forbidden term, each with its leading space.
        nodes: state of every beginning of a denial behind a forbidden term.
    """

    moves: np.ndarray
    negated: np.ndarray
    classes: np.ndarray
    denials: tuple[bytes, ...]
    nodes: dict[bytes, int]


@lru_cache(maxsize=16)
def compile_negation(negation: Negation) -> AssertionAutomaton:
    """States PLAIN, NEGATED, BROKEN, then the trie of denials twice: behind a forbidden term, behind a required one."""
    denials = {b" " + fold(phrase.encode()) for phrase in negation.after}
    trie: dict[bytes, int] = {}
    for text in sorted(denials):
        for length in range(1, len(text) + 1):
            trie.setdefault(text[:length], len(trie))
    classes = _classes()
    forbidden, required = FIRST_DENIAL, FIRST_DENIAL + len(trie)
    states = FIRST_DENIAL + 2 * len(trie)
    moves = np.zeros((states, EVENTS, CLASSES), dtype=np.int32)
    for event in range(EVENTS):
        moves[PLAIN, event] = _scope(False, event)
        moves[NEGATED, event] = _scope(True, event)
        if trie and event & FORBIDDEN:
            moves[PLAIN, event, SPACE] = forbidden + trie[b" "]
        elif trie and event & REQUIRED and not event & OPEN:
            moves[PLAIN, event, SPACE] = required + trie[b" "]
    moves[BROKEN] = BROKEN
    # A forbidden term must be denied in full; behind a required one anything else goes on as ever.
    moves[forbidden:required] = BROKEN
    moves[required:] = moves[PLAIN]
    for text, node in trie.items():
        if len(text) > 1:
            parent, byte_class = trie[text[:-1]], classes[text[-1]]
            moves[forbidden + parent, :, byte_class] = PLAIN if text in denials else forbidden + node
            moves[required + parent, :, byte_class] = BROKEN if text in denials else required + node
    moves[:, :, PADDING] = np.arange(states)[:, None]
    negated = np.zeros(states, dtype=bool)
    negated[NEGATED] = True
    nodes = {text: forbidden + node for text, node in trie.items()}
    return AssertionAutomaton(moves, negated, classes, tuple(sorted(denials)), nodes)


def _scope(negated: bool, event: int) -> np.ndarray:
    """Next state by class, denials left out: events count at a byte that is no word's, a full stop ends the scope."""
    row = np.full(CLASSES, NEGATED if negated else PLAIN, dtype=np.int32)
    after = (bool(event & OPEN) or negated) and not event & CLOSE
    row[[SPACE, MARK]] = NEGATED if after else PLAIN
    row[STOP] = PLAIN
    if (event & FORBIDDEN and not negated) or (event & UNDENIED and negated):
        row[[SPACE, MARK, STOP]] = BROKEN
    return row


def _classes() -> np.ndarray:
    classes = np.full(257, MARK, dtype=np.int64)
    for byte in range(256):
        low = fold(bytes([byte]))[0]
        if 97 <= low <= 122:
            classes[byte] = low - 97
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
