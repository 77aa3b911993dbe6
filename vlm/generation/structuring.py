"""From decoded text to a report whose sentences point at their evidence.

Each sentence is read by `knowledge.extraction`. What it says of a label is held against that label's probability and
boxes:

| the sentence says | probability at or above upper, or a box | in between | at or below lower |
|---|---|---|---|
| present | supported | unsupported | contradicted |
| absent | contradicted | unsupported | supported |
| uncertain | supported | supported | unsupported |
| present, on the side where no box of it lies | contradicted | contradicted | contradicted |

A sentence is contradicted when one of its statements is, or when it is the less probable side of a contradiction inside
the report (`knowledge.rules`); supported when at least one statement is and none is contradicted. Its confidence is
that of its least certain
statement: p for present, 1 - p for absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from knowledge.extraction import Mention, ReportReader, split_sentences
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from knowledge.rules import contradictions
from vlm.generation.steering import NEUTRAL, Threshold
from vlm.types import SECTIONS, Box, InputError, Report, Sentence


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the model measures of one study.

    Args:
        probabilities: label -> calibrated probability in [0, 1].
        boxes: detections, in the report's order.
        widths: pixel width of each image, to tell a box's side; empty when unknown, then sides are not compared.
        thresholds: label -> cuts; `NEUTRAL` where there is none.
        least: confidence from which a box counts.
        platt: slope and offset that calibrate the logit of a sentence's confidence.
    """

    probabilities: Mapping[str, float]
    boxes: Sequence[Box] = ()
    widths: Sequence[int] = ()
    thresholds: Mapping[str, Threshold] | None = None
    least: float = 0.0
    platt: tuple[float, float] = (1.0, 0.0)

    def cut(self, label: str) -> Threshold:
        """The label's cuts."""
        return (self.thresholds or {}).get(label, NEUTRAL)

    def boxes_of(self, label: str, side: str | None = None) -> tuple[int, ...]:
        """Boxes of a label that count, on the patient's side if one is named."""
        return tuple(
            index
            for index, box in enumerate(self.boxes)
            if box.label == label
            and (box.confidence is None or box.confidence >= self.least)
            and (side is None or self._on(box, side))
        )

    def _on(self, box: Box, side: str) -> bool:
        if side == "bilateral" or box.image >= len(self.widths):
            return True
        # The patient's right is at the viewer's left; a lesion at the middle is on both sides.
        middle, width = (box.xyxy[0] + box.xyxy[2]) / 2, self.widths[box.image]
        return middle <= 0.55 * width if side == "right" else middle >= 0.45 * width


@dataclass(frozen=True, slots=True)
class Statement:
    """What one mention says of one label, judged.

    Args:
        label: of the view.
        certainty: what is said.
        verdict: 1 supported, 0 nothing measured, -1 contradicted.
        confidence: probability that the statement is right; None when the label has no probability.
        boxes: the boxes that it rests on.
        swapped: it is said to be present on a side where no box of it lies.
    """

    label: str
    certainty: Certainty
    verdict: int
    confidence: float | None
    boxes: tuple[int, ...]
    swapped: bool = False


class Structurer:
    """Reads reports and judges their sentences.

    Args:
        graph: the graph; `reader` must have been made with it.
        reader: None to make one.
        view: name of the label list's view.
    """

    def __init__(self, graph: KnowledgeGraph, reader: ReportReader | None = None, view: str = "radscribe") -> None:
        self.graph, self.reader = graph, reader or ReportReader(graph)
        self.view = view
        self.labels_of = graph.label_of(view)

    def sentences(self, sections: Mapping[str, str], evidence: Evidence) -> tuple[Sentence, ...]:
        """The sentences of a report with what each rests on.

        Args:
            sections: text by section name; read in `SECTIONS` order.
            evidence: what the model measured.
        """
        rows: list[tuple[Sentence, tuple[Statement, ...]]] = []
        said: list[tuple[Mention, int]] = []  # mention and its row
        for section in sorted(sections, key=lambda name: SECTIONS.index(name) if name in SECTIONS else len(SECTIONS)):
            text = sections[section]
            mentions = share_sides(self.reader.read(text, section))
            for number, (start, end) in enumerate(split_sentences(text)):
                own = [mention for mention in mentions if mention.sentence == number]
                said += [(mention, len(rows)) for mention in own]
                statements = tuple(statement for mention in own for statement in self.statements(mention, evidence))
                rows.append((_sentence(text[start:end].strip(), section, statements, evidence.platt), statements))
        for loser in self._losers(said, rows):
            rows[loser] = (replace(rows[loser][0], status="contradicted"), rows[loser][1])
        return tuple(sentence for sentence, _ in rows)

    def statements(self, mention: Mention, evidence: Evidence) -> list[Statement]:
        """What a mention says of the labels of the view."""
        if mention.change == "past":
            return []
        judged = []
        for label in self.labels_of.get(mention.concept, ()):
            certainty = mention.certainty
            if mention.change == "resolved" and certainty is Certainty.PRESENT:
                certainty = Certainty.ABSENT
            probability = evidence.probabilities.get(label)
            boxes = evidence.boxes_of(label, mention.side) if certainty is not Certainty.ABSENT else ()
            # Every box of the finding lies on the other side: the sentence has left and right the wrong way round.
            swapped = certainty is Certainty.PRESENT and not boxes and bool(evidence.boxes_of(label))
            verdict = _verdict(
                certainty, probability, bool(evidence.boxes_of(label, mention.side)), evidence.cut(label)
            )
            verdict = -1 if swapped else verdict
            judged.append(Statement(label, certainty, verdict, _confidence(certainty, probability), boxes, swapped))
        return judged

    def _losers(self, said: list[tuple[Mention, int]], rows: list[tuple[Sentence, tuple[Statement, ...]]]) -> set[int]:
        """Rows on the less probable side of a contradiction inside the report."""
        losers: set[int] = set()
        # Spans of different sections overlap, so each mention is moved behind the ones before it.
        moved: dict[int, int] = {}
        mentions = []
        for position, (mention, row) in enumerate(said):
            shifted = mention._replace(start=position * 2, end=position * 2 + 1, sentence=row)
            moved[shifted.start] = row
            mentions.append(shifted)
        for found in contradictions(mentions, self.graph):
            first = moved[found.first.start]
            if found.second is None:
                losers.add(first)
                continue
            second = moved[found.second.start]
            losers.add(first if _least(rows[first][1]) < _least(rows[second][1]) else second)
        return losers


