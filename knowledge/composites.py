"""Findings that a part and its state say together: "the heart is enlarged", "lungs are clear", "no abnormality".

A state joins the nearest part it can be said of, not across a finding: to the left as a predicate ("the heart is
enlarged"), to the right as the opening of a noun phrase ("enlarged heart"). A normal state is said of every part
that it can cover.
"""

from __future__ import annotations

from knowledge.lexicon import Composite, Lexicon
from knowledge.ontology import Certainty
from knowledge.phrases import EXCEPTIONS, Phrase, Reading, next_roles

ABSENT = Certainty.ABSENT
REACH = 12  # words between a state and what it is said of
_WIDE = ("lung", "thorax", "abdomen", "cardiopulmonary", "blood_vessel", "body")
Table = dict[tuple[str, str], tuple[Composite, ...]]
_STOPS_NOUN_PHRASE = frozenset({"verb", "ends", "negates_near", "asserts", "hedges_after", "negates_after"})
_CROSS_VERBS = ("tip",)  # "the tip is in the superior vena cava" says the same as "tip in the superior vena cava"


def composites(clause: list[Phrase], lexicon: Lexicon) -> list[Reading]:
    """States joined with the parts they are said of."""
    out: list[Reading] = []
    table = lexicon.composites
    for i, p in enumerate(clause):
        quality = p.roles.get("quality")
        if quality is None or p.used:
            continue
        for j in _heads(clause, i, quality, table):
            head = clause[j]
            for composite in _meanings(head, quality, table):
                fixed = composite.certainty is ABSENT
                if fixed and (_negated_state(clause, i, p) or _too_wide(head) or _only_the_rest(clause, i)):
                    continue
                r = Reading(composite.concept, min(p.start, head.start), max(p.end, head.end), i, composite.certainty)
                r.fixed = fixed
                if fixed and "acute" in quality.split():  # "bones are without acute abnormality" denies no old fracture
                    r.attributes.append("acute")
                if "finding" in head.roles:
                    r.head = (head.roles["finding"], head.start, head.end)
                r.place = head.roles.get("place")
                p.used = p.used or not fixed
                head.used = head.used or "finding" in head.roles or r.place is not None
                out.append(r)
    return out


def _meanings(head: Phrase, quality: str, table: Table) -> tuple[Composite, ...]:
    """What a state says of a phrase, by any of the parts that the phrase plays."""
    values = (head.roles.get(role) for role in ("place", "head", "finding"))
    return tuple(dict.fromkeys(c for v in values if v is not None for c in table.get((v, quality), ())))


def _heads(clause: list[Phrase], i: int, quality: str, table: Table) -> list[int]:
    """Which phrases of the clause the state at `i` is said of: one, or for a normal state all that it can cover."""
    left = _heads_left(clause, i, quality, table)
    right = _heads_right(clause, i, quality, table)
    if left and right:
        verb_between = any("verb" in clause[k].roles for k in range(left[0] + 1, i))
        nearer = clause[i].start - clause[left[0]].end < clause[right[0]].start - clause[i].end
        return left if verb_between or nearer else right
    return left or right


def _heads_left(clause: list[Phrase], i: int, quality: str, table: Table) -> list[int]:
    found: list[int] = []
    for j in range(i - 1, -1, -1):
        other = clause[j]
        if clause[i].start - other.end > REACH or ("ends" in other.roles and "verb" not in other.roles):
            break
        meanings = _meanings(other, quality, table)
        normal = all(m.certainty is ABSENT for m in meanings)
        if meanings and (normal or "adjective" not in other.roles or clause[i].start - other.end <= 2):
            found.append(j)
            if any(m.certainty is not ABSENT for m in meanings):
                break
        elif "finding" in other.roles or ("quality" in other.roles and found):
            break
    return found


def _heads_right(clause: list[Phrase], i: int, quality: str, table: Table) -> list[int]:
    """The heads of the noun phrase that the state opens; a noun ("calcified hilar nodes") outweighs an adjective."""
    nouns: list[int] = []
    adjectives: list[int] = []
    takes_adjectives = "finding" in clause[i].roles  # "calcified hilar XXXX", but not "increased pulmonary markings"
    for j in range(i + 1, len(clause)):
        other, roles = clause[j], clause[j].roles
        if other.start - clause[i].end > REACH // 2 or not _STOPS_NOUN_PHRASE.isdisjoint(roles):
            if not ("verb" in roles and quality in _CROSS_VERBS):
                break
            continue
        if "quality" in roles and not {"finding", "head", "attribute"} & roles.keys():
            if nouns or adjectives or "and" not in clause[j - 1].roles:
                break
            continue
        if _meanings(other, quality, table):
            if "adjective" not in roles:
                nouns.append(j)
            elif takes_adjectives:
                adjectives.append(j)
        elif "finding" in roles or "comma" in roles:
            break
    if nouns and any(m.certainty is not ABSENT for m in _meanings(clause[nouns[0]], quality, table)):
        nouns = [j for j in nouns if j == nouns[0] or "finding" in clause[i].roles]
    return nouns or adjectives[:1]


def _negated_state(clause: list[Phrase], i: int, p: Phrase) -> bool:
    """Whether a normal state is denied: "the heart is not normal"."""
    before = clause[i - 1] if i else None
    return (
        before is not None
        and p.start - before.end <= 1
        and ("negates_near" in before.roles or before.roles.get("negates_after") == "not")
    )


def _too_wide(head: Phrase) -> bool:
    """Whether an adjective says too little to deny anything: "pulmonary XXXX are normal" may be about the vessels."""
    return "adjective" in head.roles and head.roles.get("place") in _WIDE


def _only_the_rest(clause: list[Phrase], i: int) -> bool:
    """Whether a state is said of the remainder: "the lungs are otherwise clear" denies nothing named before."""
    excepted = any(p.roles.get("ends") in EXCEPTIONS for p in clause)
    return excepted or any("rest" in p.roles for p in clause[:i]) or "rest" in next_roles(clause, i)
