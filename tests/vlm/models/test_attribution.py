"""What moved a finding, against the same model built or run without the thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from knowledge.graph import KnowledgeGraph
from vlm.checkpoint import Checkpoint, load_checkpoint
from vlm.models.attribution import Attributor, strongest_places
from vlm.models.build import graph_arrays
from vlm.models.findings import Evidence
from vlm.models.graph import GraphEncoder
from vlm.models.report_generator import ReportGenerator

SIZE = (3, 4)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint_folder: Path) -> Checkpoint:
    """Tiny, with a gate that is open."""
    loaded = load_checkpoint(tiny_checkpoint_folder)
    torch.manual_seed(1)
    gate = loaded.model.gate
    assert gate is not None
    with torch.no_grad():
        for name, parameter in gate.named_parameters():
            if name.startswith(("bias", "weight")):
                parameter.normal_(0.3, 0.3)
    return loaded


def look(model: ReportGenerator, tokens: Tensor, mask: Tensor) -> Evidence:
    """The model's own path from tokens to logits (`ReportGenerator.look`)."""
    nodes = model.graph()[0][model.label_nodes]
    visual, attention = model.queries(nodes, tokens, mask)
    assert model.gate is not None
    fused, gate, neighbours = model.gate(visual, nodes)
    logits = model.finding_head(fused, tokens, mask).float()
    return Evidence(fused, logits, attention, gate, visual, neighbours, tokens, mask)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(1, 2 * SIZE[0] * SIZE[1], 32)


@torch.inference_mode()
def test_an_edge_is_worth_what_a_model_without_it_says(checkpoint: Checkpoint, tokens: Tensor) -> None:
    model, graph = checkpoint.model, checkpoint.graph
    evidence = look(model, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    attributor = Attributor(model)
    found = attributor.explain(evidence, SIZE)
    names = list(graph_arrays(graph)[0])
    chosen = next(i for i, (_, node, other) in enumerate(attributor.pairs) if names[node] == "edema" != names[other])
    index, node, other = attributor.pairs[chosen]
    pair = {names[node], names[other]}
    rest = [e for e in graph.edges if {e.source, e.target} != pair]
    assert len(rest) < len(graph.edges)
    smaller = KnowledgeGraph(graph.concepts, rest, graph.views, check=False)
    nodes, edges = graph_arrays(smaller)
    before = model.graph
    relations = (before.layers[0].relation_key.shape[0] - 1) // 2  # type: ignore[union-attr, operator]
    anew = GraphEncoder(len(nodes), edges, relations, 32, len(before.layers), 2, 0.0).eval()
    anew.load_state_dict(before.state_dict())
    model.graph = anew
    try:
        without = look(model, tokens, evidence.mask).logits
    finally:
        model.graph = before
    wanted = evidence.logits[0, index] - without[0, index]
    assert wanted.abs() > 1e-4
    torch.testing.assert_close(found.edges[chosen], wanted, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_what_a_neighbour_told_is_left_out_and_the_gate_sees_that(checkpoint: Checkpoint, tokens: Tensor) -> None:
    model = checkpoint.model
    evidence = look(model, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    found = Attributor(model).explain(evidence, SIZE)
    gate, visual = model.gate, evidence.visual
    nodes = model.graph()[0][model.label_nodes]
    hearer, teller = 2, 5
    told = gate.message(visual)[0]
    weights = evidence.neighbours.clone()
    weights[hearer, teller] = 0.0
    message = weights @ told + gate.node(nodes)
    opened = torch.tanh(gate.bias + gate.weight(torch.cat([visual[0], message], 1))[:, 0])
    logits = model.finding_head(visual + opened[:, None] * message, tokens, evidence.mask)
    wanted = evidence.logits[0, hearer] - logits[0, hearer]
    assert wanted.abs() > 1e-5
    torch.testing.assert_close(found.heard[hearer, teller], wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.heard.diagonal(), torch.zeros(len(found.heard)), atol=1e-5, rtol=0)
    closed = model.finding_head(visual, tokens, evidence.mask)
    torch.testing.assert_close(found.fusion, evidence.logits[0] - closed[0], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_view_and_a_place_that_are_hidden(checkpoint: Checkpoint, tokens: Tensor) -> None:
    model = checkpoint.model
    evidence = look(model, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    found = Attributor(model).explain(evidence, SIZE)
    cells = SIZE[0] * SIZE[1]
    alone = look(model, tokens[:, :cells], evidence.mask[:, :cells])
    torch.testing.assert_close(found.views[:, 1], evidence.logits[0] - alone.logits[0], atol=1e-5, rtol=1e-4)
    # One finding looks again without its place; the others keep what they saw.
    index = 3
    _, hidden = strongest_places(evidence.attention[0], (2, *SIZE))
    kept = evidence.mask & ~hidden[index]
    own = look(model, tokens, kept).visual[0, index]
    visual = evidence.visual.clone()
    visual[0, index] = own
    fused = model.gate(visual, model.graph()[0][model.label_nodes])[0]
    logits = model.finding_head(fused, tokens, kept)
    torch.testing.assert_close(found.hidden[index], evidence.logits[0, index] - logits[0, index], atol=1e-5, rtol=1e-4)


def test_the_strongest_place_stays_in_its_view_and_in_the_picture() -> None:
    attention = torch.zeros(2, 24)
    attention[0, 12] = 0.6  # the second view's first cell
    attention[0, 5] = 0.3
    attention[1, 23] = 1.0  # its last
    place, cells = strongest_places(attention, (2, 3, 4))
    assert place.tolist() == [[1, 0, 0, 1, 1], [1, 1, 2, 2, 3]]
    assert cells[0].nonzero().flatten().tolist() == [12, 13, 16, 17]
    inside = torch.ones(2, 3, 4, dtype=torch.bool)
    inside[1] = False
    assert strongest_places(attention, (2, 3, 4), inside)[0][0].tolist() == [0, 0, 0, 2, 2]
