"""How the labels of a graph's view are written: the terms that a report uses for each, and the words that negate, from
`knowledge`.

A label stands for its concepts and their `is_a` descendants. Terms come from the graph (names, synonyms, adjectives),
plurals added, and from the reader's composites ("heart" + "enlarged" -> "enlarged heart", "heart is enlarged", "heart
size is enlarged").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from knowledge.graph import RESOURCES, KnowledgeGraph
from knowledge.lexicon import Lexicon
from knowledge.ontology import Certainty
from knowledge.tables import read_text, split_values
from vlm.generation.negation import Negation
from vlm.types import InputError

WITHOUT_TERMS = ("normal", "other_finding")
"""Labels that follow from all others, so no term asserts them."""

_HEDGES = ("", "mildly ")
_HEADS = 2
"""Names of a part of the body that its composites are written with: the shortest ones."""

_SIZED = ("heart", "cardiac silhouette")
_WAYS = 12
"""Composites of a concept that a required label may be written with; all of them betray it."""


@dataclass(frozen=True, slots=True)
class Wording:
    """Terms by label.

    Args:
        concepts: label -> concept ids it stands for, descendants included.
        nouns: concept id -> terms that can name it in a sentence.
        adjectives: concept id -> adjective forms.
        composites: concept id -> phrases of a part of the body and its state.
        normal_states: concept id -> phrases that deny it without a negation ("heart size is normal").
        negation: the words that negate.
    """

    concepts: dict[str, frozenset[str]]
    nouns: dict[str, tuple[str, ...]]
    adjectives: dict[str, tuple[str, ...]]
    composites: dict[str, tuple[str, ...]]
    normal_states: dict[str, tuple[str, ...]]
    negation: Negation

    def asserting(self, label: str) -> tuple[str, ...]:
        """Terms one of which says that the label is present: names, plurals and composites, no adjectives."""
        ids = sorted(self.concepts.get(label, ()))
        terms = [term for id in ids for term in self.nouns.get(id, ()) + self.composites.get(id, ())[:_WAYS]]
        return tuple(dict.fromkeys(terms))

    def denying(self, label: str) -> tuple[str, ...]:
        """Phrases that say the label is absent although no negation stands before them."""
        ids = sorted(self.concepts.get(label, ()))
        return tuple(dict.fromkeys(term for id in ids for term in self.normal_states.get(id, ())))

    def names(self, label: str) -> tuple[str, ...]:
        """Nouns that can name the label."""
        return tuple(dict.fromkeys(t for id in sorted(self.concepts.get(label, ())) for t in self.nouns.get(id, ())))

    def every_term(self) -> tuple[str, ...]:
        """All terms of all labels, for one automaton that serves every study."""
        groups = (self.nouns, self.adjectives, self.composites, self.normal_states)
        return tuple(dict.fromkeys(term for group in groups for terms in group.values() for term in terms))

    def betraying(self, label: str, allowed: frozenset[str]) -> tuple[str, ...]:
        """Every term that asserts the label, adjectives included, concepts of the labels `allowed` left out.

        A term that is a name of an allowed concept as well is left out too.
        """
        spared = (
            frozenset().union(*(self.concepts.get(other, frozenset()) for other in allowed)) if allowed else frozenset()
        )
        kept = {term for id in spared for term in self.nouns.get(id, ()) + self.composites.get(id, ())}
        ids = sorted(self.concepts.get(label, frozenset()) - spared)
        terms = [
            term
            for id in ids
            for group in (self.nouns, self.adjectives, self.composites)
            for term in group.get(id, ())
            if term not in kept
        ]
        return tuple(dict.fromkeys(terms))


def wording_of(graph: KnowledgeGraph, view: str = "radscribe") -> Wording:
    """The wording of a view's labels.

    Args:
        graph: with the view.
        view: its name.

    Raises:
        InputError: the graph has no such view.
    """
    if view not in graph.views:
        raise InputError(f"no view {view!r} in the graph: it has {', '.join(sorted(graph.views))}")
    concepts = {
        label: frozenset().union(*(graph.descendants(id) for id in ids))
        for label, ids in graph.views[view].items()
        if label not in WITHOUT_TERMS
    }
    ids = sorted(frozenset().union(*concepts.values()))
    nouns, adjectives = {}, {}
    for id in ids:
        own = graph.concepts[id].adjectives
        nouns[id] = _with_plurals(term for term in graph.terms(id) if term not in own)
        adjectives[id] = tuple(own)
    present = _composites(graph, frozenset(ids), Certainty.PRESENT)
    absent = _composites(graph, frozenset(ids), Certainty.ABSENT)
    return Wording(concepts, nouns, adjectives, present, absent, knowledge_negation())


def _with_plurals(terms: Iterable[str]) -> tuple[str, ...]:
    out: dict[str, None] = {}
    for term in terms:
        low = term.lower()
        out[low] = None
        if low[-1:].isalpha() and not low.endswith(("s", "x", "sis", "ia", "ema", "y")):
            out[low + "s"] = None
        elif low.endswith("y") and low[-2:-1] not in "aeiou":
            out[low[:-1] + "ies"] = None
    return tuple(out)


def _composites(graph: KnowledgeGraph, wanted: frozenset[str], certainty: Certainty) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for (head, quality), composites in Lexicon(graph).composites.items():
        for composite in composites:
            if composite.concept not in wanted or composite.certainty is not certainty:
                continue
            names = graph.terms(head) if head in graph.concepts else (head,)
            for name in sorted({name.lower() for name in names}, key=len)[:_HEADS]:
                # The lexicon's keys are in the singular; reports write "within normal limits".
                plural = quality + "s" if quality.endswith("limit") else quality
                found.setdefault(composite.concept, {}).update(dict.fromkeys(_phrases(name, plural)))
    return {id: tuple(phrases) for id, phrases in found.items()}


def _phrases(head: str, quality: str) -> list[str]:
    plural = head if head.endswith("s") else head + "s"
    phrases = [f"{quality} {head}", f"{quality} {plural}", f"{plural} are {quality}"]
    sizes = ("", " size") if head in _SIZED else ("",)
    phrases += [f"{head}{size} is {hedge}{quality}" for size in sizes for hedge in _HEDGES]
    return phrases + [f"{head}{size} {quality}" for size in sizes]  # "Heart size within normal limits."


@cache
def knowledge_negation() -> Negation:
    """The cues of `knowledge` as triggers, ends of scope and denials."""
    cues: dict[str, tuple[str, ...]] = {}
    for line in read_text(RESOURCES / "cues.tsv").splitlines():
        role, _, phrases = line.partition("\t")
        if phrases and not role.startswith("#"):
            cues[role] = split_values(phrases)
    unaffected = set(cues.get("unaffected", ()))
    before = tuple(phrase for phrase in cues["negates_after"] if phrase not in unaffected)
    stop = (*cues["ends"], *sorted(unaffected), "there is", "there are", "not without", "not free of", "not clear of")
    # A bare "none" or "removed" behind a term may begin something else; a denial proper says "not", "no longer",
    # "absent", ...
    strong = ("not ", "no longer", "absent", "excluded", "ruled out", "resolved", "cleared")
    after = tuple(phrase for phrase in cues["negates_before"] if any(word in f"{phrase} " for word in strong))
    weak = {"not likely", "not suspected", "not suggested", "not enlarged", "not confirmed"}
    after = tuple(phrase for phrase in after if not any(phrase.endswith(word) for word in weak))
    return Negation(before, tuple(dict.fromkeys(stop)), after)
