"""Reads reports: text -> mentions with concept, certainty, place, side, attributes, measure, change and span.

    words ──► keys (one spelling) ──► longest phrases in a trie ──► clauses ──► cues and scope ──► mentions

After NegEx (Chapman 2001) and the CheXpert labeler (Irvin 2019); no parser and no model. Sentences repeat in radiology,
so what a sentence says is kept; offsets are added anew. `XXXX`, the de-identifier's mark, is a word that means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from knowledge.general import general_concepts
from knowledge.graph import KnowledgeGraph
from knowledge.lexicon import Lexicon
from knowledge.ontology import Certainty, Kind
from knowledge.phrases import Phrase, Reading
from knowledge.scope import readings
from knowledge.text import TOKEN, split_sentences

__all__ = ["Mention", "ReportReader", "label_mentions", "split_sentences"]

ASKED = ("indication", "history", "clinical")
"""Sections that say what was asked or known before: a finding there is at most uncertain."""
SILENT = ("comparison", "technique", "examination", "procedure")
"""Sections that say nothing of what is seen now."""
OTHER_ONLY_ALONE = ("openi20",)
"""Views whose "others" is given only when no other label is; Open-i's coders used it so."""

_HEADER = re.compile(
    r"(?:(?<=\n)|^|(?<=[.]\s))[ \t]*(?P<name>findings?|impressions?|conclusions?|indications?|"
    r"reason for (?:exam|study)|"
    r"(?:clinical )?(?:history|information)|comparisons?|techniques?|exam(?:ination)?|procedure)\s*:",
    re.IGNORECASE,
)
_MAX_CACHE = 100_000


class Mention(NamedTuple):
    """What a text says of one concept at one place of the text.

    Args:
        concept: concept id, or a general concept's ("lesion"; `knowledge.general`).
        certainty: present, absent or uncertain.
        place: anatomy concept id; None when not stated.
        side: the patient's "left", "right" or "bilateral"; None when not stated.
        attributes: attribute concept ids, in the order of the text; "qualified" where a general concept is denied of
            some only.
        measure_mm: largest stated dimension in mm.
        change: "new", "unchanged", "increased", "decreased", "resolved", "past" (history of), or None.
        start, end: character span in the text that was read, end exclusive.
        sentence: index into `split_sentences(text)`.
    """

    concept: str
    certainty: Certainty
    place: str | None = None
    side: str | None = None
    attributes: tuple[str, ...] = ()
    measure_mm: float | None = None
    change: str | None = None
    start: int = 0
    end: int = 0
    sentence: int = 0


