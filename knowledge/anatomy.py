"""Where places lie: their side, and what they are part of."""

from __future__ import annotations

from knowledge.graph import KnowledgeGraph

SAID_OF = {
    **dict.fromkeys(("rib", "sternum", "skull", "vertebral_column", "humerus"), "bone"),
    "pleural_cavity": "pleura",
}
"""Places, and of what more they are said to be a part: "bones are intact" speaks of ribs, which the graph has in the
chest wall."""


def side_of_place(place: str, graph: KnowledgeGraph) -> str | None:
    """The side on which a place lies: by its id, or by what it is part of ("middle_lobe" is right); None for both."""
    queue, seen = [place], {place}
    while queue:
        here = queue.pop(0)
        for side in ("left", "right"):
            if here.startswith(f"{side}_") and here.removeprefix(f"{side}_") in graph.concepts:
                return side
        for up in graph.parts.get(here, ()):
            if up not in seen:
                seen.add(up)
                queue.append(up)
    return None


def around_place(place: str, graph: KnowledgeGraph) -> set[str]:
    """A place and everything that it is part of or a kind of."""
    out, queue = {place}, [place]
    while queue:
        here = queue.pop()
        up = set(graph.parts.get(here, ())) | (set(graph.ancestors(here)) if here in graph.concepts else set())
        up |= {SAID_OF[here]} & graph.concepts.keys() if here in SAID_OF else set()
        queue += up - out
        out |= up
    return out
