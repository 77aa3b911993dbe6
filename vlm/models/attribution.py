"""What moved a finding: its logit, against the logit of the same model with one thing taken away.

Leave-one-out: change = logit - logit without it, in the model's own forward pass, so a positive change speaks for the
finding. Nothing is approximated and nothing is shared out: two neighbours that say the same can each have a change of
zero while both together matter, and changes do not add up to the logit. Attention alone is no such measure (Jain and
Wallace 2019, arXiv:1902.10186); where a finding looked most is therefore hidden from it and the change told as well.

What is taken away, one at a time:

- an edge of the graph between the finding's concept and a neighbour (every relation between the two, both directions,
  in every layer of the encoder): all nodes are encoded anew and every finding looks anew;
- what another finding told it in knowledge fusion: the neighbour's part of the message is left out, its other parts
  keep their weights; the gate sees the shorter message;
- all of that message;
- the strongest place: the 3 x 3 cells around the peak of its attention, hidden from its own query and from the pooled
  image, while the other findings keep what they saw;
- each view, from everything.

Shapes: F findings, P pairs of a finding and a neighbouring concept, T = V * h * w image tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.models.findings import Evidence
from vlm.models.graph import GraphEncoder
from vlm.models.report_generator import ReportGenerator

CHUNK = 16
MOST_NEIGHBOURS = 48
"""Neighbours of one concept that are tried, those of the heaviest edges."""


@dataclass(slots=True)
class Attribution:
    """Changes of one study's logits (the module's docstring).

    Args:
        edges: (P,) in the order of `Attributor.pairs`. heard: (F, F), row f by what each finding told it. fusion: (F,)
            by the whole message. hidden: (F,) by the strongest place; NaN where nothing else would be left.
        views: (F, V); NaN with a single view.
        place: (F, 5) view, and first row, first column, last row, last column of the strongest place.
        share: (F,) of the attention that lies there.
    """

    edges: Tensor
    heard: Tensor
    fusion: Tensor
    hidden: Tensor
    views: Tensor
    place: Tensor
    share: Tensor


class Attributor:
    """Explains studies of one model; what depends on the graph alone is computed once.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: ReportGenerator) -> None:
        self.model = model
        self.pairs = neighbour_pairs(model.graph, model.label_nodes)
        with torch.inference_mode():
            self.nodes = model.graph()[0][model.label_nodes]  # (F, D)
            varied = [
                model.graph(_between(model.graph, node, other))[0][model.label_nodes] for _, node, other in self.pairs
            ]
            self.varied = torch.stack(varied) if varied else self.nodes.new_zeros(0, *self.nodes.shape)  # (P, F, D)

    @torch.inference_mode()
    def explain(self, evidence: Evidence, size: tuple[int, int], inside: Tensor | None = None) -> Attribution:
        """Explains one study.

        Args:
            evidence: of a batch of one study. size: (h, w) of a view's map.
            inside: (V, h, w) False for cells that lie outside of the picture; None when all lie inside.
        """
        images, mask = evidence.images, evidence.mask
        views = images.shape[1] // (size[0] * size[1])
        logits = evidence.logits[0]
        found = [index for index, _, _ in self.pairs]
        without = [self._logits(part, images, mask) for part in self.varied.split(CHUNK)]
        edges = logits[found] - torch.cat(without)[range(len(found)), found] if found else logits.new_zeros(0)
        place, hidden = strongest_places(evidence.attention[0], (views, *size), inside)
        share = (evidence.attention[0] * hidden).sum(1)
        return Attribution(
            edges,
            self._heard(evidence),
            logits - self._head(self._unheard(evidence.visual), images, mask)[0],
            logits - self._hidden(evidence, hidden),
            logits[:, None] - self._without_views(images, mask, views),
            place,
            share,
        )

    def _logits(self, nodes: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Label nodes (n, F, D) in place of the graph's, images (1, T, D) -> (n, F)."""
        queries, fusion = self.model.queries, self.model.gate
        x = (nodes + queries.offset).flatten(0, 1)[None]  # (1, n * F, D)
        visual = queries.ask(x, images, mask)[0].view(nodes.shape)
        fused = visual if fusion is None else fusion(visual, nodes)[0]
        return self._head(fused, images, mask)

    def _head(self, tokens: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Tokens (n, F, D), images (1, T, D), mask (1 or n, T) -> logits (n, F)."""
        rows = len(tokens)
        return self.model.finding_head(  # type: ignore[no-any-return]
            tokens, images.expand(rows, -1, -1), mask.expand(rows, -1)
        ).float()

    def _unheard(self, visual: Tensor) -> Tensor:
        """Evidence (1, F, D) with an empty message."""
        fusion = self.model.gate
        return visual if fusion is None else fusion.add(visual, torch.zeros_like(visual))[0]

    def _heard(self, evidence: Evidence) -> Tensor:
        """(F, F): row f, what each finding told it."""
        fusion, visual = self.model.gate, evidence.visual
        labels = visual.shape[1]
        if fusion is None:
            return visual.new_zeros(labels, labels)
        message, weights = fusion.hear(fusion.asking(visual, self.nodes), visual, self.nodes)
        told = fusion.message(visual)[0]  # (F, D)
        part = weights.expand(1, -1, -1)[0].T[..., None] * told[:, None]  # (F teller, F hearer, D)
        tokens = fusion.add(visual.expand(labels, -1, -1), message - part)[0]
        return evidence.logits[0][:, None] - self._head(tokens, evidence.images, evidence.mask).T

    def _hidden(self, evidence: Evidence, hidden: Tensor) -> Tensor:
        """(F,): the logit of each finding that may not look at its strongest place."""
        queries, fusion = self.model.queries, self.model.gate
        images, mask, labels = evidence.images, evidence.mask, evidence.visual.shape[1]
        left = mask & ~hidden  # (F, T)
        blind = ~left.any(1)
        kept = hidden & ~blind[:, None]
        own = queries.ask((self.nodes + queries.offset)[None], images, mask, kept)[0][0]  # (F, D)
        visual = evidence.visual.repeat(labels, 1, 1)
        each = torch.arange(labels, device=visual.device)
        visual[each, each] = own
        tokens = visual if fusion is None else fusion(visual, self.nodes)[0]
        logits = self._head(tokens, images, mask & ~kept).diagonal()
        return logits.masked_fill(blind, float("nan"))

    def _without_views(self, images: Tensor, mask: Tensor, views: int) -> Tensor:
        """(F, V): the logits when one view is left out."""
        rows = []
        for view in range(views if views > 1 else 0):
            rest = mask.view(1, views, -1).clone()
            rest[:, view] = False
            rows.append(self._logits(self.nodes[None], images, rest.flatten(1))[0])
        return torch.stack(rows, 1) if rows else images.new_full((len(self.nodes), 1), float("nan"))


def neighbour_pairs(graph: GraphEncoder, label_nodes: Tensor) -> list[tuple[int, int, int]]:
    """(index of the finding, its node, the neighbour's node), neighbours by falling weight of their edges."""
    own = set(label_nodes.tolist())
    weight: dict[tuple[int, int], float] = {}
    arrays = (graph.source.tolist(), graph.target.tolist(), graph.log_weight.tolist())
    for source, target, log_weight in zip(*arrays, strict=True):
        if target in own and source != target:  # every edge is there in both directions
            weight[target, source] = max(weight.get((target, source), float("-inf")), log_weight)
    out = []
    for index, node in enumerate(label_nodes.tolist()):
        near = sorted((-w, other) for (target, other), w in weight.items() if target == node)
        out += [(index, node, other) for _, other in near[:MOST_NEIGHBOURS]]
    return out


def _between(graph: GraphEncoder, a: int, b: int) -> Tensor:
    """(E,) True for the edges between two nodes."""
    there = (graph.source == a) & (graph.target == b)
    return there | ((graph.source == b) & (graph.target == a))


def strongest_places(
    attention: Tensor, shape: tuple[int, int, int], inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The 3 x 3 cells around the peak of each finding's attention, within one view.

    Args:
        attention: (F, T). shape: (V, h, w). inside: as in `Attributor.explain`.

    Returns:
        (F, 5) as in `Attribution.place`, and (F, T) True for its cells.
    """
    views, h, w = shape
    usable = attention if inside is None else attention.masked_fill(~inside.flatten(), -1.0)
    peak = usable[:, : views * h * w].argmax(1)
    view, row, column = peak // (h * w), peak // w % h, peak % w
    low_row, low_column = (row - 1).clamp_min(0), (column - 1).clamp_min(0)
    high_row, high_column = (row + 1).clamp_max(h - 1), (column + 1).clamp_max(w - 1)
    grid = torch.arange(views * h * w, device=attention.device)
    rows, columns = grid // w % h, grid % w
    cells = (grid // (h * w) == view[:, None]) & (rows >= low_row[:, None]) & (rows <= high_row[:, None])
    cells &= (columns >= low_column[:, None]) & (columns <= high_column[:, None])
    return torch.stack([view, low_row, low_column, high_row, high_column], 1), cells
