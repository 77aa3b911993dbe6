"""From decoded text to a report whose sentences point at their evidence.

Each sentence is read by `knowledge.extraction`, and what it says is held against the evidence (`statements`).

A sentence is contradicted when one of its statements is, or when it is the less probable side of a contradiction inside
the report (`knowledge.rules`); supported when at least one statement is and none is contradicted. Its confidence is
that of its least certain statement (`statements`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from knowledge.extraction import Mention, ReportReader, split_sentences
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from knowledge.rules import contradictions
from vlm.generation.evidence import Evidence
from vlm.generation.statements import Statement, StatementReader
from vlm.types import SECTIONS, InputError, Report, Sentence


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
        self.statements = StatementReader(graph, view)

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
                statements = tuple(statement for _, statement in self.said(own, evidence))
                rows.append((_sentence(text[start:end].strip(), section, statements, evidence.platt), statements))
        for loser in self._losers(said, rows):
            rows[loser] = (replace(rows[loser][0], status="contradicted"), rows[loser][1])
        return tuple(sentence for sentence, _ in rows)

    def said(self, mentions: Sequence[Mention], evidence: Evidence) -> list[tuple[Mention, Statement]]:
        """What the mentions of one text say of the labels, held against the evidence."""
        return self.statements.read(mentions, evidence)

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
