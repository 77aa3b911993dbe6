"""The gate for CI: conditions such as `unique<0.1` or `cider<constant` that fail a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm.types import InputError

_CONDITION = re.compile(r"^\s*(?P<left>[^<>=]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<right>[^<>=]+?)\s*$")


def gate(conditions: Sequence[str], scores: Mapping[str, Any], systems: Sequence[str]) -> list[str]:
    """Returns the reason of each condition that holds.

    Args:
        conditions: `NAME OP VALUE`, OP one of < <= > >=; VALUE a number, a score's name, or a floor ("cider<constant"
            compares with "constant.cider"). An undefined score fails the gate, since it can't be shown to pass.
        scores: the flat object of `Evaluation.flat`.
        systems: names of the systems; of several, each is tested.

    Raises:
        InputError: not a condition, or a name that is no score.
    """
    reasons = []
    for condition in conditions:
        match = parts_of(condition)
        for system in systems:
            prefix = "" if len(systems) == 1 else f"{system}."
            name = match["left"] if match["left"] in scores else prefix + match["left"]
            left = _number(name, scores, condition)
            right, shown = _right(match["right"], match["left"], prefix, system, scores, condition)
            if left is None or right is None:
                reasons.append(f"{name} {match['sign']} {match['right']}: undefined")
            elif _holds(left, match["sign"], right):
                reasons.append(f"{name} = {left:.4g} {match['sign']} {shown}")
            if name == match["left"] and len(systems) > 1:
                break
    return reasons


def parts_of(condition: str) -> re.Match[str]:
    """Returns a condition's parts `left`, `sign` and `right`.

    Raises:
        InputError: not a condition.
    """
    match = _CONDITION.match(condition)
    if match is None:
        raise InputError(
            f'--fail-if "{condition}" is not NAME < VALUE; write for example "unique<0.1" or "cider<constant"'
        )
    return match


def _right(
    text: str, metric: str, prefix: str, system: str, scores: Mapping[str, Any], condition: str
) -> tuple[float | None, str]:
    try:
        return float(text), text
    except ValueError:
        pass
    for name in (f"{text}.{metric}", f"{text}[{system}].{metric}", prefix + text, text):
        if name in scores:
            value = _number(name, scores, condition)
            return value, f"{name}" + (f" = {value:.4g}" if value is not None else "")
    raise InputError(
        f'--fail-if "{condition}": {text!r} is no number, floor or score; '
        "floors: constant, constant_f1, shuffled, neighbour"
    )


def _number(name: str, scores: Mapping[str, Any], condition: str) -> float | None:
    if name not in scores:
        names = [key for key, value in scores.items() if isinstance(value, float) and "." not in key and "-" not in key]
        raise InputError(f'--fail-if "{condition}": no score {name!r}; there are {", ".join(names[:30])}')
    value = scores[name]
    if isinstance(value, str):
        raise InputError(f'--fail-if "{condition}": {name!r} is a text, not a number')
    return None if value is None else float(value)


def _holds(left: float, sign: str, right: float) -> bool:
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign]
