"""Whether a run fits into a memory, and what to change when it doesn't."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from vlm.config import Config, lay_over
from vlm.memory import Need, need_of
from vlm.processes import autocast_dtype
from vlm.sizing import look_at
from vlm.types import InputError
from vlm.weightless import Weightless, without_weights

CONTEXT = 600 * 2**20
"""What CUDA and its libraries take of a GPU before anything is stored there."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MOST_HALVINGS = 6


@dataclass(frozen=True, slots=True)
class Room:
    """A memory to fit into.

    Args:
        name: what it is. size: bytes. program: bytes of it that the program itself takes. gpu: the model lies on a GPU.
    """

    name: str
    size: int
    program: int
    gpu: bool

    def holds(self, need: Need) -> bool:
        """Whether the run fits."""
        return need.peak(self.gpu) + self.program <= self.size


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change, and what the run then needs.

    Args:
        overrides: for `--set`. need: with them. fits: into the room at hand.
    """

    overrides: tuple[str, ...]
    need: Need
    fits: bool


def parse_size(text: str) -> int:
    """Bytes of "24GB", "512 MiB", "16g"; units are powers of 1024, as cards and machines are sold.

    Raises:
        InputError: no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if match is None or float(match[1]) == 0:
        raise InputError(f"--memory {text!r}: write it as 24GB or 500MB")
    return int(float(match[1]) * UNITS[match[2]])


def room_at_hand(limit: str | None) -> Room:
    """The GPU when there is one, else this machine's memory; `limit` in place of its size.

    Raises:
        InputError: the limit is no size.
    """
    size = parse_size(limit) if limit is not None else None
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        return Room(f"{facts.name}" if size is None else "--memory", size or facts.total_memory, CONTEXT, True)
    from vlm.doctor import memory

    total, _ = memory()
    own = psutil.Process().memory_info().rss
    return Room("this machine" if size is None else "--memory", size or total, own, False)


def estimate_run(config: Config, start: Path | None, gpu: bool) -> Need:
    """What a run needs (raises as `vlm.weightless.without_weights` and `estimate`)."""
    return estimate(without_weights(config, start), gpu)


def estimate(built: Weightless, gpu: bool) -> Need:
    """What a run needs.

    Args:
        built: what it trains. gpu: on a GPU.

    Raises:
        InputError: no stage or no data set is named.
    """
    data, training = built.config.data, built.config.training
    if not training.stages:
        raise InputError("training.stages: names no stage, so there is nothing to estimate")
    if not data.train:
        raise InputError("data.train: names no data set")
    facts = {
        name: [look_at(source, data, built.tokenizer) for source in sources]
        for name, sources in (
            ("train", data.train),
            ("validation", data.validation),
            ("replay", data.replay.sets if data.replay else ()),
            ("old", data.replay.validation if data.replay else ()),
        )
    }
    device = "cuda" if gpu else "cpu"
    return need_of(built, facts, autocast_dtype(training.dtype, torch.device(device)), device)


def propose(config: Config, start: Path | None, need: Need, room: Room) -> Iterator[Proposal]:
    """Changes that make a run smaller, each alone; and, where none is enough, those that helped together with ever
    smaller batches, until it fits.

    Args:
        config, start: of the run. need: as it is. room: that it does not fit into.
    """
    helped: list[tuple[str, ...]] = []
    enough = False
    for overrides in _single(config, need, room):
        proposal = _tried(config, start, overrides, room)
        if proposal is None or proposal.need.peak(room.gpu) > 0.98 * need.peak(room.gpu):
            continue
        yield proposal
        enough = enough or proposal.fits
        helped.append(overrides)
    if enough:
        return
    together: tuple[str, ...] = ()
    for overrides in helped:
        together += overrides
    for _ in range(MOST_HALVINGS):
        if len(helped) < 2 and not _batches(config, need, room):
            return
        proposal = _tried(config, start, together, room)
        if proposal is None:
            return
        smaller = _batches(proposal_config(config, together), proposal.need, room)
        if proposal.fits or not smaller:
            yield proposal
            return
        names = {o.partition("=")[0] for o in smaller}
        together = tuple(o for o in together if o.partition("=")[0] not in names) + smaller


def proposal_config(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with overrides laid over it."""
    return lay_over(config, {}, "proposal", overrides)


def _tried(config: Config, start: Path | None, overrides: tuple[str, ...], room: Room) -> Proposal | None:
    try:
        found = estimate_run(proposal_config(config, overrides), start, room.gpu)
    except (InputError, ValueError):  # what does not go with the rest is no proposal
        return None
    return Proposal(overrides, found, room.holds(found))


def _single(config: Config, need: Need, room: Room) -> Iterator[tuple[str, ...]]:
    """One change each, what costs least first."""
    stages = config.training.stages
    texts = [s for s in stages if {"report", "reward"} & set(s.losses)]
    if texts and not config.training.gradient_checkpointing:
        yield ("training.gradient_checkpointing=true",)
    batches = _batches(config, need, room)
    if batches:
        yield batches
    own = config.start is None and not any("language" in s.train for s in stages)
    if own and config.model.language.dtype == "float32" and config.model.language.quantize == "none":
        yield ("model.language.dtype=bfloat16",)
    if own and config.model.language.quantize == "none":
        yield ("model.language.quantize=nf4",)
    if config.data.max_views > 1:
        yield ("data.max_views=1",)


def _batches(config: Config, need: Need, room: Room) -> tuple[str, ...]:
    """Half the studies a step and twice the steps an update, in the stages that do not fit."""
    out: tuple[str, ...] = ()
    for number, (stage, own) in enumerate(zip(config.training.stages, need.stages, strict=True)):
        used = own.peak - (own.host if room.gpu else 0) + room.program
        if used > room.size and stage.batch_size > 1:
            key = f"training.stages.{number}"
            out += (f"{key}.batch_size={stage.batch_size // 2}", f"{key}.accumulate={stage.accumulate * 2}")
    return out
