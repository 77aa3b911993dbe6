"""Who is said of whom: from a sentence's phrases to mentions with certainty, place, attributes, measure and change.

The grammar is that of radiology prose, after NegEx and CheXpert's patterns, without a parser:

1. Phrases are cut into clauses at semicolons, and at a comma or "and" that is followed by a statement of its own.
2. A state joins the nearest part it can be said of ("the heart is enlarged" -> cardiomegaly), not across a finding.
3. A cue before a finding reaches right until a blocker ("but", "due to", "there is"); a cue after it reaches left.
4. Sides, places, attributes and measures go to the finding that follows in the same stretch, else to the one before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from knowledge.attachment import attach, measures
from knowledge.composites import composites
from knowledge.lexicon import Lexicon
from knowledge.nothing import mark_some, nothing_wrong, place_all, settled
from knowledge.ontology import Certainty
from knowledge.phrases import Phrase, Reading, cue_before, next_roles

PRESENT, ABSENT, UNCERTAIN = Certainty.PRESENT, Certainty.ABSENT, Certainty.UNCERTAIN
_CHANGES = ("new", "unchanged", "increased_change", "decreased_change", "removed", "past")
# a list of places ("the heart, mediastinum and hila are normal") has said nothing before its verb
_SAYS = frozenset(
    {"finding", "verb", "quality", "asserts", "negates_after", "negates_before", "hedges_after", "generic"}
)
_LONGEST = 300
"""Phrases of a clause; a longer one is no prose, and reading each finding against all of it would take for ever."""
_OPEN_LISTS = ("differential", "consideration", "includes")  # what follows is a list of possibilities to its end


def readings(words: list[str], phrases: list[Phrase], lexicon: Lexicon) -> list[Reading]:
    """Everything that one sentence says.

    Args:
        words: keys of its words, as given to `Lexicon.match`.
        phrases: what `Lexicon.match` found.
        lexicon: for the composites.

    Returns:
        Readings in the order of the text.
    """
    out: list[Reading] = []
    heading: str | None = None
    for clause in clauses(phrases):
        if clause[0].roles.get("break") != ":":
            heading = None
        found = composites(clause, lexicon)  # first: a phrase that a composite took is no finding of its own
        found += _findings(clause) + nothing_wrong(clause, lexicon)
        found.sort(key=lambda r: (r.start, r.end))
        changes = [(j, role) for j, p in enumerate(clause) for role in _CHANGES if role in p.roles]
        for r in found:
            if not r.fixed:
                _certainty(r, clause)
            _change(r, clause, changes)
        found += [Reading(*r.head, r.index) for r in found if r.head and r.certainty is ABSENT and r.inside]
        targets = [r for r in found if r.concept != "normal" or r.nothing]
        attach(clause, targets, lexicon.sides)
        measures(clause, words, [r for r in targets if not r.nothing])
        mark_some(phrases, clause, words, found)
        place_all(clause, found, heading, lexicon.sides)
        out += settled(found, lexicon.sides)
        heading = _heading(clause)
    return out


def _heading(clause: list[Phrase]) -> str | None:
    """The place that a clause consists of: "Left kidney:"."""
    if any(not _SAYS.isdisjoint(p.roles) for p in clause):
        return None
    return next((p.roles["place"] for p in clause if "place" in p.roles), None)


def clauses(phrases: list[Phrase]) -> list[list[Phrase]]:
    """Cuts the phrases of a sentence into clauses that cues do not reach across."""
    out: list[list[Phrase]] = []
    current: list[Phrase] = []
    for i, p in enumerate(phrases):
        joins = ("comma" in p.roles or "and" in p.roles) and any(not _SAYS.isdisjoint(q.roles) for q in current)
        if "break" in p.roles or len(current) >= _LONGEST or (joins and _new_statement(phrases, i)):
            out.append(current)
            current = []
        current.append(p)
    out.append(current)
    return [c for c in out if c]


def _new_statement(phrases: list[Phrase], i: int) -> bool:
    """Whether what follows the comma or "and" at `i` is a statement of its own."""
    j = i + 1
    if "comma" in phrases[i].roles and j < len(phrases) and "and" in phrases[j].roles:
        return False  # ", and": decided at the "and"
    first = True
    subject = False
    while j < len(phrases):
        roles = phrases[j].roles
        if "comma" in roles or "and" in roles or "or" in roles or "break" in roles:
            return False
        if first and "unchanged" in roles and "finding" in next_roles(phrases, j):
            return True
        if roles.get("asserts") in ("there is", "there are"):
            return True
        if first and "comma" in phrases[i].roles and ("hedges_after" in roles):
            return True
        if first and "negates_after" in roles and "negates_before" not in roles:
            return True
        predicate = "verb" in roles or "negates_near" in roles or ("quality" in roles and "finding" not in roles)
        if predicate and subject:
            return "exists" not in next_roles(phrases, j)
        if "finding" in roles or "place" in roles or "head" in roles:
            subject = True
        first = False
        j += 1
    return False


def _findings(clause: list[Phrase]) -> list[Reading]:
    return [
        Reading(p.roles["finding"], p.start, p.end, i)
        for i, p in enumerate(clause)
        if "finding" in p.roles and not p.used
    ]


def _certainty(r: Reading, clause: list[Phrase]) -> None:
    """Sets whether the finding is present, absent or uncertain."""
    first = bisect_left(clause, r.start, key=lambda p: p.start)
    last = bisect_right(clause, r.end, key=lambda p: p.end) - 1
    states = any("verb" in p.roles for p in clause[first : last + 1])
    negation = cue_before(clause, first, "negates_after", states)
    if negation is None and first and "negates_next" in clause[first - 1].roles:
        negation = first - 1 if r.start - clause[first - 1].end <= 1 else None
    inside = any("negates_near" in p.roles or "negates_after" in p.roles for p in clause[first : last + 1])
    r.inside = inside and negation is None
    if negation is not None or inside or _negated_after(clause, last):
        r.certainty = ABSENT
    elif _hedged_before(clause, first) or _hedged_after(clause, last):
        r.certainty = UNCERTAIN


def _negated_after(clause: list[Phrase], i: int) -> bool:
    for j in range(i + 1, len(clause)):
        roles = clause[j].roles
        if "negates_before" in roles:
            return True
        if "ends" in roles or "negates_after" in roles or "negates_near" in roles:
            return False
        if "verb" in roles and "negates_before" not in next_roles(clause, j):
            return False
    return False


def _hedged_before(clause: list[Phrase], i: int) -> bool:
    cue = cue_before(clause, i, "hedges_after")
    if cue is None:
        return False
    between = clause[cue + 1 : i]
    open_list = str(clause[cue].roles.get("hedges_after", "")).startswith(_OPEN_LISTS)
    if open_list or not any("comma" in p.roles for p in between):
        return True
    return any("or" in p.roles or "versus" in str(p.roles.get("hedges_after", "")) for p in clause[cue + 1 :])


def _hedged_after(clause: list[Phrase], i: int) -> bool:
    for j in range(i + 1, len(clause)):
        roles = clause[j].roles
        if "hedges_before" in roles:
            return True
        if "hedges_after" in roles or "ends_hedge" in roles or "comma" in roles or "finding" in roles:
            return False
    return False


def _change(r: Reading, clause: list[Phrase], changes: list[tuple[int, str]]) -> None:
    """New, unchanged, increased, decreased, resolved or past, from the nearest such word of the clause."""
    best: tuple[int, str] | None = None
    for j, role in changes:
        distance = abs(j - r.index)
        if (best is None or distance < best[0]) and _change_reaches(r, clause, j, role):
            best = (distance, role)
    if best is not None:
        role = best[1].removesuffix("_change")
        r.change = "resolved" if role == "removed" else role
        if role == "removed" and r.certainty is PRESENT:
            r.certainty = ABSENT


def _change_reaches(r: Reading, clause: list[Phrase], j: int, role: str) -> bool:
    after = clause[j].start > r.start
    if role == "past" and after:
        return False
    between = clause[min(j, r.index) + 1 : max(j, r.index)]
    if any("ends" in q.roles and "verb" not in q.roles for q in between):
        return False
    if role == "removed" and r.certainty is ABSENT:
        return True  # "A, B and C have cleared"
    listed = any("comma" in q.roles for q in between) and any("finding" in q.roles for q in between)
    return not (after and listed)
