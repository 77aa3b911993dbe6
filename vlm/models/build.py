"""Turns a configuration and a graph into parts: the only file of this package that reads either."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Relation
from vlm import config as settings
from vlm.models.adapters import AdapterSpec, add_adapter, is_adapter
from vlm.models.bridge import Bridge
from vlm.models.detection import DetectionHead
from vlm.models.findings import FUSIONS, ConceptAlignment, FindingHead, FindingQueries
from vlm.models.graph import GraphEncoder
from vlm.models.hierarchy import HierarchicalAttention
from vlm.models.language import LanguageModel, frame, load_language_model
from vlm.models.pyramid import FeaturePyramid
from vlm.models.report_generator import ReportGenerator
from vlm.models.vision import VisionEncoder, build_backbone, early_layers, fold_norms
from vlm.types import InputError, View

PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("vision",),
    "pyramid": ("hierarchy", "pyramid"),
    "detection": ("detector",),
    "knowledge": ("graph", "queries", "gate", "finding_head", "alignment", "view"),
    "bridge": ("bridge",),
}
"""Which of the composer's members each part of a training stage names; "adapter" and "language" lie inside
`language`."""


def build_model(
    config: settings.Model,
    graph: KnowledgeGraph,
    image_size: int,
    language: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    vision_weights: bool = True,
) -> tuple[ReportGenerator, PreTrainedTokenizerBase]:
    """Builds the composer.

    Args:
        config: the `model` section. graph: whose view gives the labels. image_size: pixels, for backbones that fix it.
        language, tokenizer: given when a checkpoint has loaded them (with its adapter); else `config.language` names
            them.
        vision_weights: False when a checkpoint's weights follow.

    Raises:
        InputError: a name or a file that does not fit.
    """
    labels = label_list(graph, config.knowledge.view)
    try:
        if language is None or tokenizer is None:
            chosen, a = config.language, config.language.adapter
            base, tokenizer = load_language_model(chosen.path, chosen.revision, chosen.quantize, chosen.dtype)
            base.requires_grad_(False)
            language = base
            if a.type != "none":
                language = add_adapter(base, AdapterSpec(a.type, a.r, a.alpha, a.dropout, a.targets, a.tokens))
        head, tail = frame(tokenizer, config.language.frame)
        weights = resolve_weights(config) if vision_weights else None
        inputs = max(3, config.vision.channels) if config.vision.channels != 2 else 2
        backbone = build_backbone(config.vision.name, weights, config.vision.options, image_size, inputs)
    except ValueError as error:
        raise InputError(str(error)) from None
    unknown = [name for name in config.detection.labels if name not in labels]
    if unknown:
        raise InputError(
            f"model.detection.labels: {unknown[0]!r} is not in the view {config.knowledge.view!r}: {', '.join(labels)}"
        )
    if config.vision.freeze_norm:
        fold_norms(backbone, 64, inputs)
    try:
        vision = VisionEncoder(backbone, config.vision.mean, config.vision.std, config.vision.freeze_norm, inputs)
    except ValueError as error:
        raise InputError(f"model.vision.name {config.vision.name!r}: {error}") from None
    model = _compose(config, graph, labels, vision, LanguageModel(language, head, tail), tokenizer)
    for part in (model.vision, model.hierarchy, model.pyramid, model.detector):
        if part is not None:  # channels last: convolutions on CPUs are up to twice as fast
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, tokenizer


def _compose(
    config: settings.Model,
    graph: KnowledgeGraph,
    labels: tuple[str, ...],
    vision: VisionEncoder,
    language: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
) -> ReportGenerator:
    dim, drop = config.width, config.dropout
    nodes, edges = graph_arrays(graph)
    knowledge, tree = config.knowledge, config.hierarchy
    texts = concept_texts(graph, labels, language, tokenizer)
    scales = len(vision.strides)
    detection = config.detection
    head = None
    if detection.enabled:
        head = DetectionHead(dim, len(detection.labels), vision.strides, detection.layers, detection.strides)
    fusion = FUSIONS.get(knowledge.fusion) if knowledge.enabled else None
    with torch.no_grad():  # as the model reads them: some families scale their embeddings
        words = int(language.embedding.weight.shape[0])  # type: ignore[index, union-attr, arg-type]
        every = torch.arange(words)
        norm = float(language.embed(every).float().norm(dim=1).mean())
    return ReportGenerator(
        vision=vision,
        hierarchy=HierarchicalAttention(vision.channels, dim, tree.layers, tree.heads, tree.grid, drop, tree.enabled),
        pyramid=FeaturePyramid(scales, dim),
        detector=head,
        graph=GraphEncoder(
            len(nodes), edges if knowledge.enabled else [], len(Relation), dim, knowledge.layers, knowledge.heads, drop
        ),
        queries=FindingQueries(len(labels), dim, knowledge.heads, 2, drop),
        gate=fusion(len(labels), dim) if fusion is not None else None,
        finding_head=FindingHead(len(labels), dim, drop),
        alignment=ConceptAlignment(dim, texts),
        bridge=Bridge(dim, language.width, scales, config.visual_grid, len(View), texts[: len(labels)], norm),
        language=language,
        label_nodes=torch.tensor([nodes[name] for name in labels]),
        attention_scale=vision.strides.index(16),
        dim=dim,
        views=len(View),
    )  # fmt: skip


def label_list(graph: KnowledgeGraph, view: str) -> tuple[str, ...]:
    """The model's findings, in order.

    Raises:
        InputError: the graph has no such view, or its labels are not concepts.
    """
    if view not in graph.views:
        raise InputError(
            f"model.knowledge.view: the graph has no view {view!r}; it has {', '.join(sorted(graph.views))}"
        )
    labels = tuple(graph.views[view])
    strange = [name for name in labels if name not in graph.concepts]
    if strange:
        raise InputError(
            f"model.knowledge.view: {view!r} holds {strange[0]!r}, which is not a concept; use a view made of concepts"
        )
    return labels


def graph_arrays(graph: KnowledgeGraph) -> tuple[dict[str, int], list[tuple[int, int, int, float]]]:
    """Concept ids in sorted order with their index, and edges as (source, target, relation index, weight)."""
    nodes = {name: i for i, name in enumerate(sorted(graph.concepts))}
    kinds = {relation: i for i, relation in enumerate(Relation)}
    # Sorted: sums over edges must round alike whatever order a file lists them in.
    return nodes, sorted((nodes[e.source], nodes[e.target], kinds[e.relation], e.weight) for e in graph.edges)


@torch.no_grad()
def concept_texts(
    graph: KnowledgeGraph, labels: tuple[str, ...], language: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """(2F, L): mean word embedding of each label's term, then of "no" before it."""
    rows = []
    for negation in ("", " no"):
        for name in labels:
            ids = tokenizer(f"{negation} {graph.concepts[name].name}", add_special_tokens=False)["input_ids"]
            rows.append(language.embed(torch.tensor(ids)).float().mean(0))
    return torch.stack(rows)


