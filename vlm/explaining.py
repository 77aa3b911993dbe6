"""`vlm generate --explain`: for each finding of a study where the model looked, how far the gate was open, and which
neighbours in the graph moved it.

The measure is leave-one-out in the model's own forward pass (`vlm.models.attribution`), told in the finding's
calibrated log odds: `probability` = sigmoid(`logit`), and the probability without a thing is sigmoid(`logit` -
`change`). A positive change speaks for the finding. Changes of different things do not add up.

The explanation, plain JSON values::

    {"measure": "...",
     "findings": {label: {
        "logit", "probability",
        "image": {"image", "xyxy", "peak", "where", "share", "change"},
        "views": [{"image", "share", "change"}],
        "boxes": [indices into the report's boxes],
        "gate": float or null, "fusion": {"change"} or null,
        "neighbours": [{"concept", "name", "via", "relations", "weight", "change"}],
        "left_out": {"count", "largest"} or null}}}

`image` is the strongest place of the finding's attention: `xyxy` and `peak` in pixels of the displayed image, `where`
in words, `share` of its attention that lies there, `change` when it is hidden from the finding. `gate` lies in (-1, 1):
the share of the neighbours' message that is added to the finding's own evidence; null where the checkpoint fuses
without a gate. A neighbour moves a finding by an edge of the graph (`via` "edge": `relations` names them as read from
the finding, `weight` is the heaviest edge's) or by what its own query found in this image (`via` "evidence": `weight`
is the share of the message that is its). The strongest are listed, by size of change; `left_out` says how many more
there are and the largest change among them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from knowledge.ontology import Relation
from vlm.checkpoint import Checkpoint
from vlm.data.examples import VIEWS, Example
from vlm.models.attribution import Attribution, Attributor
from vlm.models.build import graph_arrays
from vlm.models.findings import Evidence, KnowledgeGate
from vlm.models.report_generator import ImageOutput
from vlm.seeing import Seen
from vlm.types import View

MEASURE = "change of the finding's calibrated log odds when this alone is left out; positive speaks for the finding"
SHOWN = 6
"""Neighbours listed for each finding, of either kind together."""
DIGITS = 4
BACKWARDS = {
    Relation.IS_A: "covers",
    Relation.PART_OF: "has the part",
    Relation.LOCATED_IN: "is the place of",
    Relation.SUGGESTS: "is suggested by",
}
"""Relations as read from their target; the others read alike from both ends."""


class Explainer:
    """Explains what a checkpoint says of studies; made once, for the graph is encoded without each edge in turn.

    Args:
        checkpoint: loaded, in evaluation mode.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.attributor = Attributor(checkpoint.model)
        self.names = list(graph_arrays(checkpoint.graph)[0])
        self.edges = _edges(checkpoint)
        calibration = checkpoint.calibration.findings
        self.slopes = [calibration.get(name, (1.0, 0.0)) for name in checkpoint.labels]

    def explain(self, image: ImageOutput, example: Example, seen: Seen) -> dict[str, Any] | None:
        """The explanation of one study (keys: the module's docstring); None where the model has no evidence of its own.

        Args:
            image: of a batch of this study alone. example, seen: of the study.
        """
        evidence = image.evidence
        if evidence is None:
            return None
        inside = _inside(example, image.map_size)
        found = self.attributor.explain(evidence, image.map_size, torch.from_numpy(inside).to(evidence.mask.device))
        findings = {}
        for index, label in enumerate(self.checkpoint.labels):
            if label in seen.evidence.probabilities:
                findings[label] = self._finding(index, label, found, evidence, example, seen, image.map_size)
        return {"measure": MEASURE, "findings": findings}

    def _finding(
        self,
        index: int,
        label: str,
        found: Attribution,
        evidence: Evidence,
        example: Example,
        seen: Seen,
        size: tuple[int, int],
    ) -> dict[str, Any]:
        slope, offset = self.slopes[index]
        logit = slope * float(evidence.logits[0, index]) + offset
        fusion = self.checkpoint.model.gate
        gate = _rounded(evidence.gate[0, index]) if isinstance(fusion, KnowledgeGate) else None
        neighbours = self._edges_of(index, found, slope) + self._heard(index, found, evidence, slope)
        neighbours.sort(key=lambda n: -abs(n["change"]))
        rest = neighbours[SHOWN:]
        maps = evidence.attention[0, index].view(-1, *size)[: len(example.chosen)]
        several = len(example.chosen) > 1
        return {
            "logit": _rounded(logit),
            "probability": _rounded(1 / (1 + math.exp(-logit))),
            "image": _place(index, found, example, maps.cpu().numpy(), slope),
            "views": [
                {
                    "image": image,
                    "share": _rounded(maps[view].sum()),
                    "change": _rounded(slope * found.views[index, view]),
                }
                for view, image in enumerate(example.chosen)
            ]
            if several
            else [],
            "boxes": list(seen.evidence.boxes_of(label)),
            "gate": gate,
            "fusion": None if fusion is None else {"change": _rounded(slope * found.fusion[index])},
            "neighbours": neighbours[:SHOWN],
            "left_out": {"count": len(rest), "largest": abs(rest[0]["change"])} if rest else None,
        }

    def _edges_of(self, index: int, found: Attribution, slope: float) -> list[dict[str, Any]]:
        """Neighbours by an edge of the graph."""
        graph, out = self.checkpoint.graph, []
        for (finding, node, other), change in zip(self.attributor.pairs, found.edges.tolist(), strict=True):
            if finding != index:
                continue
            name = self.names[other]
            relations, weight = self.edges[self.names[node], name]
            out.append({
                "concept": name, "name": graph.concepts[name].name, "via": "edge", "relations": relations,
                "weight": _rounded(weight), "change": _rounded(slope * change),
            })  # fmt: skip
        return out

    def _heard(self, index: int, found: Attribution, evidence: Evidence, slope: float) -> list[dict[str, Any]]:
        """Neighbours by what they found in the image."""
        if self.checkpoint.model.gate is None:
            return []
        labels, graph = self.checkpoint.labels, self.checkpoint.graph
        weights = evidence.neighbours.expand(1, -1, -1)[0, index].tolist()
        return [
            {
                "concept": name, "name": graph.concepts[name].name, "via": "evidence", "relations": [],
                "weight": _rounded(weights[other]), "change": _rounded(slope * found.heard[index, other]),
            }
            for other, name in enumerate(labels) if other != index
        ]  # fmt: skip


