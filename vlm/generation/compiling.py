"""Constraints and a tokenizer -> tables: the term automaton, what its states mean, and the tokens that carry a term on.

Forcing a term needs three things of every state: which tokens go on with a term that is begun, which tokens begin one
(after a space without, elsewhere with a leading space), and how many tokens a term still takes. Checking needs none of
them.

Shapes: `S` states of the term automaton, `Q` sets of terms with a bit, `A` tokens that carry on, `P` states with such
tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from vlm.generation.automaton import Automaton, build, fold, is_word
from vlm.generation.constraints import RULES, Constraints, TermSet
from vlm.generation.negation import (
    CLOSE,
    FORBIDDEN,
    OPEN,
    PLAIN,
    REQUIRED,
    UNDENIED,
    AssertionAutomaton,
    Negation,
    compile_negation,
)
from vlm.generation.structure import Frame, compile_template
from vlm.generation.tokens import TokenTable, hash_letters
from vlm.generation.vocabulary import Halves, compile_vocabulary
from vlm.types import InputError

FAR = 10_000
"""Tokens to the end of a term from a state that isn't in it."""


@dataclass(frozen=True, slots=True, eq=False)
class CompiledConstraints:
    """Tables of one study's constraints.

    Args:
        source: what was compiled.
        table: bytes of the tokens.
        terms: automaton over all terms, triggers and words that end a scope.
        assertion: automaton of negation.
        events: (S,) int64, bits of `negation` that a state gives off at a boundary.
        meets: (S,) int64, bits of the sets of which a term ends here.
        inside: (S,) int64, bits of the sets of which a term is at least three letters under way.
        torn: (S,) int64, bits of the sets of a term of which a word is half written.
        letters: (S,) int64, hash of what is written of such a term, as `tokens.py` hashes sentences; else 0.
        names: names of the sets, by bit: hard ones that must appear, soft ones that must, soft ones that must not.
        hard: how many of them are hard.
        must: how many of them must appear, hard or soft.
        weights: (Q,) float64, added to the score once the set's bit is set; 0 for hard ones.
        asserted: bits that count in an assertion only.
        begin: tokens that begin a term, (token, bits): inside a sentence without and with white space before it, then
            at a sentence's start likewise.
        carry_on: state -> tokens that go on with a term: (token, bits).
        rest: state -> bit number -> tokens that the term still takes.
        cost: (hard, 2) int64, tokens that a set takes from its beginning: a leading space included, and behind white
            space.
        to_deny: (A,) int64, tokens that a denial still takes in each state of the negation automaton.
        stop_token: writes a full stop; None when the tokenizer has none.
        left_out: hard sets that don't fit into the length.
        frame: the template; None for none.
        halves: the vocabulary; None for none.
        rules: hard rules, and weight by soft rule.
    """

    source: Constraints
    table: TokenTable
    terms: Automaton
    assertion: AssertionAutomaton
    events: np.ndarray
    meets: np.ndarray
    inside: np.ndarray
    torn: np.ndarray
    letters: np.ndarray
    names: tuple[str, ...]
    hard: int
    must: int
    weights: np.ndarray
    asserted: int
    begin: tuple[tuple[tuple[int, int], ...], ...]
    carry_on: dict[int, tuple[tuple[int, int], ...]]
    rest: dict[int, dict[int, int]]
    cost: np.ndarray
    to_deny: np.ndarray
    stop_token: int | None
    left_out: tuple[str, ...]
    frame: Frame | None = None
    halves: Halves | None = None
    rules: tuple[frozenset[str], Mapping[str, float]] = (frozenset(), MappingProxyType({}))


def build_for(terms: Iterable[str], negation: Negation) -> Automaton:
    """One automaton over many terms and a negation's words, for the constraints of many studies."""
    cues = [fold(word.encode()) for word in (*negation.before, *negation.stop)]
    return build(sorted({_trim(term) for term in terms} | set(cues)))


