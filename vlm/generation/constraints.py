"""Constraints as data: terms that must appear, terms that must not be asserted, the words of a terminology, and the
text's structure; JSON in and out.

```json
{"must_appear": [{"name": "pneumothorax", "terms": ["pneumothorax", "collapsed lung"], "asserted": true}],
 "must_not_assert": [{"name": "edema", "terms": ["edema", "congestion"]}, {"name": "mass", "terms": ["mass"], "weight":
 2.0}], "repeat_sentences": false, "sections": ["Findings", "Impression"], "sentences": [2, 8],
 "vocabulary": ["pleural effusion", "pleural thickening"], "weights": {"vocabulary": 3.0}}
```

A set without a weight is hard. With one it is soft: the weight, in nats, is added to (must appear) or taken from (must
not) a beam's log probability once. So it is with the rules of `RULES`: hard, or taken once when broken if `weights`
names them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vlm.generation.negation import Negation
from vlm.generation.structure import parse_template, sections_template
from vlm.types import InputError

MOST_SETS = 56
"""Sets that a study can have: each is a bit of a 64-bit integer, as is each rule."""

RULES = ("template", "sentences", "vocabulary", "order", "repeat_sentences")
"""Rules beside sets of terms; each may have a weight."""


@dataclass(frozen=True, slots=True)
class TermSet:
    """One concept and the ways to write it.

    Args:
        name: what a report of unmet constraints calls it.
        terms: synonyms; case doesn't matter.
        weight: nats; None for a hard constraint.
        asserted: of terms that must appear: a negated mention ("no effusion") doesn't count.
        section: of terms that must appear: the section or slot in which a mention counts; None for anywhere.
    """

    name: str
    terms: tuple[str, ...]
    weight: float | None = None
    asserted: bool = False
    section: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("a set of terms has an empty name")
        if not self.terms:
            raise InputError(f"constraint {self.name!r} has no terms: give at least one")
        for term in self.terms:
            if not any(char.isalnum() for char in term):
                raise InputError(f"constraint {self.name!r}: term {term!r} is empty or has no letter or digit")
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(
                f"constraint {self.name!r}: weight is {self.weight}; it must be 0 or more, or left out for a hard one"
            )


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a text must hold.

    Args:
        must_appear: at least one term of each set.
        must_not_assert: no term of any set, unless it is negated.
        must_not_deny: no negated mention of any set ("no effusion" beside a required effusion); always hard.
        repeat_sentences: False forbids a sentence that was written before (letters and digits compared), and an empty
            one (a second full stop).
        negation: the words that negate.
        in_order: the sets that must appear are mentioned in their order (other mentions between them are allowed).
        sections: headings; each stands in the text once, in this order, with text behind it.
        template: fixed text with named slots to fill, "Findings: {findings}"; sections and a template exclude each
            other.
        sentences: fewest and most sentences; None for no most.
        vocabulary: a terminology: once the first word of one of its terms of several words is written, a term of it
            follows, so that none is half-written. A beginning that is a term by itself may stand alone.
        weights: nats by rule of `RULES` that is soft.

    Raises:
        InputError: two sets of one name, or a rule that says nothing or cannot hold.
    """

    must_appear: tuple[TermSet, ...] = ()
    must_not_assert: tuple[TermSet, ...] = ()
    must_not_deny: tuple[TermSet, ...] = ()
    repeat_sentences: bool = True
    negation: Negation = field(default_factory=Negation)
    in_order: bool = False
    sections: tuple[str, ...] = ()
    template: str = ""
    sentences: tuple[int, int | None] = (0, None)
    vocabulary: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sets = self.must_appear + self.must_not_assert
        if len(self.must_appear) + sum(entry.weight is not None for entry in self.must_not_assert) > MOST_SETS:
            raise InputError(f"{len(sets)} sets of terms: at most {MOST_SETS} that must appear or have a weight")
        groups = {
            "must_appear": self.must_appear,
            "must_not_assert": self.must_not_assert,
            "must_not_deny": self.must_not_deny,
        }
        for group, entries in groups.items():
            names = [entry.name for entry in entries]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise InputError(f"{group} names {twice[0]!r} twice: put its terms into one set")
        self._check_rules()

    def _check_rules(self) -> None:
        if self.sections and self.template:
            raise InputError("constraints have both sections and a template: write the headings into the template")
        if any(not name.strip() or "{" in name or "}" in name for name in self.sections):
            raise InputError(f"sections {list(self.sections)}: a heading must be a text without braces")
        slots = parse_template(self.layout).slots if self.layout else ()
        for entry in self.must_appear:
            if entry.section is not None and entry.section not in slots:
                known = f"sections are {', '.join(slots)}" if slots else "there are no sections and no template"
                raise InputError(f"constraint {entry.name!r} is for section {entry.section!r}: {known}")
        least, most = self.sentences
        if least < 0 or (most is not None and most < max(1, least)):
            raise InputError(
                f"sentences are [{least}, {most}]: the first must be 0 or more and the second not below it"
            )
        for term in self.vocabulary:
            if not any(char.isalnum() for char in term):
                raise InputError(f"vocabulary: term {term!r} is empty or has no letter or digit")
        for rule, weight in self.weights.items():
            if rule not in RULES:
                raise InputError(f"weights name {rule!r}: known rules are {', '.join(RULES)}")
            if not (math.isfinite(weight) and weight > 0):
                raise InputError(f"weight of {rule} is {weight}: it must be above 0, or left out for a hard rule")

    @property
    def layout(self) -> str:
        """The template, that of the sections if there are any; empty for none."""
        return sections_template(self.sections) if self.sections else self.template

    def to_json(self) -> str:
        """JSON text."""
        data: dict[str, Any] = {
            "must_appear": [_write(entry) for entry in self.must_appear],
            "must_not_assert": [_write(entry) for entry in self.must_not_assert],
            "repeat_sentences": self.repeat_sentences,
        }
        if self.must_not_deny:
            data["must_not_deny"] = [_write(entry) for entry in self.must_not_deny]
        if self.in_order:
            data["in_order"] = True
        if self.sections:
            data["sections"] = list(self.sections)
        if self.template:
            data["template"] = self.template
        if self.sentences != (0, None):
            data["sentences"] = list(self.sentences)
        if self.vocabulary:
            data["vocabulary"] = list(self.vocabulary)
        if self.weights:
            data["weights"] = dict(self.weights)
        if self.negation != Negation():
            data["negation"] = self.negation.to_dict()
        return json.dumps(data, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Constraints:
        """From JSON text.

        Raises:
            InputError: not JSON, an unknown key, or a value of the wrong kind.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"constraints are not JSON: {error}") from error
        if not isinstance(data, dict):
            raise InputError("constraints: expected a JSON object")
        known = {own.name for own in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InputError(f"constraints have an unknown key {unknown[0]!r}: known are {', '.join(sorted(known))}")
        return cls(
            tuple(_read(entry, "must_appear") for entry in _list(data, "must_appear")),
            tuple(_read(entry, "must_not_assert") for entry in _list(data, "must_not_assert")),
            tuple(_read(entry, "must_not_deny") for entry in _list(data, "must_not_deny")),
            _flag(data, "repeat_sentences", True),
            Negation.from_dict(data.get("negation", {})),
            _flag(data, "in_order", False),
            _texts(data, "sections"),
            _text(data, "template"),
            _range(data),
            _texts(data, "vocabulary"),
            _weights(data),
        )

    @classmethod
    def load(cls, path: Path) -> Constraints:
        """From a JSON file; raises `InputError` with the file's name."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"constraints: {key} must be a list of sets of terms")
    return value


def _flag(data: Mapping[str, Any], key: str, default: bool) -> bool:
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"constraints: {key} is {value!r}; it must be true or false")
    return value


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"constraints: {key} must be a list of texts")
    return tuple(value)


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"constraints: {key} must be a text")
    return value


