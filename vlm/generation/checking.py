"""Whether a finished text holds its constraints: the search's own tables, walked in plain Python."""

from __future__ import annotations

import re

from vlm.generation.automaton import AFTER_SPACE, is_word
from vlm.generation.compiling import CompiledConstraints
from vlm.generation.constraints import RULES
from vlm.generation.negation import BROKEN, MARK, PLAIN, SPACE, STOP
from vlm.generation.structure import count_sentences
from vlm.generation.tokens import STOPS


def unmet_in(compiled: CompiledConstraints, text: str) -> tuple[str, ...]:
    """Names of the hard constraints that a text doesn't hold, "must_not_assert" for a forbidden assertion,
    and the rule's name for a hard rule.

    Args:
        compiled: the constraints; those that didn't fit into their length are named too.
        text: a whole answer.
    """
    terms, assertion, met = AFTER_SPACE, PLAIN, 0
    tables, negation, frame, halves = compiled.terms, compiled.assertion, compiled.frame, compiled.halves
    place = 0 if frame is None else frame.start
    counts = _section_bits(compiled)
    hard, (binding, _) = (1 << compiled.hard) - 1, compiled.rules
    broken = set()
    for byte in (text + ".").encode():
        kind = int(negation.classes[byte])
        if kind in (SPACE, STOP, MARK):
            counted = ~compiled.asserted if negation.negated[assertion] else -1
            here = int(compiled.meets[terms]) & counted & counts[place]
            if "order" in binding:
                here &= ((met & hard) << 1 | 1) | ~hard
            met |= here
        assertion = int(negation.moves[assertion, compiled.events[terms], kind])
        column = tables.classes[byte]
        if halves is not None and halves.breaks[terms, column]:
            broken.add("vocabulary")
        terms = int(tables.moves[terms, column])
        if frame is not None:
            place = int(frame.moves[place, byte])
    broken |= _broken_shape(compiled, text)
    missing = tuple(name for bit, name in enumerate(compiled.names[: compiled.hard]) if not met >> bit & 1)
    denied = ("must_not_assert",) if assertion == BROKEN else ()
    return missing + compiled.left_out + denied + tuple(rule for rule in RULES if rule in broken & binding)


def _section_bits(compiled: CompiledConstraints) -> list[int]:
    """Bits of the sets that count, by state of the template."""
    frame = compiled.frame
    where = {entry.name: entry.section for entry in compiled.source.must_appear if entry.section is not None}
    bound = {bit: where[name] for bit, name in enumerate(compiled.names[: compiled.must]) if name in where}
    if frame is None:
        return [-1]
    free = ~sum(1 << bit for bit in bound)
    return [
        free | sum(1 << bit for bit, name in bound.items() if slot >= 0 and frame.names[slot] == name)
        for slot in frame.slot.tolist()
    ]


def _has_empty_sentence(text: bytes) -> bool:
    """Whether a full stop ends a sentence without a letter or digit, as the second of two does."""
    begun = False
    for byte in text:
        if chr(byte) in STOPS and not begun:
            return True
        begun = (begun or is_word(byte)) and chr(byte) not in STOPS + "\n"
    return False


def _broken_shape(compiled: CompiledConstraints, text: str) -> set[str]:
    """Rules of a text's shape that it breaks."""
    broken = set()
    if compiled.frame is not None:
        place = compiled.frame.start
        for byte in text.encode():
            place = int(compiled.frame.moves[place, byte])
        if not compiled.frame.final[place]:
            broken.add("template")
    least, most = compiled.source.sentences
    if not least <= count_sentences(text) <= (most if most is not None else len(text)):
        broken.add("sentences")
    sentences = ["".join(char for char in part.lower() if char.isalnum()) for part in re.split(r"[.!?\n]", text)]
    sentences = [sentence for sentence in sentences if sentence]
    if len(sentences) != len(set(sentences)) or _has_empty_sentence(text.encode()):
        broken.add("repeat_sentences")
    return broken
