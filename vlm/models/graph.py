"""Graph encoder: relation-aware attention over the knowledge graph.

Every concept attends to the concepts that point at it; the key and the value of a neighbour are shifted by the
relation through which it is seen, and the edge's weight enters as log(weight) before the softmax (relational graph
attention: Busbridge et al. 2019, arXiv:1904.05811, with the relation-shifted keys of Shaw et al. 2018). Each edge is
also walked backwards, as a relation of its own, and each concept sees itself.

Shapes: N concepts, E edges (both directions and self loops), D width, h heads, R relations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GraphLayer(nn.Module):
    """One round of messages."""

    def __init__(self, dim: int, heads: int, relations: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.relation_key = nn.Parameter(torch.randn(relations, dim) * 0.02)
        self.relation_value = nn.Parameter(torch.randn(relations, dim) * 0.02)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(
        self, x: Tensor, source: Tensor, target: Tensor, relation: Tensor, log_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N, D) and the attention of each edge, mean over heads: (E,)."""
        y = self.norm_1(x)
        shape = (-1, self.heads, x.shape[1] // self.heads)
        query = self.query(y).view(shape)[target]  # (E, h, D/h)
        key = (self.key(y)[source] + self.relation_key[relation]).view(shape)
        value = (self.value(y)[source] + self.relation_value[relation]).view(shape)
        logit = (query * key).sum(-1).float() * shape[2] ** -0.5 + log_weight[:, None]  # (E, h)
        # Softmax over the edges that end in one concept.
        index = target[:, None].expand_as(logit)
        peak = torch.full((x.shape[0], self.heads), float("-inf"), device=x.device)
        peak = peak.scatter_reduce(0, index, logit.detach(), "amax")
        power = (logit - peak[target]).exp()
        total = torch.zeros_like(peak).index_add(0, target, power)
        attention = power / total[target]  # (E, h)
        message = torch.zeros(x.shape[0], *shape[1:], device=x.device, dtype=value.dtype)
        message = message.index_add(0, target, attention.to(value.dtype)[..., None] * value)
        x = x + self.out(message.flatten(1))
        return x + self.mlp(self.norm_2(x)), attention.mean(1)


class GraphEncoder(nn.Module):
    """Encodes every concept in the light of its neighbours.

    Args:
        nodes: N. edges: (source, target, relation index, weight in (0, 1]) of each edge, once. relations: how many
            kinds there are.
        dim: D. layers, heads, dropout: of the attention.
    """

    source: Tensor
    target: Tensor
    relation: Tensor
    log_weight: Tensor

    def __init__(
        self,
        nodes: int,
        edges: list[tuple[int, int, int, float]],
        relations: int,
        dim: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(nodes, dim) * 0.2)
        self.layers = nn.ModuleList(GraphLayer(dim, heads, 2 * relations + 1, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        both = [(s, t, r, w) for s, t, r, w in edges] + [(t, s, r + relations, w) for s, t, r, w in edges]
        both += [(n, n, 2 * relations, 1.0) for n in range(nodes)]
        columns = list(zip(*both, strict=True))
        for name, column in zip(("source", "target", "relation"), columns, strict=False):
            self.register_buffer(name, torch.tensor(column, dtype=torch.long), persistent=False)
        self.register_buffer("log_weight", torch.tensor(columns[3]).clamp_min(1e-4).log(), persistent=False)

    def forward(self, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Concepts (N, D), and the last layer's attention of each edge (E,), in the order of `source` and `target`.

        Args:
            without: (E,) True for edges that are left out, never a concept's edge to itself; None for none.
        """
        x = self.embedding
        weight = self.log_weight if without is None else self.log_weight.masked_fill(without, float("-inf"))
        attention = torch.ones_like(self.log_weight)
        for layer in self.layers:
            x, attention = layer(x, self.source, self.target, self.relation, weight)
        return self.norm(x), attention
