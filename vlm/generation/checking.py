"""Whether a finished text holds its constraints: the search's own tables, walked in plain Python."""

from __future__ import annotations

from vlm.generation.automaton import AFTER_SPACE
from vlm.generation.compiling import CompiledConstraints
from vlm.generation.negation import BROKEN, MARK, PLAIN, SPACE, STOP


def unmet_in(compiled: CompiledConstraints, text: str) -> tuple[str, ...]:
    """Names of the hard constraints that a text doesn't hold, "must_not_assert" for a forbidden assertion.

    Args:
        compiled: the constraints; those that didn't fit into their length are named too.
        text: a whole answer.
    """
    terms, assertion, met = AFTER_SPACE, PLAIN, 0
    tables, negation = compiled.terms, compiled.assertion
    for byte in (text + ".").encode():
        kind = int(negation.classes[byte])
        if kind in (SPACE, STOP, MARK):
            counted = ~compiled.asserted if negation.negated[assertion] else -1
            met |= int(compiled.meets[terms]) & counted
        assertion = int(negation.moves[assertion, compiled.events[terms], kind])
        terms = int(tables.moves[terms, tables.classes[byte]])
    missing = tuple(name for bit, name in enumerate(compiled.names[: compiled.hard]) if not met >> bit & 1)
    return missing + compiled.left_out + (("must_not_assert",) if assertion == BROKEN else ())