def share_sides(mentions: Sequence[Mention]) -> list[Mention]:
    """Gives a mention without a side the only side that its sentence names.

    In "an infiltrate with air bronchograms in the right lower lobe" the place belongs to both findings.
    """
    sides: dict[int, set[str]] = {}
    for mention in mentions:
        if mention.side:
            sides.setdefault(mention.sentence, set()).add(mention.side)
    return [
        mention._replace(side=next(iter(sides[mention.sentence])))
        if mention.side is None and len(sides.get(mention.sentence, ())) == 1 and mention.certainty is Certainty.PRESENT
        else mention
        for mention in mentions
    ]


def _verdict(certainty: Certainty, probability: float | None, boxed: bool, cut: Threshold) -> int:
    if probability is None and not boxed:
        return 0
    high = boxed or (probability is not None and probability >= cut.upper)
    low = not high and probability is not None and probability <= cut.lower
    if certainty is Certainty.UNCERTAIN:
        return 0 if low else 1
    if certainty is Certainty.PRESENT:
        return 1 if high else -1 if low else 0
    return -1 if high else 1 if low else 0


def _confidence(certainty: Certainty, probability: float | None) -> float | None:
    if probability is None:
        return None
    if certainty is Certainty.PRESENT:
        return probability
    if certainty is Certainty.ABSENT:
        return 1.0 - probability
    return max(probability, 1.0 - abs(2.0 * probability - 1.0))


def _least(statements: Sequence[Statement]) -> float:
    """Confidence of the least certain statement; 0.5 when none has one."""
    return min((s.confidence for s in statements if s.confidence is not None), default=0.5)


def calibrated(confidence: float, platt: tuple[float, float]) -> float:
    """A confidence in [0, 1] by slope and offset of its logit."""
    slope, offset = platt
    if (slope, offset) == (1.0, 0.0):
        return confidence
    clipped = min(max(confidence, 1e-4), 1 - 1e-4)
    return 1.0 / (1.0 + math.exp(-(slope * math.log(clipped / (1 - clipped)) + offset)))


def _sentence(text: str, section: str, statements: tuple[Statement, ...], platt: tuple[float, float]) -> Sentence:
    labels = tuple(dict.fromkeys(statement.label for statement in statements))
    boxes = tuple(sorted({box for statement in statements for box in statement.boxes}))
    verdicts = [statement.verdict for statement in statements]
    confidences = [statement.confidence for statement in statements if statement.confidence is not None]
    status = "contradicted" if -1 in verdicts else "supported" if 1 in verdicts else "unsupported"
    confidence = calibrated(min(confidences), platt) if confidences and status != "unsupported" else None
    return Sentence(text, section, labels, boxes, status, confidence)  # type: ignore[arg-type]


def abstain(sentences: Sequence[Sentence], least: float) -> tuple[tuple[Sentence, ...], tuple[Sentence, ...]]:
    """Sentences to keep, and those left out because they are contradicted or their confidence is below `least` in [0,
    1]."""
    if not 0.0 <= least <= 1.0:
        raise InputError(f"abstain is {least}: it must lie in [0, 1]")
    out = [s for s in sentences if s.status == "contradicted" or (s.confidence is not None and s.confidence < least)]
    return tuple(s for s in sentences if s not in out), tuple(out)


def withhold(report: Report, least: float) -> Report:
    """The report without the sentences whose confidence is below `least` in [0, 1]; `abstained` names them.

    A section of which nothing is left stays, empty, so that a reader sees that it was withheld.
    """
    kept, out = abstain(report.sentences, least)
    sections = {
        name: " ".join(s.text for s in kept if s.section == name) if any(s.section == name for s in out) else text
        for name, text in report.sections.items()
    }
    return replace(report, sections=sections, sentences=kept, abstained=report.abstained + out)
