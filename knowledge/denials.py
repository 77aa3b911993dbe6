"""Which findings the denial of a general concept leaves no room for: "no lesion in the left lung" beside an infiltrate
there.

A finding lies where the text puts it, else where the graph locates it; one without a side is not denied by a side.
Clear lungs spare what is old: of 883 Open-i reports (R2Gen's train and val) that call lungs clear or normal, 66 name
something calcified or scarred in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from knowledge.anatomy import around_place
from knowledge.extraction import Mention
from knowledge.general import General, general_concepts
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty, Kind

ACUTE_WEIGHT = 0.9
"""`normal excludes X` of at least this weight says that X is acute, so that "no acute abnormality" excludes it too."""

_OF_ALL = frozenset(
    {"focal", "acute"}
)  # attributes that don't restrict a denial: a lesion is focal; acute has its rule


@dataclass(frozen=True, slots=True)
class Denial:
    """What a mention denies or states of anything at all.

    Args:
        id: general concept.
        place: anatomy concept id; None for anywhere.
        side: "left", "right"; None for both.
        acute: only what is acute.
    """

    id: str
    place: str | None
    side: str | None
    acute: bool


class Generals:
    """General concepts held against one graph.

    Args:
        graph: whose findings they speak of.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.graph = graph
        # A graph that has a concept of this name says itself what lies below it.
        rows = {name: row for name, row in general_concepts().items() if name not in graph.concepts}
        self._stands = {id: name for name, row in rows.items() for id in row.stands_for if id in graph.concepts}
        self._kinds = {name: self._kinds_of(row) for name, row in rows.items()}
        weights = graph.exclusion_weights
        self._acute = {id for (source, id), w in weights.items() if source == "normal" and w >= ACUTE_WEIGHT}
        self._inside: dict[tuple[str, str], bool] = {}

    def kinds(self, name: str) -> frozenset[str]:
        """Findings that a denial of a general concept leaves no room for, wherever they are."""
        return self._kinds[name]

    def of(self, mention: Mention) -> Denial | None:
        """What a mention says of anything at all; None for one of a certain finding."""
        name = mention.concept if mention.concept in self._kinds else self._stands.get(mention.concept)
        if name is None:
            return None
        place = mention.place
        if place is None and mention.concept in self._stands:
            place = next(iter(self.graph.places(mention.concept)), None)
        side = mention.side if mention.side in ("left", "right") else None
        return Denial(name, place, side, "acute" in mention.attributes)

    def denies_all(self, mention: Mention) -> bool:
        """Whether a mention denies a general concept altogether: not a new, a large or a malignant one alone."""
        some = mention.change in ("new", "resolved", "past") or not _OF_ALL.issuperset(mention.attributes)
        return mention.certainty is Certainty.ABSENT and not some and self.of(mention) is not None

    def denies(self, absent: Mention, present: Mention) -> bool:
        """Whether the denial of a general concept leaves no room for a finding that is said to be present."""
        denial = self.of(absent)
        if denial is None:
            return False
        same = self.of(present)
        if same is None and present.concept not in self._kinds[denial.id]:
            return False
        if not set(absent.attributes) - _OF_ALL <= set(present.attributes):
            return False  # "no large lesion" says nothing of a small one
        if denial.acute and not self._is_acute(present):
            return False
        if denial.side and present.side not in (denial.side, "bilateral"):
            return False
        return denial.place is None or self._lies_in(present, denial.place, denial.side)

    def homes_in(self, concept: str, place: str | None) -> bool:
        """Whether all of a finding's usual places lie in a place."""
        homes = self.graph.places(concept) if concept in self.graph.concepts else ()
        return place is None or (bool(homes) and all(self.inside(home, place) for home in homes))

    def may_lie_in(self, concept: str, place: str | None) -> bool:
        """Whether a usual place of a finding, or of what it is a kind of, lies in a place."""
        if place is None or concept not in self.graph.concepts:
            return place is None
        above = self.graph.ancestors(concept)
        return any(self.inside(home, place) for id in above for home in self.graph.places(id))

    def is_acute(self, concept: str) -> bool:
        """Whether a finding is acute by nature."""
        return concept in self.graph.concepts and not self._acute.isdisjoint(self.graph.ancestors(concept))

    def inside(self, part: str, place: str) -> bool:
        """Whether an anatomy concept is a place, or a part or a kind of it."""
        key = (part, place)
        if key not in self._inside:
            self._inside[key] = part in self.graph.concepts and place in around_place(part, self.graph)
        return self._inside[key]

    def _lies_in(self, present: Mention, place: str, side: str | None) -> bool:
        if present.place is not None:
            return self.inside(present.place, place)
        # "Left" of a lung's finding without a place is the left lung.
        sided = place.removeprefix(f"{side}_")
        denial = self.of(present)
        if denial is not None:
            return denial.place is not None and self.inside(denial.place, sided)
        return self.homes_in(present.concept, sided)

    def _is_acute(self, present: Mention) -> bool:
        said = present.attributes
        return {"old", "chronic"}.isdisjoint(said) and ("acute" in said or self.is_acute(present.concept))

    def _kinds_of(self, row: General) -> frozenset[str]:
        findings = frozenset(self.graph.of_kind(Kind.FINDING))
        below = self._below(row.denies) if row.denies is not None else findings
        return (below & findings) - self._below(row.spares)

    def _below(self, ids: tuple[str, ...]) -> frozenset[str]:
        return frozenset().union(*(self.graph.descendants(id) for id in ids if id in self.graph.concepts))


@lru_cache(maxsize=4)
def generals_of(graph: KnowledgeGraph) -> Generals:
    """The general concepts of a graph, made once."""
    return Generals(graph)