class ReportReader:
    """Reads report text with the terms of one graph. Not thread-safe: sentences read are remembered.

    Args:
        graph: whose concepts are looked for.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.graph = graph
        self.lexicon = Lexicon(graph)
        self._places = {i for i, c in graph.concepts.items() if c.kind is Kind.ANATOMY}
        self._cache: dict[str, tuple[Mention, ...]] = {}

    def read(self, text: str, section: str | None = None) -> list[Mention]:
        """Mentions in a text.

        Args:
            text: a section or a whole report; headers such as "FINDINGS:" in it are understood.
            section: name of the section that the text is; None when it is not known.

        Returns:
            Mentions in the order of the text. Empty for a comparison or a technique; in an indication or a history
            nothing is more than uncertain.
        """
        name = (section or "").lower()
        headers = list(_HEADER.finditer(text)) if ":" in text else []
        starts = [h.start() for h in headers]
        out: list[Mention] = []
        current = 0
        for number, (start, end) in enumerate(split_sentences(text)):
            while current < len(headers) and starts[current] <= start:
                name = headers[current].group("name").lower()
                current += 1
            if name and name.startswith(SILENT):
                continue
            found = self._sentence(text[start:end])
            if not found:
                continue
            asked = bool(name) and (name.startswith(ASKED) or name.startswith("reason"))
            for m in found:
                sure = UNCERTAIN if asked and m[1] is PRESENT else m[1]
                out.append(Mention(m[0], sure, m[2], m[3], m[4], m[5], m[6], m[7] + start, m[8] + start, number))
        return out

    def _sentence(self, sentence: str) -> tuple[Mention, ...]:
        found = self._cache.get(sentence)
        if found is None:
            if len(self._cache) >= _MAX_CACHE:
                self._cache.clear()
            found = self._cache[sentence] = self._read_sentence(sentence)
        return found

    def _read_sentence(self, sentence: str) -> tuple[Mention, ...]:
        key = self.lexicon.speller.key
        tokens = list(TOKEN.finditer(sentence))
        words = [key(t.group()) for t in tokens]
        phrases = [Phrase(*match) for match in self.lexicon.match(words)]
        if not phrases:
            return ()
        return tuple(
            Mention(
                r.concept, r.certainty, self._sided(r), r.side, tuple(r.attributes), r.measure_mm, r.change,
                tokens[r.start].start(), tokens[r.end - 1].end(),
            )
            for r in readings(words, phrases, self.lexicon)
        )  # fmt: skip

    def _sided(self, r: Reading) -> str | None:
        """The place on its side, where the graph has it: lung_base, left -> left_lung_base."""
        if r.place and r.side in ("left", "right"):
            sided = f"{r.side}_{r.place}"
            if sided in self._places:
                return sided
        return r.place


PRESENT, ABSENT, UNCERTAIN = Certainty.PRESENT, Certainty.ABSENT, Certainty.UNCERTAIN
_RANK = {ABSENT: 0, UNCERTAIN: 1, PRESENT: 2}


def label_mentions(mentions: Iterable[Mention], graph: KnowledgeGraph, view: str = "radscribe") -> dict[str, Certainty]:
    """What the mentions say of each label of a view.

    Present outweighs uncertain, uncertain outweighs absent; history ("past") counts for nothing. "normal" is present
    when something was said and no finding is present or uncertain, absent when one is present, uncertain when one is
    only possible. "other finding" is present when a finding outside the view's other labels is.

    Args:
        mentions: from `ReportReader.read`.
        graph: the same graph.
        view: name of a view of it.

    Returns:
        Label -> certainty, in the view's order; a label that is not mentioned is left out.

    Raises:
        KnowledgeError: no such view.
    """
    labels_of = graph.label_of(view)
    surgery = graph.descendants("postsurgical_change") if "postsurgical_change" in graph.concepts else frozenset()
    best: dict[str, Certainty] = {}
    spoken, outside = False, None
    for m in mentions:
        if m.change == "past" or not (m.concept in graph.concepts or m.concept in general_concepts()):
            continue
        spoken = True
        if m.concept not in graph.concepts and m.certainty is ABSENT:
            continue  # "no lesion" in one place denies no label of a study
        if m.concept in ("normal", "other_finding"):
            continue
        labels = labels_of.get(m.concept)
        if labels is None and m.concept in surgery:
            continue  # traces of surgery alone leave a study normal
        if labels is None:
            outside = m.certainty if outside is None or _RANK[m.certainty] > _RANK[outside] else outside
            continue
        for label in labels:
            if label not in best or _RANK[m.certainty] > _RANK[best[label]]:
                best[label] = m.certainty
    if not spoken:
        return {}
    return _with_rest(best, outside, graph, view)


def _with_rest(
    best: dict[str, Certainty], outside: Certainty | None, graph: KnowledgeGraph, view: str
) -> dict[str, Certainty]:
    """Adds the two labels that follow from all others: "normal" and "other finding"."""
    others = outside
    if view in OTHER_ONLY_ALONE and PRESENT in best.values():
        others = ABSENT
    worst = max([*best.values(), outside or ABSENT], key=_RANK.__getitem__)
    normal = {PRESENT: ABSENT, UNCERTAIN: UNCERTAIN, ABSENT: PRESENT}[worst]
    out: dict[str, Certainty] = {}
    for label, ids in graph.views[view].items():
        if "normal" in ids:
            out[label] = normal
        elif "other_finding" in ids:
            if others is not None:
                out[label] = others
        elif label in best:
            out[label] = best[label]
    return out