def compile_constraints(
    constraints: Constraints,
    tokenizer: Any,
    max_new_tokens: int,
    strict: bool = False,
    automaton: Automaton | None = None,
) -> CompiledConstraints:
    """Compile for a tokenizer and a length.

    Args:
        constraints: what the text must hold.
        tokenizer: a fast Hugging Face tokenizer.
        max_new_tokens: the length, in tokens, that the text may take.
        strict: refuse more required terms than fit; otherwise the last ones are left out and named as unmet.
        automaton: over at least these terms and cues (`build_for`), so that it isn't built again; None to build one.

    Raises:
        InputError: a term that the tokenizer can't write, a set that both must and must not appear, or (strict) too
            many terms.
    """
    table = TokenTable.of(tokenizer)
    forbidden = sorted(
        {_trim(term) for entry in constraints.must_not_assert if entry.weight is None for term in entry.terms}
    )
    banned = frozenset(forbidden)
    hard = [entry for entry in constraints.must_appear if entry.weight is None]
    soft = [entry for entry in constraints.must_appear if entry.weight is not None]
    spellings = {entry.name: _spellings(entry, banned, table) for entry in hard}
    costs = {
        entry.name: (_cost(spellings[entry.name], table, b" "), _cost(spellings[entry.name], table, b""))
        for entry in hard
    }
    frame = compile_template(constraints.layout, table) if constraints.layout else None
    framing = int(frame.need[frame.start]) if frame is not None and "template" not in constraints.weights else 0
    if framing > max_new_tokens:
        raise InputError(
            f"the template takes {framing} tokens and max_new_tokens is {max_new_tokens}: raise it or shorten the text"
        )
    hard, left_out = _fitting(hard, costs, max_new_tokens - framing, strict)
    soft_not = [entry for entry in constraints.must_not_assert if entry.weight is not None]
    sets = [*hard, *soft, *soft_not]
    negation = constraints.negation
    groups: list[tuple[list[bytes], int, int]] = [
        (forbidden, FORBIDDEN, 0),
        (sorted({_trim(term) for entry in constraints.must_not_deny for term in entry.terms}), UNDENIED, 0),
        ([fold(word.encode()) for word in negation.before], OPEN, 0),
        ([fold(word.encode()) for word in negation.stop], CLOSE, 0),
    ]
    for bit, entry in enumerate(sets):
        event = REQUIRED if bit < len(hard) and entry.asserted else 0
        groups.append((spellings[entry.name] if bit < len(hard) else _terms(entry), event, 1 << bit))
    lexicon = sorted({_trim(term) for term in constraints.vocabulary})
    terms = automaton or build([*lexicon, *(term for group, _, _ in groups for term in group)])
    events, meets = _meanings(terms, groups)
    forcing = {bit: spellings[entry.name] for bit, entry in enumerate(hard)}
    rest, carry_on, inside, torn, letters = _ways(terms, forcing, table)
    signs = [1.0] * len(soft) + [-1.0] * len(soft_not)
    weights = [0.0] * len(hard) + [
        sign * (entry.weight or 0.0) for sign, entry in zip(signs, soft + soft_not, strict=True)
    ]
    stop = table.by_bytes.get(b".")
    assertion = compile_negation(negation)
    return CompiledConstraints(
        source=constraints,
        table=table,
        terms=terms,
        assertion=assertion,
        events=events,
        meets=meets,
        inside=inside,
        torn=torn,
        letters=letters,
        names=tuple(entry.name for entry in sets),
        hard=len(hard),
        must=len(hard) + len(soft),
        weights=np.array(weights, dtype=np.float64),
        asserted=sum(1 << bit for bit, entry in enumerate(sets) if entry.asserted or bit >= len(hard) + len(soft)),
        begin=tuple(_beginnings(forcing, table, lead, first) for first in (False, True) for lead in (b" ", b"")),
        carry_on=carry_on,
        rest=rest,
        cost=np.array([costs[entry.name] for entry in hard], dtype=np.int64).reshape(-1, 2),
        to_deny=_to_deny(assertion, table),
        stop_token=stop,
        left_out=left_out,
        frame=frame,
        halves=compile_vocabulary(lexicon, terms, table) if lexicon else None,
        rules=_rules(constraints),
    )


def _rules(constraints: Constraints) -> tuple[frozenset[str], Mapping[str, float]]:
    """Rules that bind, and those that only weigh."""
    least, most = constraints.sentences
    asked = {
        "template": bool(constraints.layout),
        "sentences": least > 0 or most is not None,
        "vocabulary": bool(constraints.vocabulary),
        "order": constraints.in_order,
        "repeat_sentences": not constraints.repeat_sentences,
    }
    names = [rule for rule in RULES if asked[rule]]
    soft = {rule: constraints.weights[rule] for rule in names if rule in constraints.weights}
    return frozenset(names) - frozenset(soft), soft