def _range(data: Mapping[str, Any]) -> tuple[int, int | None]:
    value = data.get("sentences", [0, None])
    whole = isinstance(value, list) and len(value) == 2 and not any(isinstance(number, bool) for number in value)
    if not whole or not isinstance(value[0], int) or not isinstance(value[1], int | None):
        raise InputError(f"constraints: sentences is {value!r}; it must be [fewest, most], null for no most")
    return value[0], value[1]


def _weights(data: Mapping[str, Any]) -> dict[str, float]:
    value = data.get("weights", {})
    numbers = isinstance(value, dict) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) for weight in value.values()
    )
    if not numbers:
        raise InputError("constraints: weights must be an object of numbers by rule")
    return {str(rule): float(weight) for rule, weight in value.items()}


def _read(entry: Any, group: str) -> TermSet:
    known = {"name", "terms", "weight", "asserted", "section"}
    if not isinstance(entry, dict) or not {"name", "terms"} <= set(entry) <= known:
        raise InputError(
            f"constraints: each entry of {group} needs 'name' and 'terms', and may have 'weight', 'asserted', 'section'"
        )
    terms, weight, asserted = entry["terms"], entry.get("weight"), entry.get("asserted", False)
    if not isinstance(terms, list) or not all(isinstance(term, str) for term in terms):
        raise InputError(f"constraints: {group} {entry['name']!r}: terms must be a list of texts")
    if isinstance(weight, bool) or not isinstance(weight, int | float | None):
        raise InputError(f"constraints: {group} {entry['name']!r}: weight is {weight!r}; it must be a number")
    if not isinstance(asserted, bool):
        raise InputError(f"constraints: {group} {entry['name']!r}: asserted must be true or false")
    section = entry.get("section")
    if not isinstance(section, str | None):
        raise InputError(f"constraints: {group} {entry['name']!r}: section must be a text")
    return TermSet(str(entry["name"]), tuple(terms), None if weight is None else float(weight), asserted, section)


def _write(entry: TermSet) -> dict[str, Any]:
    data: dict[str, Any] = {"name": entry.name, "terms": list(entry.terms)}
    if entry.weight is not None:
        data["weight"] = entry.weight
    if entry.asserted:
        data["asserted"] = True
    if entry.section is not None:
        data["section"] = entry.section
    return data
