"""Who is said of whom: from a sentence's phrases to mentions with certainty, place, attributes, measure and change.

The grammar is that of radiology prose, after NegEx and CheXpert's patterns, without a parser:

1. Phrases are cut into clauses at semicolons, and at a comma or "and" that is followed by a statement of its own.
2. A state joins the nearest part it can be said of ("the heart is enlarged" -> cardiomegaly), not across a finding.
3. A cue before a finding reaches right until a blocker ("but", "due to", "there is"); a cue after it reaches left.
4. Sides, places, attributes and measures go to the finding that follows in the same stretch, else to the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from knowledge.lexicon import Composite, Lexicon, Payload
from knowledge.ontology import Certainty

PRESENT, ABSENT, UNCERTAIN = Certainty.PRESENT, Certainty.ABSENT, Certainty.UNCERTAIN
UNITS = {"mm": 1.0, "cm": 10.0, "millimeter": 1.0, "centimeter": 10.0}
_STOPS_NOUN_PHRASE = frozenset({"verb", "ends", "negates_near", "asserts", "hedges_after", "negates_after"})
_CROSS_VERBS = ("tip",)  # "the tip is in the superior vena cava" says the same as "tip in the superior vena cava"
REACH = 12  # words between a state and what it is said of
_CHANGES = ("new", "unchanged", "increased_change", "decreased_change", "removed", "past")
_OPEN_LISTS = ("differential", "consideration", "includes")  # what follows is a list of possibilities to its end


@dataclass(slots=True)
class Phrase:
    """A matched phrase: words [start, end) of the sentence and the parts it can play."""

    start: int
    end: int
    roles: Payload
    used: bool = False


@dataclass(slots=True)
class Reading:
    """A mention before its offsets are known: words [start, end), phrase `index` of its clause.

    `fixed`: the certainty is not for cues to change. `head`: (concept, start, end) of the finding that a
    composite is about; where the state is denied (`inside`: "a nodule that is not calcified"), the head stays said.
    """

    concept: str
    start: int
    end: int
    index: int
    certainty: Certainty = PRESENT
    fixed: bool = False
    place: str | None = None
    side: str | None = None
    attributes: list[str] = field(default_factory=list)
    measure_mm: float | None = None
    change: str | None = None
    head: tuple[str, int, int] | None = None
    inside: bool = False


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
    for clause in clauses(phrases):
        found = _composites(clause, lexicon)  # first: a phrase that a composite took is no finding of its own
        found += _findings(clause) + _nothing_wrong(clause, lexicon)
        found.sort(key=lambda r: (r.start, r.end))
        for r in found:
            if not r.fixed:
                _certainty(r, clause)
            _change(r, clause)
        found += [Reading(*r.head, r.index) for r in found if r.head and r.certainty is ABSENT and r.inside]
        targets = [r for r in found if r.concept != "normal"]
        _attach(clause, targets)
        _measures(clause, words, targets)
        out += found
    return out


def clauses(phrases: list[Phrase]) -> list[list[Phrase]]:
    """Cuts the phrases of a sentence into clauses that cues do not reach across."""
    out: list[list[Phrase]] = []
    current: list[Phrase] = []
    for i, p in enumerate(phrases):
        if "break" in p.roles or (("comma" in p.roles or "and" in p.roles) and _new_statement(phrases, i)):
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
        if first and "unchanged" in roles and "finding" in _next_roles(phrases, j):
            return True
        if roles.get("asserts") in ("there is", "there are"):
            return True
        if first and "comma" in phrases[i].roles and ("hedges_after" in roles):
            return True
        if first and "negates_after" in roles and "negates_before" not in roles:
            return True
        predicate = "verb" in roles or "negates_near" in roles or ("quality" in roles and "finding" not in roles)
        if predicate and subject:
            return "exists" not in _next_roles(phrases, j)
        if "finding" in roles or "place" in roles or "head" in roles:
            subject = True
        first = False
        j += 1
    return False


def _next_roles(phrases: list[Phrase], j: int) -> Payload:
    return phrases[j + 1].roles if j + 1 < len(phrases) else {}


def _findings(clause: list[Phrase]) -> list[Reading]:
    return [
        Reading(p.roles["finding"], p.start, p.end, i)
        for i, p in enumerate(clause)
        if "finding" in p.roles and not p.used
    ]


def _composites(clause: list[Phrase], lexicon: Lexicon) -> list[Reading]:
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
                if fixed and (_negated_state(clause, i, p) or "adjective" in head.roles or _only_the_rest(clause, i)):
                    continue
                r = Reading(composite.concept, min(p.start, head.start), max(p.end, head.end), i, composite.certainty)
                r.fixed = fixed
                if "finding" in head.roles:
                    r.head = (head.roles["finding"], head.start, head.end)
                r.place = head.roles.get("place")
                r.side = _side_in(r.place) if r.place else None
                p.used = p.used or not fixed
                head.used = head.used or "finding" in head.roles or r.place is not None
                out.append(r)
    return out


def _meanings(head: Phrase, quality: str, table: dict[tuple[str, str], tuple[Composite, ...]]) -> tuple[Composite, ...]:
    """What a state says of a phrase, by any of the parts that the phrase plays."""
    values = (head.roles.get(role) for role in ("place", "head", "finding"))
    return tuple(dict.fromkeys(c for v in values if v is not None for c in table.get((v, quality), ())))


def _heads(
    clause: list[Phrase], i: int, quality: str, table: dict[tuple[str, str], tuple[Composite, ...]]
) -> list[int]:
    """Which phrases of the clause the state at `i` is said of: one, or for a normal state all that it can cover."""
    left = _heads_left(clause, i, quality, table)
    right = _heads_right(clause, i, quality, table)
    if left and right:
        verb_between = any("verb" in clause[k].roles for k in range(left[0] + 1, i))
        nearer = clause[i].start - clause[left[0]].end < clause[right[0]].start - clause[i].end
        return left if verb_between or nearer else right
    return left or right


def _heads_left(
    clause: list[Phrase], i: int, quality: str, table: dict[tuple[str, str], tuple[Composite, ...]]
) -> list[int]:
    found: list[int] = []
    for j in range(i - 1, -1, -1):
        other = clause[j]
        if clause[i].start - other.end > REACH or ("ends" in other.roles and "verb" not in other.roles):
            break
        meanings = _meanings(other, quality, table)
        if meanings and not ("adjective" in other.roles and clause[i].start - other.end > 2):
            found.append(j)
            if any(m.certainty is not ABSENT for m in meanings):
                break
        elif "finding" in other.roles or ("quality" in other.roles and found):
            break
    return found


def _heads_right(
    clause: list[Phrase], i: int, quality: str, table: dict[tuple[str, str], tuple[Composite, ...]]
) -> list[int]:
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


def _only_the_rest(clause: list[Phrase], i: int) -> bool:
    """Whether a state is said of the remainder: "the lungs are otherwise clear" denies nothing named before."""
    return any(p.roles.get("ends") == "otherwise" for p in clause[:i])


def _nothing_wrong(clause: list[Phrase], lexicon: Lexicon) -> list[Reading]:
    """A denied generic word: "no abnormality" says the study is normal, "no bony abnormality" that bones are."""
    out = []
    for i, p in enumerate(clause):
        if "generic" not in p.roles or "finding" in p.roles:
            continue
        cue = _cue_before(clause, i, "negates_after")
        if cue is None or any("finding" in q.roles for q in clause[cue:i]):
            continue
        parts = [q.roles["place"] for q in clause[cue:i] if "place" in q.roles]
        parts = [place for place in parts if (place, "normal") in lexicon.composites]
        concepts = [c.concept for place in parts for c in lexicon.composites[(place, "normal")]] or ["normal"]
        acute = [q.roles["attribute"] for q in clause[cue:i] if "attribute" in q.roles]
        for c in concepts:
            certainty = PRESENT if c == "normal" else ABSENT
            out.append(Reading(c, clause[cue].start, p.end, i, certainty, True, attributes=list(acute)))
    return out


def _cue_before(clause: list[Phrase], i: int, role: str, verb: bool = False) -> int | None:
    """The nearest cue to the left of phrase `i` that reaches it; `verb`: what starts at `i` is itself a statement."""
    blockers = "ends" if role != "hedges_after" else "ends_hedge"
    for j in range(i - 1, -1, -1):
        roles = clause[j].roles
        if "finding" in roles and verb:
            return None  # "no effusion, the lungs are hyperinflated": the finding before the verb took the cue
        verb = verb or ("verb" in roles and "exists" not in _next_roles(clause, j))
        if (role in roles or (role == "negates_after" and "negates_near" in roles)) and "unaffected" not in roles:
            return j
        if blockers in roles or roles.get("asserts") in ("there is", "there are"):
            return None
    return None


def _certainty(r: Reading, clause: list[Phrase]) -> None:
    """Sets whether the finding is present, absent or uncertain."""
    i = r.index
    first = next((k for k, p in enumerate(clause) if p.start >= r.start), i)
    last = max(k for k, p in enumerate(clause) if p.end <= r.end)
    states = any("verb" in p.roles for p in clause[first : last + 1])
    negation = _cue_before(clause, first, "negates_after", states)
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
        if "verb" in roles and "negates_before" not in _next_roles(clause, j):
            return False
    return False


def _hedged_before(clause: list[Phrase], i: int) -> bool:
    cue = _cue_before(clause, i, "hedges_after")
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


def _change(r: Reading, clause: list[Phrase]) -> None:
    """New, unchanged, increased, decreased, resolved or past, from the nearest such word of the clause."""
    best: tuple[int, str] | None = None
    for j, p in enumerate(clause):
        for role in _CHANGES:
            if role not in p.roles:
                continue
            if role == "past" and p.start > r.start:
                continue
            between = clause[min(j, r.index) + 1 : max(j, r.index)]
            if any("ends" in q.roles and "verb" not in q.roles for q in between):
                continue
            if (
                p.start > r.start
                and any("comma" in q.roles for q in between)
                and any("finding" in q.roles for q in between)
            ):
                continue
            distance = abs(j - r.index)
            if best is None or distance < best[0]:
                best = (distance, role)
    if best is not None:
        role = best[1].removesuffix("_change")
        r.change = "resolved" if role == "removed" else role
        if role == "removed" and r.certainty is PRESENT:
            r.certainty = ABSENT


def _side_in(place: str) -> str | None:
    for side in ("left", "right"):
        if place.startswith(f"{side}_"):
            return side
    return None


def _attach(clause: list[Phrase], found: list[Reading]) -> None:
    """Gives places, sides and attributes to the findings that they belong to."""
    by_index = {r.index: r for r in found}
    for i, p in enumerate(clause):
        roles = p.roles
        side = next((s for s in ("left", "right", "both") if f"side_{s}" in roles), None)
        place = None if p.used else roles.get("place")
        attribute = roles.get("attribute")
        if side is None and place is None and attribute is None:
            continue
        for r in _owners(clause, i, by_index, attribute is not None and place is None):
            if attribute is not None and attribute not in r.attributes:
                r.attributes.append(attribute)
            if place is not None and (r.place is None or _side_in(r.place) is None):
                r.place = r.place or place
                r.side = r.side or _side_in(place)
            if side is not None:
                sides = "bilateral" if side == "both" else side
                r.side = sides if r.side in (None, sides) else "bilateral"


def _owners(clause: list[Phrase], i: int, by_index: dict[int, Reading], adjective: bool) -> list[Reading]:
    """The finding after phrase `i` in the same stretch, else the nearest one before it."""
    if i in by_index:
        return [by_index[i]]
    for j in range(i + 1, len(clause)):
        roles = clause[j].roles
        if j in by_index:
            return [by_index[j]]
        if "verb" in roles or "comma" in roles or "ends" in roles or "negates_after" in roles:
            break
    for j in range(i - 1, -1, -1):
        if j in by_index:
            return [by_index[j]]
        if "ends" in clause[j].roles and not adjective:
            continue
    return []


def _measures(clause: list[Phrase], words: list[str], found: list[Reading]) -> None:
    """The largest "12 mm" or "1.2 x 0.8 cm" of the clause, given to the nearest finding, in mm."""
    if not found:
        return
    low = min(p.start for p in clause)
    high = max(p.end for p in clause) + 6
    for i in range(max(0, low - 4), min(high, len(words) - 1)):
        unit = UNITS.get(words[i + 1])
        if unit is None or not words[i][0].isdigit():
            continue
        value, j = float(words[i]) * unit, i
        while j >= 2 and words[j - 1] in ("x", "by") and words[j - 2][0].isdigit():
            j -= 2
            value = max(value, float(words[j]) * unit)
        near = min(found, key=lambda r: min(abs(r.start - i), abs(i - r.end)))
        near.measure_mm = max(value, near.measure_mm or 0.0)
