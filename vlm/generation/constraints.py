"""Constraints as data: terms that must appear, terms that must not be asserted, no repeated sentence; JSON in and out.

```json
{"must_appear": [{"name": "pneumothorax", "terms": ["pneumothorax", "collapsed lung"], "asserted": true}],
 "must_not_assert": [{"name": "edema", "terms": ["edema", "congestion"]}, {"name": "mass", "terms": ["mass"], "weight":
 2.0}], "repeat_sentences": false}
```

A set without a weight is hard. With one it is soft: the weight, in nats, is added to (must appear) or taken from (must
not) a beam's log probability once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.generation.negation import Negation
from vlm.types import InputError

MOST_SETS = 60
"""Sets that a study can have: each is a bit of a 64-bit integer, one more says that a set cut a sentence short."""


@dataclass(frozen=True, slots=True)
class TermSet:
    """One concept and the ways to write it.

    Args:
        name: what a report of unmet constraints calls it.
        terms: synonyms; case doesn't matter.
        weight: nats; None for a hard constraint.
        asserted: of terms that must appear: a negated mention ("no effusion") doesn't count.
    """

    name: str
    terms: tuple[str, ...]
    weight: float | None = None
    asserted: bool = False

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
        repeat_sentences: False forbids a sentence that was written before (letters and digits compared).
        negation: the words that negate.

    Raises:
        InputError: two sets of one name, or a term that both must appear and must not.
    """

    must_appear: tuple[TermSet, ...] = ()
    must_not_assert: tuple[TermSet, ...] = ()
    must_not_deny: tuple[TermSet, ...] = ()
    repeat_sentences: bool = True
    negation: Negation = field(default_factory=Negation)

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

    def to_json(self) -> str:
        """JSON text."""
        data: dict[str, Any] = {
            "must_appear": [_write(entry) for entry in self.must_appear],
            "must_not_assert": [_write(entry) for entry in self.must_not_assert],
            "repeat_sentences": self.repeat_sentences,
        }
        if self.must_not_deny:
            data["must_not_deny"] = [_write(entry) for entry in self.must_not_deny]
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
        known = {"must_appear", "must_not_assert", "must_not_deny", "repeat_sentences", "negation"}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InputError(f"constraints have an unknown key {unknown[0]!r}: known are {', '.join(sorted(known))}")
        repeat = data.get("repeat_sentences", True)
        if not isinstance(repeat, bool):
            raise InputError(f"constraints: repeat_sentences is {repeat!r}; it must be true or false")
        return cls(
            tuple(_read(entry, "must_appear") for entry in _list(data, "must_appear")),
            tuple(_read(entry, "must_not_assert") for entry in _list(data, "must_not_assert")),
            tuple(_read(entry, "must_not_deny") for entry in _list(data, "must_not_deny")),
            repeat,
            Negation.from_dict(data.get("negation", {})),
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


def _read(entry: Any, group: str) -> TermSet:
    if not isinstance(entry, dict) or not {"name", "terms"} <= set(entry) <= {"name", "terms", "weight", "asserted"}:
        raise InputError(
            f"constraints: each entry of {group} needs 'name' and 'terms', and may have 'weight' and 'asserted'"
        )
    terms, weight, asserted = entry["terms"], entry.get("weight"), entry.get("asserted", False)
    if not isinstance(terms, list) or not all(isinstance(term, str) for term in terms):
        raise InputError(f"constraints: {group} {entry['name']!r}: terms must be a list of texts")
    if isinstance(weight, bool) or not isinstance(weight, int | float | None):
        raise InputError(f"constraints: {group} {entry['name']!r}: weight is {weight!r}; it must be a number")
    if not isinstance(asserted, bool):
        raise InputError(f"constraints: {group} {entry['name']!r}: asserted must be true or false")
    return TermSet(str(entry["name"]), tuple(terms), None if weight is None else float(weight), asserted)


def _write(entry: TermSet) -> dict[str, Any]:
    data: dict[str, Any] = {"name": entry.name, "terms": list(entry.terms)}
    if entry.weight is not None:
        data["weight"] = entry.weight
    if entry.asserted:
        data["asserted"] = True
    return data
