"""A picture of a concept and its surroundings, that a person can read.

The concept stands in the middle; its neighbours stand on ellipses around it, grouped by relation, each in a box with
its preferred term. An arrow reads from source to target; its colour is the relation, its width the weight.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Kind, Relation
from knowledge.queries import around

COLOURS = {
    Relation.IS_A: "#1f4e79",
    Relation.PART_OF: "#7a7a7a",
    Relation.LOCATED_IN: "#2e7d32",
    Relation.SUGGESTS: "#c25e00",
    Relation.ASSOCIATED_WITH: "#7b3fa0",
    Relation.EXCLUDES: "#b71c1c",
}
FILLS = {Kind.FINDING: "#fdf3e7", Kind.ANATOMY: "#e9f5ea", Kind.ATTRIBUTE: "#eef1f6"}
MOST = 28


def draw(graph: KnowledgeGraph, id: str, out: Path, limit: int = MOST) -> int:
    """Draws a concept with its direct neighbours.

    Args:
        graph: where the concept is.
        id: the concept in the middle.
        out: `.svg`, `.png` or `.pdf`.
        limit: neighbours at most, the strongest edges first; 1 to 60.

    Returns:
        How many neighbours were left out.

    Raises:
        KnowledgeError: an unknown concept or file type.
    """
    if id not in graph.concepts:
        raise KnowledgeError(f"no concept {id!r} in the graph")
    if out.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise KnowledgeError(f"{out}: draw to .svg, .png or .pdf")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    part = around(graph, id, 1, max(2, min(limit, 60) + 1))
    everything = len(around(graph, id, 1, len(graph.concepts)).concepts)
    places = _places(part, id)
    figure = Figure(figsize=(14, 9))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.01, 0.05, 0.98, 0.9))
    boxes: dict[str, Any] = {}
    for node, (x, y) in places.items():
        c = part.concepts[node]
        middle = node == id
        box = {"boxstyle": "round,pad=0.35", "fc": FILLS[c.kind], "ec": "#222222" if middle else "#888888"}
        text = "\n".join(textwrap.wrap(c.name, 20, break_long_words=False))
        boxes[node] = axes.text(x, y, text, ha="center", va="center", fontsize=14 if middle else 11, bbox=box, zorder=3,
                  fontweight="bold" if middle else "normal")  # fmt: skip
    axes.set_xlim(-1.18, 1.18)
    axes.set_ylim(-1.14, 1.14)
    axes.axis("off")
    renderer = canvas.get_renderer()
    inverse = axes.transData.inverted()
    halves = {}
    for node, text in boxes.items():
        text.update_bbox_position_size(renderer)
        extent = inverse.transform_bbox(text.get_bbox_patch().get_window_extent(renderer))
        halves[node] = (extent.width / 2, extent.height / 2)
    _arrows(axes, part, places, halves, id)
    _legend(axes, part)
    left_out = everything - len(part.concepts)
    title = f"{graph.concepts[id].name}, graph {graph.version} ({graph.hash[:8]})"
    figure.suptitle(title + (f"; {left_out} weaker neighbours not shown" if left_out else ""), fontsize=13)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.stem}.tmp{out.suffix}")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "radscribe"}):
        figure.savefig(temporary, dpi=110)
    temporary.replace(out)
    return left_out


def _places(part: KnowledgeGraph, id: str) -> dict[str, tuple[float, float]]:
    """Where each concept stands: the middle one at (0, 0), the others on ellipses, same relations side by side."""
    order = {relation: i for i, relation in enumerate(Relation)}
    key: dict[str, tuple[int, bool, str]] = {}
    for e in part.edges:
        if id in (e.source, e.target) and e.source != e.target:
            other, outward = (e.target, True) if e.source == id else (e.source, False)
            key[other] = min(key.get(other, (9, True, "")), (order[e.relation], outward, part.concepts[other].name))
    ring = sorted(key, key=key.__getitem__)
    places = {id: (0.0, 0.0)}
    for i, node in enumerate(ring):
        angle = math.pi / 2 - 2 * math.pi * i / max(1, len(ring))
        reach = 1.0 if len(ring) <= 12 or i % 2 == 0 else 0.66
        places[node] = (1.02 * reach * math.cos(angle), 0.98 * reach * math.sin(angle))
    return places


def _arrows(
    axes: Any,
    part: KnowledgeGraph,
    places: dict[str, tuple[float, float]],
    halves: dict[str, tuple[float, float]],
    id: str,
) -> None:
    from matplotlib.patches import FancyArrowPatch

    for e in part.edges:
        if e.source not in places or e.target not in places or e.source == e.target:
            continue
        own = id in (e.source, e.target)
        if e.relation is Relation.EXCLUDES and (e.source > e.target):
            continue  # drawn once, with a head at both ends
        arrow = FancyArrowPatch(
            _border(places[e.source], halves[e.source], places[e.target]),
            _border(places[e.target], halves[e.target], places[e.source]),
            shrinkA=0, shrinkB=0, mutation_scale=13,
            arrowstyle="<|-|>" if e.relation is Relation.EXCLUDES else "-|>", color=COLOURS[e.relation],
            linewidth=(0.8 + 1.8 * e.weight) if own else 0.7, alpha=0.95 if own else 0.25,
            connectionstyle="arc3,rad=0.0" if own else "arc3,rad=0.15", zorder=2 if own else 1,
        )  # fmt: skip
        axes.add_patch(arrow)


def _border(centre: tuple[float, float], half: tuple[float, float], toward: tuple[float, float]) -> tuple[float, float]:
    """Where the line from a box's centre to another point leaves the box, with a little room."""
    dx, dy = toward[0] - centre[0], toward[1] - centre[1]
    scale = min(half[0] / abs(dx) if dx else math.inf, half[1] / abs(dy) if dy else math.inf)
    scale = min(1.0, scale * 1.06)
    return centre[0] + dx * scale, centre[1] + dy * scale


def _legend(axes: Any, part: KnowledgeGraph) -> None:
    from matplotlib.lines import Line2D

    used = [r for r in Relation if any(e.relation is r for e in part.edges)]
    handles = [Line2D([], [], color=COLOURS[r], linewidth=2.5, label=r.value.replace("_", " ")) for r in used]
    axes.legend(handles=handles, loc="lower center", ncol=6, frameon=False, fontsize=11,
                bbox_to_anchor=(0.5, -0.045))  # fmt: skip
