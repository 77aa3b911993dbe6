"""Which finding a place, a side, an attribute or a measure belongs to."""

from __future__ import annotations

from knowledge.phrases import Phrase, Reading, is_general

_DISTANCES = ("above", "below", "from", "proximal", "distal", "to", "past", "beyond")
UNITS = {"mm": 1.0, "cm": 10.0, "millimeter": 1.0, "centimeter": 10.0}


def attach(clause: list[Phrase], found: list[Reading], sides: dict[str, str]) -> None:
    """Gives places, sides and attributes to the findings that they belong to; `sides`: place -> the side it lies on."""
    by_index: dict[int, list[Reading]] = {}
    for r in found:
        by_index.setdefault(r.index, []).append(r)
    for i, p in enumerate(clause):
        roles = p.roles
        side = next((s for s in ("left", "right", "both") if f"side_{s}" in roles), None)
        place = None if p.used else roles.get("place")
        attribute = roles.get("attribute")
        if side is None and place is None and attribute is None:
            continue
        owners = _owners(clause, i, by_index, attribute is not None and place is None)
        for r in owners:
            if attribute is not None and r is owners[-1] and attribute not in r.attributes and not r.nothing:
                r.attributes.append(attribute)
            if place is not None:
                if is_general(r) and r.place not in (None, place):
                    r.also.append(place)
                r.place = r.place or place
            if side is not None and (r is owners[-1] or _has_side(r, side, sides)):
                said = "bilateral" if side == "both" else side
                r.side = said if r.side in (None, said) else "bilateral"
    for r in found:
        if r.side is None and r.place is not None:
            r.side = sides.get(r.place)


def _has_side(r: Reading, side: str, sides: dict[str, str]) -> bool:
    """Whether the place of a finding may be on a side: the heart is not, and the left lung is not on both."""
    own = sides.get(r.place) if r.place is not None else side
    return own == side or (own is None and f"left_{r.place}" in sides)


def _owners(clause: list[Phrase], i: int, by_index: dict[int, list[Reading]], adjective: bool) -> list[Reading]:
    """The finding after phrase `i` in the same stretch, else the nearest one before it."""
    if i in by_index:
        return by_index[i]
    for j in range(i + 1, len(clause)):
        roles = clause[j].roles
        if j in by_index:
            return by_index[j]
        if (
            "verb" in roles
            or "comma" in roles
            or "ends" in roles
            or "negates_after" in roles
            or "hedges_after" in roles
        ):
            break
    for j in range(i - 1, -1, -1):
        if j in by_index:
            return by_index[j]
    if not adjective:  # "the left lung is free of consolidation": the place is the subject
        for j in range(i + 1, len(clause)):
            if j in by_index:
                return by_index[j]
    return []


def measures(clause: list[Phrase], words: list[str], found: list[Reading]) -> None:
    """The largest "12 mm" or "1.2 x 0.8 cm" of the clause, given to the nearest finding, in mm."""
    if not found:
        return
    low = min(p.start for p in clause)
    high = max(p.end for p in clause) + 6
    for i in range(max(0, low - 4), min(high, len(words) - 1)):
        unit = UNITS.get(words[i + 1])
        if unit is None or not words[i][0].isdigit():
            continue
        after = words[i + 2] if i + 2 < len(words) else ""
        if after in _DISTANCES:
            continue  # "4 cm above the carina" is where something is, not how large
        value, j = float(words[i]) * unit, i
        while j >= 2 and words[j - 1] in ("x", "by") and words[j - 2][0].isdigit():
            j -= 2
            value = max(value, float(words[j]) * unit)
        right = [r for r in found if r.start > i]
        leads = after == "of" or (j and words[j - 1] in ("with", "a", "an"))  # "with 8 mm of midline shift"
        near = min(right if leads and right else found, key=lambda r: min(abs(r.start - i), abs(i - r.end)))
        near.measure_mm = max(value, near.measure_mm or 0.0)
