"""Finding queries: each label of the list looks for itself in the images, then hears from its neighbours in the graph.

A query is the label's node in the encoded graph. It cross-attends to the tokens of all views; what it gathers is the
finding's *evidence*, and where it looked is its attention map. The adaptive gate then decides, for each study and
finding, how much of what the graph's neighbours found is added (knowledge fusion): it starts at zero, so step 0 is the
model without knowledge, and its value can be read out. Concatenation and attention are there to be compared with it
(`FUSIONS`). A finding's logit comes from its evidence token, with weights
of its own (Query2Label, Liu et al. 2021, arXiv:2107.10834), and from the pooled image.

Shapes: B studies, V views, T = V * h * w image tokens, F findings, N concepts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class Evidence:
    """What the findings found.

    Args:
        tokens: (B, F, D) evidence after fusion. logits: (B, F). attention: (B, F, T), sums to 1 over the tokens that
            exist.
        gate: (B, F) in (-1, 1); 1 where fusion has no gate, 0 without fusion. visual: (B, F, D) evidence before fusion.
        neighbours: (F, F), or (B, F, F) where it depends on the study; row f sums to 1: whom f hears.
        images, mask: (B, T, D) image tokens that the findings looked at, and (B, T) which of them exist.
    """

    tokens: Tensor
    logits: Tensor
    attention: Tensor
    gate: Tensor
    visual: Tensor
    neighbours: Tensor
    images: Tensor
    mask: Tensor


class FindingQueries(nn.Module):
    """Cross-attention from findings to image tokens, in `layers` rounds.

    Args:
        labels: F. dim: D. heads, layers, dropout: of the attention.
    """

    def __init__(self, labels: int, dim: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.offset = nn.Parameter(torch.randn(labels, dim) * 0.2)
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True) for _ in range(layers)
        )
        self.norm_q = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.norm_m = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
            for _ in range(layers)
        )

    def forward(self, nodes: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Label nodes (F, D), image tokens (B, T, D), mask (B, T) True where a token exists -> evidence (B, F, D),
        attention (B, F, T)."""
        return self.ask((nodes + self.offset).expand(tokens.shape[0], -1, -1), tokens, mask)

    def ask(self, x: Tensor, tokens: Tensor, mask: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Any questions (B, Q, D), each by itself -> evidence (B, Q, D), attention (B, Q, T); `hidden` (Q, T) is True
        where a question may not look."""
        weights = torch.empty(0)
        for attend, norm_q, norm_m, mlp in zip(self.attention, self.norm_q, self.norm_m, self.mlp, strict=True):
            y, weights = attend(
                norm_q(x), tokens, tokens, key_padding_mask=~mask, average_attn_weights=True, attn_mask=hidden
            )
            x = x + y
            x = x + mlp(norm_m(x))
        return x, weights


class KnowledgeFusion(nn.Module):
    """What the ways of fusion share: whom a finding hears, and what it is told.

    Whom a finding hears follows from the encoded graph: a softmax over node similarity, itself left out. What it is
    told (its message) is its neighbours' evidence, weighted so, and its own node. Every way leaves the evidence as it
    is at the start, so step 0 is the model without fusion.

    Args:
        labels: F. dim: D.
    """

    def __init__(self, labels: int, dim: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.message = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.node = nn.Linear(dim, dim)

    def hear(self, asking: Tensor, evidence: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Who asks (F, D) or (B, F, D), evidence (B, F, D), nodes (F, D) or (B, F, D) -> message (B, F, D), neighbours
        (F, F) or (B, F, F)."""
        labels, dim = nodes.shape[-2:]
        similarity = self.query(asking) @ self.key(nodes).mT * dim**-0.5
        if labels > 1:
            similarity = similarity.masked_fill(torch.eye(labels, dtype=torch.bool, device=nodes.device), float("-inf"))
        neighbours = similarity.softmax(-1)
        return neighbours @ self.message(evidence) + self.node(nodes), neighbours

    def asking(self, evidence: Tensor, nodes: Tensor) -> Tensor:
        """Who asks the graph: the nodes (F, D), or the evidence (B, F, D)."""
        return nodes

    def add(self, evidence: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence and message (B, F, D) -> tokens (B, F, D), gate (B, F)."""
        raise NotImplementedError

    def forward(self, evidence: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, F, D), (F, D) -> tokens (B, F, D), gate (B, F), neighbours (F, F) or (B, F, F)."""
        message, neighbours = self.hear(self.asking(evidence, nodes), evidence, nodes)
        return *self.add(evidence, message), neighbours


class KnowledgeGate(KnowledgeFusion):
    """Adds to each finding's evidence what its neighbours in the graph found, through a gate that is zero at the start.

    gate_f = tanh(a_f + w . [evidence_f, message_f]), with a = 0 and w = 0 at the start; token_f = evidence_f + gate_f
    * message_f.
    """

    def __init__(self, labels: int, dim: int) -> None:
        super().__init__(labels, dim)
        self.bias = nn.Parameter(torch.zeros(labels))
        self.weight = nn.Linear(2 * dim, 1, bias=False)
        nn.init.zeros_(self.weight.weight)

    def add(self, evidence: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, D) twice -> tokens (B, F, D), gate (B, F)."""
        gate = torch.tanh(self.bias + self.weight(torch.cat([evidence, message], dim=-1)).squeeze(-1))  # (B, F)
        return evidence + gate[..., None] * message, gate


class KnowledgeConcatenation(KnowledgeFusion):
    """token_f = W [evidence_f, message_f], one W for all findings and studies; [identity, 0] at the start."""

    def __init__(self, labels: int, dim: int) -> None:
        super().__init__(labels, dim)
        self.join = nn.Linear(2 * dim, dim)
        with torch.no_grad():
            self.join.weight.copy_(torch.cat([torch.eye(dim), torch.zeros(dim, dim)], dim=1))
            self.join.bias.zero_()

    def add(self, evidence: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, D) twice -> tokens (B, F, D), gate (B, F) of ones."""
        return self.join(torch.cat([evidence, message], dim=-1)), evidence.new_ones(evidence.shape[:2])


class KnowledgeAttention(KnowledgeFusion):
    """Cross-attention from evidence to the graph: what a finding sees in *this* study asks, the nodes answer.

    token_f = evidence_f + W message_f, with W = 0 at the start.
    """

    def __init__(self, labels: int, dim: int) -> None:
        super().__init__(labels, dim)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def asking(self, evidence: Tensor, nodes: Tensor) -> Tensor:
        """The evidence (B, F, D)."""
        return self.norm(evidence)  # type: ignore[no-any-return]

    def add(self, evidence: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, D) twice -> tokens (B, F, D), gate (B, F) of ones."""
        return evidence + self.out(message), evidence.new_ones(evidence.shape[:2])


FUSIONS: dict[str, type[KnowledgeFusion]] = {
    "concatenate": KnowledgeConcatenation,
    "attention": KnowledgeAttention,
    "gate": KnowledgeGate,
}
"""Ways to add what the graph's neighbours found; "none" adds nothing and has no module."""


class FindingHead(nn.Module):
    """A logit a finding: its own weights on its evidence, and a shared linear layer on the pooled image."""

    def __init__(self, labels: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.weight = nn.Parameter(torch.randn(labels, dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.full((labels,), -2.0))
        self.pooled = nn.Sequential(nn.LayerNorm(2 * dim), nn.Dropout(dropout), nn.Linear(2 * dim, labels))

    def forward(self, tokens: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Evidence (B, F, D), image tokens (B, T, D), mask (B, T) -> (B, F)."""
        weight = mask[..., None].to(images.dtype)
        mean = (images * weight).sum(1) / weight.sum(1).clamp_min(1)
        peak = images.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return (self.norm(tokens) * self.weight).sum(-1) + self.bias + self.pooled(torch.cat([mean, peak], dim=-1))


class ConceptAlignment(nn.Module):
    """Similarity of each finding's evidence to what a report would say of it, present or absent, in the language
    model's words.

    Args:
        dim: D. texts: (2F, L) word embeddings of "term" for each label, then of "no term".
        temperature: of the softmax that the loss takes.
    """

    texts: Tensor

    def __init__(self, dim: int, texts: Tensor, temperature: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(dim, texts.shape[1])
        self.temperature = temperature
        self.register_buffer("texts", nn.functional.normalize(texts.float(), dim=-1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Evidence (B, F, D) -> logits (B, F, 2F)."""
        return nn.functional.normalize(self.project(tokens).float(), dim=-1) @ self.texts.T / self.temperature