@lru_cache(maxsize=65536)
def _trim(term: str) -> bytes:
    """A term as the automaton reads it: folded, single spaces, no punctuation around it."""
    text = b" ".join(fold(term.encode()).split())
    start = next(index for index, byte in enumerate(text) if is_word(byte))
    end = next(index for index in range(len(text), 0, -1) if is_word(text[index - 1]))
    return text[start:end]


def _terms(entry: TermSet) -> list[bytes]:
    return sorted({_trim(term) for term in entry.terms})


def _spellings(entry: TermSet, forbidden: frozenset[bytes], table: TokenTable) -> list[bytes]:
    """Terms of a set that must appear and that the tokenizer can write, those left out that a forbidden term lies
    in."""
    terms = _terms(entry)
    for term in terms:
        if table.greedy(b" " + term) is None or table.greedy(term) is None:
            raise InputError(
                f"constraint {entry.name!r}: the tokenizer can't write {term.decode()!r}; use another term or tokenizer"
            )
    free = [term for term in terms if forbidden.isdisjoint(_inner(term))]
    if not free:
        raise InputError(f"constraint {entry.name!r} contradicts must_not_assert: each of its terms is also forbidden")
    return free


@lru_cache(maxsize=65536)
def _inner(term: bytes) -> tuple[bytes, ...]:
    """Every part of a term that begins and ends at a word's boundary, itself included."""
    starts = [at for at in range(len(term)) if is_word(term[at]) and not (at and is_word(term[at - 1]))]
    ends = [
        at for at in range(1, len(term) + 1) if is_word(term[at - 1]) and not (at < len(term) and is_word(term[at]))
    ]
    return tuple(term[start:end] for start in starts for end in ends if start < end)


def _cost(terms: list[bytes], table: TokenTable, lead: bytes) -> int:
    """Tokens of the shortest way to write one of the terms behind `lead`, at a sentence's start or inside one."""

    def shortest(first: bool) -> int:
        texts = [lead + (term[:1].upper() + term[1:] if first else term) for term in terms]
        return min(
            len(table.greedy(text) or table.greedy(lead + term) or ()) for text, term in zip(texts, terms, strict=True)
        )

    return max(shortest(False), shortest(True))


def _fitting(
    hard: list[TermSet], costs: dict[str, tuple[int, int]], max_new_tokens: int, strict: bool
) -> tuple[list[TermSet], tuple[str, ...]]:
    """The sets that fit, in their order, and the names of those that don't."""
    kept: list[TermSet] = []
    left_out: list[str] = []
    for entry in hard:
        chosen = [costs[other.name] for other in (*kept, entry)]
        # The first term stands at the text's start, without a space before it.
        if sum(spaced for spaced, _ in chosen) + min(bare - spaced for spaced, bare in chosen) <= max_new_tokens:
            kept.append(entry)
        else:
            left_out.append(entry.name)
    if left_out and strict:
        total = sum(spaced for spaced, _ in costs.values())
        raise InputError(
            f"required terms take {total} tokens and max_new_tokens is {max_new_tokens}: "
            f"raise it or leave out {', '.join(left_out)}"
        )
    return kept, tuple(left_out)


