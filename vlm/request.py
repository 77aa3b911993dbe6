"""What a user asks of a run of reports, beside the checkpoint's own `generation` section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vlm.generation.constraints import Constraints, TermSet
from vlm.types import InputError

DECODINGS = ("beam", "greedy", "sample")


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What the user asks for.

    Args:
        must, must_not: terms that every report must hold, and must not assert.
        steer: let the findings' probabilities constrain the text. blank: replace every image by a grey one (to test
            that it matters).
        attention: keep attention maps for heat maps.
        num_beams: width; "auto" gives each study the width, penalty and least length of its findings
            (`generation.planning`). batch_size, max_views: override the checkpoint's too.
        abstain: leave out sentences whose confidence is below this, in [0, 1]; None for none.
        decoding: "beam"; "greedy", one beam and no choice among samples; or "sample", drawn under the same constraints.
        temperature, top_p: of sampling; None for the checkpoint's.
        seed: of everything that is drawn.
        num_reports: reports a study; those after the first are its alternatives.
        trace: keep what the beams did. explain: say of each finding what moved it (`vlm.explaining`), and keep what the
            beams did for the page.
        constraints: the user's own, for every study, added to those of its findings.

    Raises:
        InputError: a value out of range, or two that exclude each other.
    """

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    steer: bool = True
    blank: bool = False
    attention: bool = True
    num_beams: int | Literal["auto"] | None = None
    batch_size: int | None = None
    max_views: int | None = None
    abstain: float | None = None
    decoding: Literal["beam", "greedy", "sample"] = "beam"
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    num_reports: int = 1
    trace: bool = False
    explain: bool = False
    constraints: Constraints | None = None

    @property
    def traced(self) -> bool:
        """Whether the search is recorded."""
        return self.trace or (self.explain and self.decoding != "sample")

    def __post_init__(self) -> None:
        if self.decoding not in DECODINGS:
            raise InputError(f"decoding {self.decoding!r} is not known; choose {', '.join(DECODINGS)}")
        for name, terms in (("--must", self.must), ("--must-not", self.must_not)):
            if any(not any(c.isalnum() for c in term) for term in terms):
                raise InputError(
                    f"{name}: a term without a letter or digit; name what must (not) be said, or leave it out"
                )
        if self.num_beams is not None and self.num_beams != "auto" and self.num_beams < 1:
            raise InputError(f"num_beams is {self.num_beams}: it must be 1 or more, or 'auto'")
        if self.num_beams is not None and self.decoding != "beam":
            raise InputError(f"num_beams is for decoding 'beam'; {self.decoding!r} has no beams")
        if self.decoding != "sample" and (self.temperature is not None or self.top_p is not None):
            raise InputError("temperature and top_p are for decoding 'sample'")
        if self.temperature is not None and not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}: it must be above 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: it must lie in (0, 1]")
        if self.num_reports < 1:
            raise InputError(f"num_reports is {self.num_reports}: it must be 1 or more")
        if self.num_reports > 1 and self.decoding == "greedy":
            raise InputError("greedy decoding has one report a study; use beam or sample for several")
        if isinstance(self.num_beams, int) and self.num_reports > self.num_beams:
            raise InputError(f"{self.num_reports} reports of {self.num_beams} beams: ask for as many beams as reports")
        if self.trace and self.decoding == "sample":
            raise InputError("a trace shows beams; decoding 'sample' has none")


def join_constraints(base: Constraints, settings: GenerationSettings, sections: Sequence[str]) -> Constraints:
    """The constraints of a study's findings and the user's; where they disagree the user's stand.

    Args:
        base: of the findings.
        settings: hold the user's terms and constraints.
        sections: that the pipeline writes one by one; headings of these names are no template of a section's text, and
            a set that must appear in one of them is left to it.
    """
    user = settings.constraints or Constraints()
    must = tuple(TermSet(f"--must {t}", (t,)) for t in settings.must) + user.must_appear
    never = tuple(TermSet(f"--must-not {t}", (t,)) for t in settings.must_not) + user.must_not_assert
    wanted = {term.lower() for entry in must for term in entry.terms}
    unwanted = {term.lower() for entry in never if entry.weight is None for term in entry.terms}
    named = {entry.name for entry in must + never + user.must_not_deny}

    def fitting(entries: Sequence[TermSet], forbid: bool) -> tuple[TermSet, ...]:
        out = []
        for entry in entries:
            if forbid:
                terms = tuple(t for t in entry.terms if not any(_holds(w, t) for w in wanted))
            else:
                terms = tuple(t for t in entry.terms if not any(_holds(t, u) for u in unwanted))
            if terms and entry.name not in named:
                out.append(replace(entry, terms=terms))
        return tuple(out)

    own = {name.lower() for name in user.sections} <= set(sections)
    return replace(
        user,
        must_appear=fitting(base.must_appear, False)
        + tuple(e for e in must if e.section is None or e.section.lower() not in sections),
        must_not_assert=fitting(base.must_not_assert, True) + never,
        must_not_deny=fitting(base.must_not_deny, False) + user.must_not_deny,
        repeat_sentences=base.repeat_sentences and user.repeat_sentences,
        sections=() if own else user.sections,
        negation=base.negation,
    )


def _holds(text: str, term: str) -> bool:
    """Whether a term stands in a text as words of its own, case aside."""
    return re.search(rf"(?<!\w){re.escape(term.lower())}(?!\w)", text.lower()) is not None
