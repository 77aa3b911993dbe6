"""Beams by need: width, banks, length penalty and shortest text of one study, from what was seen (the seed paper's
"dynamically adjusted" beams).

With m findings that are sure (probability at or above the upper cut, or a box), and the doubt of the others, d = sum of
4 p (1 - p) over the findings between their cuts (1 for a finding that is as likely as not),

    width      = clamp(round(base / 2 * (1 + m) + d), 2, 4 * base)    a normal study needs half the beams
    banks      = 1 + 2 * min(m, most)                                 two stages for each term that must appear
    min length = min(6 * m, half the length)                          a required finding takes about a sentence
    penalty    = base penalty * (1 + 0.1 * m)                         so that saying more isn't punished

The effect against a fixed width at the same cost is measured by `scripts/measure_decoding.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlm.generation.evidence import Evidence
from vlm.generation.settings import BeamSettings
from vlm.generation.wording import WITHOUT_TERMS


@dataclass(frozen=True, slots=True)
class BeamPlan:
    """How one study is searched.

    Args:
        width: beams.
        banks: stages of meeting required terms that beams are shared out over.
        min_new_tokens: no end before this many.
        length_penalty: exponent of the length.
    """

    width: int
    banks: int
    min_new_tokens: int
    length_penalty: float

    def apply(self, base: BeamSettings) -> BeamSettings:
        """The settings with this plan in them."""
        return replace(
            base, num_beams=self.width, min_new_tokens=self.min_new_tokens, length_penalty=self.length_penalty
        )


def beam_plan(evidence: Evidence, base: BeamSettings, most: int = 6) -> BeamPlan:
    """The plan for one study, by the rule in the module's docstring.

    Args:
        evidence: what was measured of it.
        base: settings whose width is that of a study with one sure finding.
        most: findings that must appear at most.
    """
    sure, doubt = 0, 0.0
    for label, probability in evidence.probabilities.items():
        if label in WITHOUT_TERMS:
            continue
        cut = evidence.cut(label)
        if probability >= cut.upper or evidence.boxes_of(label):
            sure += 1
        elif probability > cut.lower:
            doubt += 4.0 * probability * (1.0 - probability)
    width = round(base.num_beams / 2 * (1 + sure) + doubt)
    return BeamPlan(
        width=max(2, min(width, 4 * base.num_beams)),
        banks=1 + 2 * min(sure, most),
        min_new_tokens=max(base.min_new_tokens, min(6 * sure, base.max_new_tokens // 2)),
        length_penalty=base.length_penalty * (1 + 0.1 * sure),
    )
