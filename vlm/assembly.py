"""What a run starts from: parts named by a configuration, or a checkpoint with the configuration laid over it."""

from __future__ import annotations

from pathlib import Path

import torch

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from vlm.checkpoint import SHIPPED, Calibration, Checkpoint, load_checkpoint
from vlm.config import Config
from vlm.models.build import build_model, label_list
from vlm.types import InputError


def starting_point(config: Config, start: Path | None) -> Checkpoint:
    """Builds the model that a run trains.

    Args:
        config: resolved. start: a checkpoint whose weights, graph and model section are taken; None builds anew,
            seeded.

    Raises:
        InputError: a part cannot be built, or the checkpoint has another shape than the configuration asks for.
    """
    if start is None and config.start is not None:
        start = SHIPPED if config.start == "shipped" else Path(config.start)
    if start is not None:
        checkpoint = load_checkpoint(start)
        _same_graph(checkpoint, config.model.knowledge.graph)
        # A resolved configuration is written beside the run: it must name the model that is trained.
        checkpoint.config = over(checkpoint.config, config)
        return checkpoint
    if config.training.loss.retention:
        raise InputError(
            "training.loss.retention: a model that is built anew has nothing to keep; name a checkpoint with start, or "
            "leave it out"
        )
    try:
        graph = KnowledgeGraph.load(config.model.knowledge.graph)
    except KnowledgeError as error:
        raise InputError(str(error)) from None
    torch.manual_seed(config.training.seed)
    model, tokenizer = build_model(config.model, graph, config.data.image_size.get("default", 256))
    return Checkpoint(
        model, tokenizer, graph, config, label_list(graph, config.model.knowledge.view), Calibration(), {}
    )


def _same_graph(checkpoint: Checkpoint, path: Path | None) -> None:
    """Refuses a graph other than the checkpoint's: its weights belong to the concepts and edges that it learnt with."""
    if path is None:
        return
    try:
        graph = KnowledgeGraph.load(path)
    except KnowledgeError as error:
        raise InputError(str(error)) from None
    if graph.hash != checkpoint.graph.hash:
        raise InputError(
            f"model.knowledge.graph {path}: has the hash {graph.hash[:12]}, the checkpoint to start from was trained "
            f"with {checkpoint.graph.hash[:12]}; leave the key out to keep the checkpoint's graph, or train without "
            "start"
        )


def over(old: Config, new: Config) -> Config:
    """The new run's configuration on the checkpoint's model: how a study is shown to the model, and how reports are
    written, stay as the checkpoint learnt them wherever the new configuration says nothing."""
    shown = {
        name: getattr(old.data, name)
        for name in type(old.data).model_fields
        if name not in ("train", "validation", "replay") and name not in new.data.model_fields_set
    }
    channels, needed = old.model.vision.channels, new.data.model_copy(update=shown).channels
    if channels != needed:
        raise InputError(
            f"data.windows and data.pseudo_colour make {needed} channels, the checkpoint's model takes {channels}; "
            "leave them out, or train without start"
        )
    generation = {name: value for name, value in new.generation if name in new.generation.model_fields_set}
    return new.model_copy(
        update={
            "model": old.model,
            "start": None,
            "data": new.data.model_copy(update=shown),
            "generation": old.generation.model_copy(update=generation),
        }
    )