def _edges(checkpoint: Checkpoint) -> dict[tuple[str, str], tuple[list[str], float]]:
    """(concept, neighbour) -> the relations between them as read from the concept, and the heaviest weight."""
    out: dict[tuple[str, str], tuple[list[str], float]] = {}
    for edge in checkpoint.graph.edges:
        forth = edge.relation.value.replace("_", " ")
        back = BACKWARDS.get(edge.relation, forth)
        for key, said in (((edge.source, edge.target), forth), ((edge.target, edge.source), back)):
            names, weight = out.get(key, ([], 0.0))
            out[key] = (names if said in names else [*names, said], max(weight, edge.weight))
    return out


def _inside(example: Example, size: tuple[int, int]) -> np.ndarray:
    """(V, h, w) True for cells whose centre lies in the picture, not in the empty border around it."""
    h, w = size
    x, y = (np.arange(w) + 0.5) * example.size / w, (np.arange(h) + 0.5) * example.size / h
    out = np.zeros((len(example.placements), h, w), bool)
    for view, placement in enumerate(example.placements):
        x1, y1, x2, y2 = placement.to_model(np.array([[0, 0, placement.width, placement.height]]))[0]
        out[view] = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
        if not out[view].any():  # a strip narrower than a cell
            out[view] = True
    return out


def _place(index: int, found: Attribution, example: Example, maps: np.ndarray, slope: float) -> dict[str, Any]:
    """The strongest place of a finding's attention, in pixels of the image as displayed."""
    view, top, left, bottom, right = found.place[index].tolist()
    h, w = maps.shape[1:]
    cell_y, cell_x = example.size / h, example.size / w
    placement = example.placements[view]
    box = np.array([[left * cell_x, top * cell_y, (right + 1) * cell_x, (bottom + 1) * cell_y]])
    near = maps[view, top : bottom + 1, left : right + 1]
    row, column = np.unravel_index(near.argmax(), near.shape)
    x, y = (left + column + 0.5) * cell_x, (top + row + 0.5) * cell_y
    peak = placement.to_image(np.array([[x, y, x, y]]))[0, :2]
    return {
        "image": example.chosen[view],
        "xyxy": [round(float(v), 1) for v in placement.to_image(box)[0]],
        "peak": [round(float(v), 1) for v in peak],
        "where": where(float(peak[0]) / placement.width, float(peak[1]) / placement.height, VIEWS[example.view[view]]),
        "share": _rounded(found.share[index]),
        "change": _rounded(slope * found.hidden[index]),
    }


def where(x: float, y: float, view: View) -> str:
    """A place in words: thirds of the height and, where the view tells sides apart, the patient's side.

    Args:
        x, y: shares of width and height in [0, 1]. view: the patient's right is at the viewer's left in frontal, axial
            and coronal ones.
    """
    height = ("upper", "middle", "lower")[min(2, int(3 * y))]
    if view in (View.AXIAL, View.FRONTAL, View.CORONAL):
        side = ("patient's right", "midline", "patient's left")[0 if x < 0.4 else 2 if x > 0.6 else 1]
        height = ("anterior", "middle", "posterior")[min(2, int(3 * y))] if view is View.AXIAL else height
        return f"{height} third, {side}"
    return f"{height} third"


def _rounded(value: Any) -> float | None:
    number = float(value)
    return None if math.isnan(number) else round(number, DIGITS)