def _meanings(terms: Automaton, groups: list[tuple[list[bytes], int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Events and met bits of every state, those of its suffixes included."""
    events = np.zeros(len(terms.moves), dtype=np.int64)
    meets = np.zeros(len(terms.moves), dtype=np.int64)
    for group, event, bits in groups:
        states = [terms.nodes[term] for term in group]
        events[states] |= event
        meets[states] |= bits
    for ids in terms.levels:
        inherited = events[terms.fails[ids]]
        # Of a trigger inside another the longer decides: "not without" isn't "without".
        own_cue = (events[ids] & (OPEN | CLOSE)) > 0
        events[ids] |= np.where(own_cue, inherited & ~(OPEN | CLOSE), inherited)
        meets[ids] |= meets[terms.fails[ids]]
    return events, meets


def _ways(
    terms: Automaton, forcing: dict[int, list[bytes]], table: TokenTable
) -> tuple[dict[int, dict[int, int]], dict[int, tuple[tuple[int, int], ...]], np.ndarray, np.ndarray, np.ndarray]:
    """From each state inside a required term: what the term still takes, which tokens go on, that it is under way,
    that one of its words is half written, and the hash of its letters."""
    rest: dict[int, dict[int, int]] = defaultdict(dict)
    carry_on: dict[int, dict[int, int]] = defaultdict(dict)
    inside, torn, letters = (np.zeros(len(terms.moves), dtype=np.int64) for _ in range(3))
    for bit, spellings in forcing.items():
        for term in spellings:
            tokens_left, next_token = _path(term, table)
            for start in range(1, len(term) + 1):
                state = terms.nodes[term[:start]]
                rest[state][bit] = min(rest[state].get(bit, FAR), tokens_left[start])
                if start >= min(3, len(term)):
                    inside[state] |= 1 << bit
                if is_word(term[start - 1]) and start < len(term) and is_word(term[start]):
                    torn[state] |= 1 << bit
                    letters[state] = hash_letters(term[:start])
                token = next_token[start]
                if token is not None:
                    carry_on[state][token] = carry_on[state].get(token, 0) | 1 << bit
    begun = np.zeros(len(terms.moves), dtype=bool)
    begun[list(rest)] = True
    for ids in terms.levels:  # what a suffix can become, the longer text can become too
        inherits = ids[begun[terms.fails[ids]]]
        begun[inherits] = True
        for state in inherits.tolist():
            suffix = int(terms.fails[state])
            for bit, left in rest.get(suffix, {}).items():
                rest[state][bit] = min(rest[state].get(bit, FAR), left)
            for token, bits in carry_on.get(suffix, {}).items():
                carry_on[state][token] = carry_on[state].get(token, 0) | bits
            inside[state] |= inside[suffix]
            torn[state] |= torn[suffix]
    return dict(rest), {state: tuple(tokens.items()) for state, tokens in carry_on.items()}, inside, torn, letters


@lru_cache(maxsize=16)
def _to_deny(assertion: AssertionAutomaton, table: TokenTable) -> np.ndarray:
    """Tokens to the end of the shortest denial; in PLAIN those of a whole one, for a term that is about to need it."""
    left = np.zeros(len(assertion.moves), dtype=np.int64)
    for text in assertion.denials:
        rest = _tokens_left(text, table)
        for start in range(1, len(text)):
            state = assertion.nodes[text[:start]]
            left[state] = min(rest[start], left[state] or FAR)
        left[PLAIN] = min(rest[0], left[PLAIN] or FAR)
    return left


def _tokens_left(term: bytes, table: TokenTable) -> list[int]:
    """Tokens that write the term from each of its letters on, taking the longest each time."""
    return _path(term, table)[0]


@lru_cache(maxsize=65536)
def _path(term: bytes, table: TokenTable) -> tuple[list[int], list[int | None]]:
    """From each letter of a term on: how many tokens write the rest, longest first, and the first of them."""
    left = [FAR] * len(term) + [0]
    tokens: list[int | None] = [None] * (len(term) + 1)
    for start in range(len(term) - 1, -1, -1):
        for end in range(min(len(term), start + table.longest), start, -1):
            token = table.by_bytes.get(term[start:end])
            if token is not None:
                left[start], tokens[start] = min(FAR, 1 + left[end]), token
                break
    return left, tokens


def _beginnings(
    forcing: dict[int, list[bytes]], table: TokenTable, lead: bytes, first: bool
) -> tuple[tuple[int, int], ...]:
    """First tokens of every required term, capitalised in `first` place, with the sets that they begin."""
    found: dict[int, int] = {}
    for bit, spellings in forcing.items():
        for term in spellings:
            for token in _first_tokens(term, table, lead, first):
                found[token] = found.get(token, 0) | 1 << bit
    return tuple(found.items())


@lru_cache(maxsize=65536)
def _first_tokens(term: bytes, table: TokenTable, lead: bytes, first: bool) -> tuple[int, ...]:
    """First token of a term as the longest tokens write it, and as the tokenizer itself cuts it."""
    text = lead + (term[:1].upper() + term[1:] if first else term)
    greedy = table.greedy(text)
    if greedy is None:  # a tokenizer of lower case only
        text = lead + term
        greedy = table.greedy(text)
    own = table.encode(text.decode(errors="ignore"))
    tokens = [greedy] if greedy else []
    if own and table.write(own) == text:
        tokens.append(own)
    return tuple(dict.fromkeys(option[0] for option in tokens))
