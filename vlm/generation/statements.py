"""What a report says of each label, held against that label's probability and boxes.

| the sentence says | probability at or above upper, or a box | in between | at or below lower |
|---|---|---|---|
| present | supported | unsupported | contradicted |
| absent | contradicted | unsupported | supported |
| uncertain | supported | supported | unsupported |
| present, on the side where no box of it lies | contradicted | contradicted | contradicted |
| absent on one side | contradicted by a box there, supported by boxes on the other alone | unsupported | supported |

"No lesion in the left lung" and "the lungs are clear" (`knowledge.general`) are held against every label for which they
leave no room. A box of one there contradicts them, for clear lungs a calcified one too; so does a probability at or
above the upper cut, where that finding lies nowhere else and no side is named. They are supported when every label
bears them out. "There is a lesion" is supported by any box there. "No abnormality" is contradicted by a box of what it
excludes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from knowledge.denials import ACUTE_WEIGHT, Denial, generals_of
from knowledge.extraction import Mention
from knowledge.general import ACTIVE_DISEASE, LESION
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from vlm.generation.evidence import Evidence
from vlm.generation.steering import Threshold

FAINTEST = 0.02
"""Confidence below which a box says nothing: detectors don't keep fainter ones."""

PRESENT, ABSENT = Certainty.PRESENT, Certainty.ABSENT


@dataclass(frozen=True, slots=True)
class Statement:
    """What one mention says of one label, judged.

    Args:
        label: of the view.
        certainty: what is said.
        verdict: 1 supported, 0 nothing measured, -1 contradicted.
        confidence: probability that the statement is right, of one side by the surest box there; None when nothing was
            measured.
        boxes: the boxes that it rests on.
        swapped: it is said to be present on a side where no box of it lies.
        general: the general concept ("lesion") that is held against this label among others; None for a statement of
            the label itself.
    """

    label: str
    certainty: Certainty
    verdict: int
    confidence: float | None
    boxes: tuple[int, ...]
    swapped: bool = False
    general: str | None = None

    @property
    def about(self) -> str:
        """What is said to be there or not; statements about one thing in one sentence count once."""
        return self.general or self.label


class _Scope(NamedTuple):
    """How a general statement speaks of a label: by its boxes, by its probability."""

    boxed: bool
    likely: bool


