"""What a sentence says of anything at all: "no abnormality of the kidneys", "no lesion or effusion on the left".

A denied generic word, and the word for a general concept (`knowledge.general`), get every place that they are said of.
What only some of them are said of ("no malignant lesion", "no lesion suspicious for ...", "clear except for ...") is
marked: nothing follows from it for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from knowledge.general import ABNORMALITY, ACTIVE_DISEASE, LESION, QUALIFIED, WHOLE, stand_ins
from knowledge.lexicon import Lexicon
from knowledge.ontology import Certainty
from knowledge.phrases import EXCEPTIONS, Phrase, Reading, cue_before, is_general, next_roles

PRESENT, ABSENT = Certainty.PRESENT, Certainty.ABSENT
_ACUTE = ("infection", "injury", "trauma")  # no chronic finding contradicts that there is none
_LISTS = frozenset({"or", "and", "comma", "attribute"})
_PLAIN = frozenset({"any", "a", "an", "the", "discrete", "xxxx"})  # words that single nothing out
_EXISTENCE = ("there is", "there are")


def nothing_wrong(clause: list[Phrase], lexicon: Lexicon) -> list[Reading]:
    """A denied generic word: "no abnormality" says the study is normal, "no bony abnormality" that bones are.

    What bones that are normal do not have is read too ("fracture", absent); the denial itself is named by `settled`.
    """
    out = []
    for i, p in enumerate(clause):
        if "generic" not in p.roles or "finding" in p.roles:
            continue
        cue = cue_before(clause, i, "negates_after")
        if cue is None or any("finding" in q.roles for q in clause[cue:i]):
            continue
        if not {"hedges_after", "asserts"}.isdisjoint(next_roles(clause, i)) and i + 2 < len(clause):
            continue  # "no findings suspicious for pneumonia" is about the pneumonia
        parts = [q.roles["place"] for q in clause[cue:i] if "place" in q.roles]
        said = list(dict.fromkeys(q.roles["attribute"] for q in clause[cue:i] if "attribute" in q.roles))
        if p.roles["generic"] in _ACUTE and "acute" not in said:
            said.append("acute")
        span = clause[cue].start, p.end, i
        denied = {c.concept: place for place in parts for c in lexicon.composites.get((place, "normal"), ())}
        for concept, place in denied.items():
            if concept not in ("normal", ACTIVE_DISEASE):
                out.append(Reading(concept, *span, ABSENT, True, place=place, attributes=list(said)))
        out.append(Reading("normal", *span, PRESENT, True, attributes=said, nothing=True))
    return out


def mark_some(phrases: list[Phrase], clause: list[Phrase], words: list[str], found: list[Reading]) -> None:
    """Marks the denials of anything at all that speak of some only.

    Args:
        phrases: of the sentence. clause: of it. words: of the sentence. found: in the clause.
    """
    denials = [r for r in found if r.nothing or (r.certainty is ABSENT and (is_general(r) or r.concept in stand_ins()))]
    if not denials:
        return
    excepted = any(p.roles.get("ends") in EXCEPTIONS or "rest" in p.roles for p in phrases)
    known = {i for p in clause for i in range(p.start, p.end)}
    for r in denials:
        cue = cue_before(clause, r.index, "negates_after")
        before = () if cue is None else range(clause[cue].end, clause[r.index].start)
        singled = any(i not in known and words[i] not in _PLAIN for i in before)
        asks = any(
            "hedges_after" in p.roles or ("asserts" in p.roles and p.roles["asserts"] not in _EXISTENCE)
            for p in clause[r.index + 1 :]
        )
        r.some = excepted or singled or asks


def place_all(clause: list[Phrase], found: list[Reading], heading: str | None, sides: Mapping[str, str]) -> None:
    """Gives denials of anything at all the place of what follows in their list, else that of their heading."""
    for r, after in zip(found[-2::-1], found[:0:-1], strict=True):
        if not is_general(r) or r.place is not None or r.side is not None or after.certainty is not r.certainty:
            continue
        if all(not _LISTS.isdisjoint(p.roles) for p in clause[r.index + 1 : after.index]):
            r.place, r.side = after.place, after.side
    for r in found:
        if is_general(r) and r.place is None and r.side is None and heading is not None:
            r.place, r.side = heading, sides.get(heading)
        own = sides.get(r.place) if r.place is not None else None
        if is_general(r) and own is not None and r.side in ("left", "right") and r.side != own:
            r.place, r.side = str(r.place).removeprefix(f"{own}_"), "bilateral"  # "the left or right lung"


def settled(found: list[Reading], sides: Mapping[str, str]) -> list[Reading]:
    """Names what the denied generic words among the readings of a clause deny, now that it is known where.

    Of a whole study it says that it is normal, unless a part of it was named beside; of a place or a side that there is
    no abnormality; a focal one is a lesion.
    """
    out = []
    for r in found:
        places = [place for place in (r.place, *r.also) if place not in WHOLE]
        if r.nothing:
            focal = "focal" in r.attributes
            if not focal and r.side is None and not any(places):
                if not any(other.index == r.index for other in found if other is not r):
                    out.append(replace(r, place=None))
                continue
            if not focal and "cardiopulmonary" in (r.place, *r.also):
                out.append(replace(r, place=None, side=None))
            r.concept, r.certainty = LESION if focal else ABNORMALITY, ABSENT
        if r.some and r.certainty is ABSENT:
            r.attributes.append(QUALIFIED)
        if not is_general(r):
            out.append(r)
            continue
        from_place = r.place is not None and r.side == sides.get(r.place)
        for place in places or [None]:
            side = r.side if place is None or place == r.place else sides.get(place, None if from_place else r.side)
            out.append(replace(r, place=place, side=side))
    return out
