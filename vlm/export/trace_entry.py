"""A decoding trace for the page: the same content in a tenth of the bytes.

A beam's text is that of a beam of the step before with a piece added, so only the piece is written and which beam it
was added to. `page.explain.js` puts the texts together again.

::

    {"names": [constraint, ...],
     "steps": [{"section"?, "step", "beams": [[parent, piece, score, bank, state]], "cut": [[parent, piece, rule]]}]}

`parent` is the place in the step before, or -1 where `piece` is the whole text; `state` has a letter a name: o open, h
held, b banned, . not watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = {"open": "o", "held": "h", "banned": "b"}


def trace_entry(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The page's form of `Report.trace`."""
    names = list(dict.fromkeys(n for s in trace["steps"] for b in s["beams"] for n in b["state"]))
    steps: list[dict[str, Any]] = []
    before: list[str] = []
    section = None
    for step in trace["steps"]:
        if step.get("section") != section:
            section, before = step.get("section"), []
        beams = [
            [*_grown(b["text"], before), b["score"], b["bank"], _letters(b["state"], names)] for b in step["beams"]
        ]
        cut = [[*_grown(c["text"], before), c["rule"]] for c in step["cut"]]
        steps.append({**({"section": section} if section else {}), "step": step["step"], "beams": beams, "cut": cut})
        before = [b["text"] for b in step["beams"]]
    return {"names": names, "steps": steps}


def _letters(state: Mapping[str, str], names: Sequence[str]) -> str:
    return "".join(LETTERS.get(state.get(name, ""), ".") for name in names)


def _grown(text: str, before: Sequence[str]) -> tuple[int, str]:
    """Which text of the step before this one goes on, the longest that fits, and what is added."""
    fitting = [i for i, old in enumerate(before) if text.startswith(old)]
    if not fitting:
        return -1, text
    parent = max(fitting, key=lambda i: len(before[i]))
    return parent, text[len(before[parent]) :]