class StatementReader:
    """Holds mentions against a study's evidence.

    Args:
        graph: that the mentions were read with.
        view: name of the label list's view.
    """

    def __init__(self, graph: KnowledgeGraph, view: str) -> None:
        self.graph = graph
        self.labels = graph.views[view]
        self.labels_of = graph.label_of(view)
        self.generals = generals_of(graph)
        self._scopes: dict[tuple[str, str | None, bool], dict[str, _Scope]] = {}

    def read(self, mentions: Sequence[Mention], evidence: Evidence) -> list[tuple[Mention, Statement]]:
        """What the mentions of one text say; a label that words deny by name is not told again as a part of more."""
        out = [(m, s) for m in mentions for s in self.statements(m, evidence)]
        named = {(m.start, m.end, s.label) for m, s in out if s.general is None}
        return [(m, s) for m, s in out if s.general is None or (m.start, m.end, s.label) not in named]

    def statements(self, mention: Mention, evidence: Evidence) -> list[Statement]:
        """What one mention says."""
        certainty = mention.certainty
        if mention.change == "past":
            return []
        if mention.change == "resolved" and certainty is PRESENT:
            certainty = ABSENT
        named = self.labels_of.get(mention.concept, ())
        judged = [self._statement(label, mention, certainty, evidence) for label in named]
        denial = self.generals.of(mention)
        if denial is None or mention.change == "resolved":  # of what else is there, that says nothing
            return judged
        if certainty is PRESENT:
            return judged + self._anything(denial, evidence)
        return judged + (self._nothing(denial, evidence) if self.generals.denies_all(mention) else [])

    def denied_labels(self, mention: Mention) -> tuple[str, ...]:
        """Labels for which the denial of a general concept leaves no room, and that lie nowhere else."""
        denial = self.generals.of(mention)
        if denial is None or denial.side is not None or not self.generals.denies_all(mention):
            return ()
        return tuple(label for label, scope in self._scope(denial).items() if scope.likely)

    def _statement(self, label: str, mention: Mention, certainty: Certainty, evidence: Evidence) -> Statement:
        here = evidence.boxes_of(label, mention.side)
        if certainty is ABSENT:
            verdict, confidence = _absence(label, mention.side, bool(here), evidence)
            return Statement(label, certainty, verdict, confidence, ())
        probability = evidence.probabilities.get(label)
        # Every box of the finding lies on the other side: the sentence has left and right the wrong way round.
        swapped = certainty is PRESENT and not here and bool(evidence.boxes_of(label))
        verdict = _verdict(certainty, probability, bool(here), evidence.cut(label))
        if swapped or (mention.concept == "normal" and certainty is PRESENT and self._marked(mention, evidence)):
            verdict = -1
        return Statement(label, certainty, verdict, _confidence(certainty, probability), here, swapped)

    def _marked(self, normal: Mention, evidence: Evidence) -> bool:
        """Whether a box marks what a study without (acute) abnormality does not have."""
        least = ACUTE_WEIGHT if "acute" in normal.attributes else 0.0
        weights = self.graph.exclusion_weights
        marked = [label for label in self.labels if evidence.boxes_of(label)]
        return any(weights.get(("normal", id), -1.0) >= least for label in marked for id in self.labels[label])

    def _nothing(self, denial: Denial, evidence: Evidence) -> list[Statement]:
        """What is said by "no lesion", of a place or a side."""
        rows = []
        for label, scope in self._scope(denial).items():
            boxed = scope.boxed and bool(evidence.boxes_of(label, denial.side))
            if boxed or (scope.likely and label in evidence.probabilities):
                rows.append((label, *_absence(label, denial.side, boxed, evidence)))
        most = int(all(verdict > 0 for _, verdict, _ in rows))
        return [Statement(label, ABSENT, min(verdict, most), p, (), general=denial.id) for label, verdict, p in rows]

    def _anything(self, denial: Denial, evidence: Evidence) -> list[Statement]:
        """What is said by "there is a lesion", of a place or a side: what bears it out, else what speaks against it."""
        found, against, low = [], [], True
        for label, scope in self._scope(denial).items():
            probability, cut = evidence.probabilities.get(label), evidence.cut(label)
            every, here = evidence.boxes_of(label), evidence.boxes_of(label, denial.side)
            confidence = _confidence(PRESENT, probability)
            likely = scope.likely and probability is not None
            if here or (not every and likely and _verdict(PRESENT, probability, False, cut) > 0):
                found.append(Statement(label, PRESENT, 1, confidence, here, general=denial.id))
            elif every:
                against.append(Statement(label, PRESENT, -1, confidence, (), True, denial.id))
            elif likely:
                low = low and _verdict(PRESENT, probability, False, cut) < 0
                against.append(Statement(label, PRESENT, -1, confidence, (), general=denial.id))
        swapped = [statement for statement in against if statement.swapped]
        if found:  # as likely as the likeliest of what it may be
            likeliest = max((s.confidence for s in found if s.confidence is not None), default=None)
            return [replace(statement, confidence=likeliest) for statement in found]
        if swapped:
            return swapped
        # The likeliest finding is what a lesion would be.
        best = max(against, key=lambda statement: statement.confidence or 0.0, default=None)
        return [] if best is None else [replace(best, verdict=-1 if low else 0)]

    def _scope(self, denial: Denial) -> dict[str, _Scope]:
        """The labels that a general statement speaks of."""
        place = denial.place
        if place is not None and denial.side is not None:
            place = place.removeprefix(f"{denial.side}_")
        key = (denial.id, place, denial.acute)
        if key not in self._scopes:
            generals, wide = self.generals, self.generals.kinds(denial.id)
            if denial.id == ACTIVE_DISEASE:  # a box does not tell whether what it marks is old
                wide = wide | generals.kinds(LESION)
            scopes = {}
            for label, concepts in self.labels.items():
                spoken = [id for id in concepts if not denial.acute or generals.is_acute(id)]
                likely = any(id in generals.kinds(denial.id) and generals.homes_in(id, place) for id in spoken)
                boxed = any(id in wide and generals.may_lie_in(id, place) for id in spoken)
                if likely or boxed:
                    scopes[label] = _Scope(boxed, likely)
            self._scopes[key] = scopes
        return self._scopes[key]


def _verdict(certainty: Certainty, probability: float | None, boxed: bool, cut: Threshold) -> int:
    if probability is None and not boxed:
        return 0
    high = boxed or (probability is not None and probability >= cut.upper)
    low = not high and probability is not None and probability <= cut.lower
    if certainty is Certainty.UNCERTAIN:
        return 0 if low else 1
    if certainty is PRESENT:
        return 1 if high else -1 if low else 0
    return -1 if high else 1 if low else 0


def _absence(label: str, side: str | None, boxed: bool, evidence: Evidence) -> tuple[int, float | None]:
    """Verdict and confidence of a denial; `boxed` where a box contradicts it.

    On one side, where boxes tell the sides apart, they speak and not the probability of the whole study; a high one
    says nothing of a side.
    """
    probability, cut = evidence.probabilities.get(label), evidence.cut(label)
    confidence = _confidence(ABSENT, probability)
    if side not in ("left", "right"):
        return _verdict(ABSENT, probability, boxed, cut), confidence
    low = probability is not None and probability <= cut.lower
    if evidence.boxes_of(label):
        confidence = 1.0 - max(FAINTEST, evidence.surest(label, side))
        low = low or not evidence.boxes_of(label, side)
    return (-1 if boxed else int(low)), confidence


def _confidence(certainty: Certainty, probability: float | None) -> float | None:
    if probability is None:
        return None
    if certainty is PRESENT:
        return probability
    if certainty is ABSENT:
        return 1.0 - probability
    return max(probability, 1.0 - abs(2.0 * probability - 1.0))