def trainable(model: ReportGenerator, part: str, frozen_stages: int = 0) -> list[nn.Parameter]:
    """The parameters of a part that a stage may train; of the vision model without its first `frozen_stages` stages."""
    if part in ("adapter", "language"):
        wanted = part == "adapter"
        # AdaLoRA keeps its ranks, and quantised layers their weights, in parameters of numbers that have no gradient.
        return [
            p
            for n, p in model.language.named_parameters()
            if is_adapter(n) == wanted and p.is_floating_point() and "ranknum" not in n
        ]
    frozen: set[int] = set()
    if part == "vision":
        model.vision.requires_grad_(True)
        norms = (
            [m for m in model.vision.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            if model.vision.freeze_norm
            else []
        )
        frozen = {id(p) for p in early_layers(model.vision.backbone, frozen_stages, model.vision.inputs)} | {
            id(p) for m in norms for p in m.parameters()
        }
        model.vision.requires_grad_(False)
    members = [m for name in PARTS[part] if (m := getattr(model, name)) is not None]
    return [p for member in members for p in member.parameters() if id(p) not in frozen]


def resolve_weights(config: settings.Model) -> str | None:
    """The vision weights' file as a path, taken from `RADSCRIBE_DATA` when it is relative."""
    weights = config.vision.weights
    if weights in (None, "pretrained"):
        return weights
    return str(settings.DataSet(path=Path(weights)).location())
