"""Graph encoder, finding queries, the gate and the bridge on tiny tensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from vlm.checkpoint import SHIPPED
from vlm.models.bridge import Bridge
from vlm.models.findings import FUSIONS, ConceptAlignment, FindingHead, FindingQueries, KnowledgeGate
from vlm.models.graph import GraphEncoder


def encoder(edges: list[tuple[int, int, int, float]], nodes: int = 4) -> GraphEncoder:
    torch.manual_seed(0)
    return GraphEncoder(nodes, edges, relations=2, dim=16, layers=1, heads=2, dropout=0.0).eval()


def test_a_concept_hears_its_neighbours_in_both_directions_and_nobody_else() -> None:
    graph = encoder([(0, 1, 0, 1.0)])
    before = graph()[0]
    with torch.no_grad():
        graph.embedding[0] = torch.randn(16)
    after = graph()[0]
    changed = [not torch.allclose(before[i], after[i]) for i in range(4)]
    assert changed == [True, True, False, False]
    with torch.no_grad():
        graph.embedding[1] = torch.randn(16)
    assert not torch.allclose(graph()[0][0], after[0])


def test_attention_of_the_edges_into_a_concept_sums_to_one() -> None:
    graph = encoder([(0, 1, 0, 1.0), (2, 1, 1, 0.5), (3, 1, 0, 0.2)])
    _, attention = graph()
    total = torch.zeros(4).index_add(0, graph.target, attention)
    torch.testing.assert_close(total, torch.ones(4))


def test_a_heavier_edge_is_heard_more_and_a_relation_matters() -> None:
    light, heavy = encoder([(0, 1, 0, 0.1)]), encoder([(0, 1, 0, 1.0)])
    edge = (light.source == 0) & (light.target == 1)
    assert heavy()[1][edge] > light()[1][edge]
    other = encoder([(0, 1, 1, 1.0)])
    assert not torch.allclose(other()[0][1], heavy()[0][1])


def test_queries_look_only_at_tokens_that_exist() -> None:
    torch.manual_seed(0)
    queries = FindingQueries(3, 16, heads=2, layers=2, dropout=0.0).eval()
    tokens, mask = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 3:] = False
    nodes = torch.randn(3, 16)
    evidence, attention = queries(nodes, tokens, mask)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3))
    assert attention[1, :, 3:].abs().max() == 0
    changed = tokens.clone()
    changed[1, 3:] = 99.0
    torch.testing.assert_close(queries(nodes, changed, mask)[0], evidence)


def test_step_zero_is_the_model_without_knowledge() -> None:
    torch.manual_seed(0)
    gate = KnowledgeGate(5, 16)
    evidence, nodes = torch.randn(2, 5, 16), torch.randn(5, 16)
    tokens, value, neighbours = gate(evidence, nodes)
    assert torch.equal(tokens, evidence)
    assert value.abs().max() == 0
    torch.testing.assert_close(neighbours.sum(-1), torch.ones(5))
    assert neighbours.diagonal().max() == 0


def test_the_gate_learns_from_the_first_step() -> None:
    torch.manual_seed(0)
    gate = KnowledgeGate(5, 16)
    tokens, _, _ = gate(torch.randn(2, 5, 16), torch.randn(5, 16))
    tokens.square().sum().backward()
    assert gate.bias.grad is not None
    assert gate.bias.grad.abs().min() > 0
    assert gate.weight.weight.grad is not None
    assert gate.weight.weight.grad.abs().sum() > 0


def test_a_missing_view_does_not_change_a_logit() -> None:
    torch.manual_seed(0)
    head = FindingHead(4, 16, 0.0).eval()
    tokens, images = torch.randn(1, 4, 16), torch.randn(1, 6, 16)
    alone = head(tokens, images, torch.ones(1, 6, dtype=torch.bool))
    padded = head(
        tokens, torch.cat([images, torch.full((1, 3, 16), 50.0)], 1), torch.tensor([[True] * 6 + [False] * 3])
    )
    torch.testing.assert_close(alone, padded)


def test_an_evidence_token_tells_present_from_absent_in_the_words_of_the_concept() -> None:
    torch.manual_seed(0)
    concepts = torch.randn(3, 24)
    bridge = Bridge(16, 24, scales=2, grid=2, views=3, concepts=concepts, embedding_norm=1.0).eval()
    tokens = torch.zeros(1, 3, 16)
    present = bridge.evidence_tokens(tokens, torch.full((1, 3), 6.0))
    absent = bridge.evidence_tokens(tokens, torch.full((1, 3), -6.0))
    centred = concepts - concepts.mean(-1, keepdim=True)
    similarity = torch.nn.functional.cosine_similarity(present[0] - absent[0], centred, dim=-1)
    assert similarity.min() > 0.9


def test_bridge_tokens_have_the_size_of_word_embeddings() -> None:
    torch.manual_seed(0)
    bridge = Bridge(16, 24, scales=2, grid=2, views=3, concepts=torch.randn(3, 24), embedding_norm=0.7)
    maps = [torch.randn(2, 16, 8, 8), torch.randn(2, 16, 4, 4)]
    tokens = bridge.visual_tokens(bridge.pool(maps), torch.tensor([0, 2]))
    assert tokens.shape == (2, 4, 24)
    assert tokens.norm(dim=-1).mean().item() == pytest.approx(0.7, rel=0.05)


def test_alignment_prefers_the_matching_text() -> None:
    texts = torch.eye(6)
    alignment = ConceptAlignment(6, texts)
    with torch.no_grad():
        alignment.project.weight.copy_(torch.eye(6))
        alignment.project.bias.zero_()
    logits = alignment(torch.eye(6)[None, :3])
    assert logits.shape == (1, 3, 6)
    assert logits[0].argmax(-1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_every_fusion_starts_from_the_evidence_and_learns(name: str) -> None:
    torch.manual_seed(0)
    fusion = FUSIONS[name](5, 16)
    evidence, nodes = torch.randn(2, 5, 16), torch.randn(5, 16)
    tokens, gate, neighbours = fusion(evidence, nodes)
    torch.testing.assert_close(tokens, evidence)
    assert gate.shape == (2, 5)
    torch.testing.assert_close(neighbours.sum(-1), torch.ones(neighbours.shape[:-1]))
    optimizer = torch.optim.SGD(fusion.parameters(), lr=0.1)
    wanted = evidence.flip(1)  # what another finding has seen: only fusion can bring it
    losses = []
    for _ in range(30):
        loss = (fusion(evidence, nodes)[0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.98 * losses[0]


def test_whom_a_finding_hears_depends_on_the_study_in_attention_alone() -> None:
    torch.manual_seed(0)
    evidence, nodes = torch.randn(2, 5, 16), torch.randn(5, 16)
    assert FUSIONS["gate"](5, 16)(evidence, nodes)[2].shape == (5, 5)
    assert FUSIONS["concatenate"](5, 16)(evidence, nodes)[2].shape == (5, 5)
    neighbours = FUSIONS["attention"](5, 16)(evidence, nodes)[2]
    assert neighbours.shape == (2, 5, 5)
    assert not torch.allclose(neighbours[0], neighbours[1])


def test_parameters_of_the_fusions_differ_as_they_should() -> None:
    dim, labels = 16, 5
    shared = 4 * (dim * dim + dim) + 2 * dim  # query, key, message, node and the message's norm
    own = {"concatenate": 2 * dim * dim + dim, "attention": 2 * dim + dim * dim + dim, "gate": labels + 2 * dim}
    counts = {name: sum(p.numel() for p in fusion(labels, dim).parameters()) for name, fusion in FUSIONS.items()}
    assert counts == {name: shared + value for name, value in own.items()}


def test_the_shipped_gate_is_the_formula() -> None:
    state = load_file(SHIPPED / "model.safetensors")
    own = {n.removeprefix("gate."): t.float() for n, t in state.items() if n.startswith("gate.")}
    labels, dim = own["bias"].shape[0], own["node.bias"].shape[0]
    gate = FUSIONS["gate"](labels, dim)
    gate.load_state_dict(own)
    torch.manual_seed(0)
    evidence, nodes = torch.randn(2, labels, dim), torch.randn(labels, dim)
    query, key = (nodes @ own[f"{n}.weight"].T + own[f"{n}.bias"] for n in ("query", "key"))
    likeness = (query @ key.T / dim**0.5).fill_diagonal_(float("-inf"))
    normed = torch.nn.functional.layer_norm(evidence, (dim,), own["message.0.weight"], own["message.0.bias"])
    told = likeness.softmax(-1) @ (normed @ own["message.1.weight"].T + own["message.1.bias"])
    told = told + nodes @ own["node.weight"].T + own["node.bias"]
    value = torch.tanh(own["bias"] + (torch.cat([evidence, told], -1) @ own["weight.weight"].T)[..., 0])
    with torch.no_grad():
        tokens, found, _ = gate(evidence, nodes)
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(tokens, evidence + value[..., None] * told, rtol=1e-4, atol=1e-4)
    assert value.abs().max() > 0.05  # it has learnt something
