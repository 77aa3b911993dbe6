"""The phrases that the reader knows, in one trie of words: the graph's terms, the cues, and words for states.

A phrase may play several parts ("stable": a change; "hilar": a place and the head of a composite). A payload maps each
part (role) to its value. `match` walks the trie from every word and keeps the longest phrase, so that "calcified lymph
node" is not read as "calcified", and every phrase ends at a word's end.

Roles: `finding`, `place`, `attribute` (concept id); `head` (what a composite can be about), `quality` (a state);
`generic` ("abnormality"); the rest are the roles of `resources/cues.tsv`. A `finding` may be a general concept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowledge.anatomy import side_of_place
from knowledge.errors import at
from knowledge.general import general_concepts
from knowledge.graph import RESOURCES, KnowledgeGraph
from knowledge.ontology import Certainty, Kind
from knowledge.tables import read_text, split_values
from knowledge.text import TOKEN, Speller, fold, phrase_key

Payload = dict[str, Any]
_END = ""  # no word is empty, so the payload of a phrase can lie under this key
PUNCTUATION = {",": "comma", ";": "break", ":": "break", "/": "or", "(": "comma", ")": "comma"}
GENERIC = ("abnormality", "disease", "process", "finding", "pathology", "infection", "injury", "disease process",
           "pathologic process", "change", "trauma", "issue")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Composite:
    """A state of a part that is a finding: "enlarged" of the heart is cardiomegaly.

    Args:
        concept: what it means.
        certainty: present, or absent for a normal state ("normal" of the heart).
    """

    concept: str
    certainty: Certainty


class Lexicon:
    """Terms, cues and composites compiled for one graph.

    Args:
        graph: whose terms are read; composites about concepts that it lacks are left out.
        resources: folder of `cues.tsv` and `composites.tsv`.

    Raises:
        KnowledgeError: a resource is broken; the message names its line.
    """

    def __init__(self, graph: KnowledgeGraph, resources: Path = RESOURCES) -> None:
        self._phrases: list[tuple[str, str, Any]] = []
        self.composites: dict[tuple[str, str], tuple[Composite, ...]] = {}
        for c in graph.concepts.values():
            for term in graph.terms(c.id):
                role = {Kind.FINDING: "finding", Kind.ANATOMY: "place", Kind.ATTRIBUTE: "attribute"}[c.kind]
                if c.id != "normal" or not term.startswith("no "):  # "no abnormality" is read with where there is none
                    self._phrases.append((term, role, c.id))
                if term in c.adjectives:
                    self._phrases.append((term, "adjective", c.id))
        self._phrases += [(word, "generic", word) for word in GENERIC]
        self._phrases += [(word, "finding", id) for id, row in general_concepts().items() for word in row.words]
        self._read_composites(resources / "composites.tsv", graph)
        sides = ((place, side_of_place(place, graph)) for place in graph.of_kind(Kind.ANATOMY))
        self.sides = {place: side for place, side in sides if side is not None}
        for _, role, phrases in _lines(resources / "cues.tsv"):
            self._phrases += [(p, role, p) for p in phrases if p not in PUNCTUATION]
        keys = {fold(w) for phrase, _, _ in self._phrases for w in TOKEN.findall(phrase)}
        self.speller = Speller(keys)
        self.root: dict[str, Any] = {}
        for phrase, role, value in self._phrases:
            self._insert(phrase, role, value)
        for mark, role in PUNCTUATION.items():
            self.root.setdefault(mark, {})[_END] = {role: mark}

    def match(self, words: list[str]) -> list[tuple[int, int, Payload]]:
        """Longest phrases in a sequence of keys.

        Args:
            words: keys, from `Speller.key`.

        Returns:
            (first word, word after the last, payload) in order, without overlap.
        """
        found, i, n, root = [], 0, len(words), self.root
        while i < n:
            node = root.get(words[i])
            if node is None:
                i += 1
                continue
            payload, end, j = node.get(_END), i + 1, i + 1
            while j < n:
                node = node.get(words[j])
                if node is None:
                    break
                j += 1
                deeper = node.get(_END)
                if deeper is not None:
                    payload, end = deeper, j
            if payload is None:
                i += 1
            else:
                found.append((i, end, payload))
                i = end
        return found

    def _insert(self, phrase: str, role: str, value: Any) -> None:
        node = self.root
        for word in TOKEN.findall(phrase):
            node = node.setdefault(fold(word), {})
        payload = node.setdefault(_END, {})
        payload.setdefault(role, value)

    def _read_composites(self, path: Path, graph: KnowledgeGraph) -> None:
        table: dict[tuple[str, str], list[Composite]] = {}
        for line, concept, rest in _lines(path, columns=4):
            if concept == "concept" or (concept not in graph.concepts and concept not in general_concepts()):
                continue
            certainty, heads, qualities = rest
            composite = Composite(concept, Certainty(certainty))
            for head in split_values(heads):
                if head.startswith('"'):
                    self._phrases.append((head.strip('"'), "head", phrase_key(head)))
                    ids = [phrase_key(head)]
                else:  # a user's smaller graph may not know the place
                    ids = sorted(graph.descendants(head)) if head in graph.concepts else []
                for quality in split_values(qualities):
                    for id in ids:
                        table.setdefault((id, phrase_key(quality)), []).append(composite)
            if not heads or not qualities:
                raise at(path, line, "a composite needs heads and qualities")
            self._phrases += [(quality, "quality", phrase_key(quality)) for quality in split_values(qualities)]
        self.composites = {key: tuple(dict.fromkeys(values)) for key, values in table.items()}


def _lines(path: Path, columns: int = 2) -> Iterator[tuple[int, str, Any]]:
    """(line, first cell, phrases) of a two-column file, or (line, first cell, other cells)."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t")
        if len(cells) != columns:
            raise at(path, number, f"expected {columns} tab-separated cells, found {len(cells)}")
        if columns == 2:
            phrases = tuple(p.strip() for p in cells[1].split(";")) if cells[0] != "break" else (";", ":")
            yield number, cells[0], phrases
        else:
            yield number, cells[0], cells[1:]
