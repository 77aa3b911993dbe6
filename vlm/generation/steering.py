"""From what was seen to how the report is searched: findings and their probabilities -> constraints, width and length.

| probability of a finding | constraint |
|---|---|
| at or above its upper threshold | one of its terms must appear, as an assertion, and none may be denied |
| at or below its lower threshold | no term of it may be asserted; "no pneumothorax" stays allowed |
| between | soft: a term is worth `softness` * log-odds against the middle of the two, as a bonus or a penalty |

Width, banks and length follow from the same evidence by the rule of `planning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.generation.automaton import Automaton
from vlm.generation.compiling import build_for
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.wording import WITHOUT_TERMS, Wording
from vlm.types import InputError


@dataclass(frozen=True, slots=True)
class Threshold:
    """Two cuts through a finding's probability.

    Args:
        lower: at or below it the finding must not be asserted.
        upper: at or above it the finding must appear; above 1 for never.
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower < self.upper):
            raise InputError(f"thresholds {self.lower} and {self.upper}: the lower must be below the upper")


NEUTRAL = Threshold(0.05, 0.8)
"""For a label without thresholds of its own."""


def choose_thresholds(
    probabilities: np.ndarray, truths: np.ndarray, sensitivity: float = 0.95, precision: float = 0.8, least: int = 5
) -> Threshold:
    """Cuts of one finding from validation studies.

    Args:
        probabilities: (n,) calibrated, in [0, 1].
        truths: (n,) 1 present, 0 absent; NaN unknown.
        sensitivity: share of present findings that must lie above the lower cut, in (0, 1].
        precision: share of those above the upper cut that must be present, in (0, 1].
        least: positives needed; with fewer the cuts are `NEUTRAL`'s lower one and never.

    Returns:
        The highest lower cut and the lowest upper cut that keep the promises; an upper cut above 1 when none does.
    """
    known = np.isfinite(truths)
    scores, present = np.asarray(probabilities, dtype=float)[known], np.asarray(truths)[known] > 0.5
    if present.sum() < least:
        return Threshold(min(NEUTRAL.lower, float(scores.min(initial=1.0)) + 1e-3), 1.01)
    positives = np.sort(scores[present])
    missed = math.floor((1 - sensitivity) * len(positives) + 1e-9)
    lower = float(np.nextafter(positives[missed], 0.0))
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(present[order]) / np.arange(1, len(order) + 1)
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    good = np.flatnonzero((hits >= precision) & last_of_tie & (np.arange(len(order)) + 1 >= least))
    upper = float(scores[order][good[-1]]) if len(good) else 1.01
    return Threshold(min(lower, upper - 1e-6), upper)


def steer(
    probabilities: Mapping[str, float],
    wording: Wording,
    thresholds: Mapping[str, Threshold] | None = None,
    softness: float = 0.5,
    most: int = 6,
) -> Constraints:
    """Constraints for one study.

    Args:
        probabilities: label -> calibrated probability in [0, 1]; labels without terms are passed over.
        wording: how the labels are written.
        thresholds: label -> cuts; `NEUTRAL` where there is none.
        softness: nats for each unit of log-odds between the cuts; 0 for no soft weights.
        most: required findings at most, the most probable ones.

    Raises:
        InputError: a probability outside [0, 1].
    """
    cuts = thresholds or {}
    must: list[tuple[float, str]] = []
    unsure: list[str] = []
    never: list[str] = []
    for label, probability in probabilities.items():
        if not 0.0 <= probability <= 1.0:
            raise InputError(f"probability of {label} is {probability}: it must lie in [0, 1]")
        if label in WITHOUT_TERMS or label not in wording.concepts:
            continue
        cut = cuts.get(label, NEUTRAL)
        if probability >= cut.upper:
            must.append((probability, label))
        elif probability <= cut.lower:
            never.append(label)
        else:
            unsure.append(label)
    required = [label for _, label in sorted(must, key=lambda pair: -pair[0])[:most]]
    allowed = frozenset(label for _, label in must) | frozenset(unsure)
    forbidden = [TermSet(label, terms) for label in never if (terms := wording.betraying(label, allowed))]
    # What must appear must not be denied either, in so many words or by a normal state of the same part.
    normal = [TermSet(f"{label} normal", terms) for label in required if (terms := wording.denying(label))]
    liked, disliked = (_soft(unsure, probabilities, cuts, wording, softness, sign) for sign in (1, -1))
    return Constraints(
        must_appear=(*_required(required, wording, [*forbidden, *normal]), *liked),
        must_not_assert=(*forbidden, *normal, *disliked),
        must_not_deny=tuple(TermSet(label, wording.names(label)) for label in required),
        repeat_sentences=False,
        negation=wording.negation,
    )


def _required(labels: Sequence[str], wording: Wording, forbidden: Sequence[TermSet]) -> tuple[TermSet, ...]:
    """Hard sets of the labels that can still be written beside what is forbidden."""
    bad = {term for entry in forbidden for term in entry.terms}
    sets = []
    for label in labels:
        terms = tuple(term for term in wording.asserting(label) if bad.isdisjoint(parts_of(term)))
        if terms:
            sets.append(TermSet(label, terms, asserted=True))
    return tuple(sets)


def parts_of(term: str) -> list[str]:
    """Every run of whole words of a term."""
    words = term.split()
    return [" ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]


def term_automaton(wording: Wording) -> Automaton:
    """One automaton over every term of a wording, to compile all studies' constraints with (`compile_constraints`)."""
    return build_for(wording.every_term(), wording.negation)


def _soft(
    labels: Sequence[str],
    probabilities: Mapping[str, float],
    cuts: Mapping[str, Threshold],
    wording: Wording,
    softness: float,
    sign: int,
) -> tuple[TermSet, ...]:
    """Soft sets of the uncertain labels: those above the middle of their cuts (`sign` 1), or below it (-1)."""
    sets = []
    for label in labels:
        cut = cuts.get(label, NEUTRAL)
        middle = (_logit(cut.lower) + _logit(min(cut.upper, 0.99))) / 2
        weight = softness * sign * (_logit(probabilities[label]) - middle)
        terms = wording.asserting(label)
        if weight > 0 and terms:
            sets.append(TermSet(label, terms, weight=weight, asserted=sign > 0))
    return tuple(sets)


def _logit(probability: float) -> float:
    clipped = min(max(probability, 1e-4), 1 - 1e-4)
    return math.log(clipped / (1 - clipped))
