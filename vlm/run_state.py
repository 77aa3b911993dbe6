"""What a run needs to go on where it stopped, written atomically as safetensors and JSON.

A state is a folder `state/<step>`; `state/latest.json` names the last whole one. Randomness needs no state: every step
seeds its own.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vlm.models.adapters import allocator_state, is_adapter, restore_allocator
from vlm.models.report_generator import ReportGenerator
from vlm.optimization import Average, Groups
from vlm.processes import assign, whole
from vlm.types import InputError


@dataclass(slots=True)
class Position:
    """Where a run stands: stage, epoch, batch within the epoch, step within the stage, epochs since the best
    validation, and that best."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    worse: int = 0
    best_score: float = float("-inf")
    best_metrics: dict[str, float] = field(default_factory=dict)


def save_state(
    out: Path,
    position: Position,
    model: ReportGenerator,
    optimizer: torch.optim.Optimizer | None,
    average: Average | None,
    best: dict[str, Tensor],
    keep: int,
    write: bool = True,
    zero: dict[str, Tensor] | None = None,
) -> None:
    """Writes weights that training changes, optimizer moments, average and best; rotates old states.

    Args:
        out: the run's folder. model: everything but the frozen language model is written. best: parameter name ->
            value.
        keep: how many states stay. write: False for a process that only gives its part of sharded tensors.
        zero: the optimizer's parts under DeepSpeed, instead of `optimizer`.

    Raises:
        InputError: no room on the disk; the states before it are whole.
    """
    tensors = {f"model.{n}": t for n, t in _learnt(model).items()}
    tensors |= {f"best.{n}": t for n, t in best.items()}
    for i, value in enumerate(average.values if average else []):
        tensors[f"average.{i}"] = value
    tensors |= {f"allocator.{n}": t for n, t in allocator_state(model.language.model).items()}
    tensors |= zero or {}
    if optimizer is not None:
        for i, slot in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    tensors = {k: whole(v).detach().cpu().contiguous().clone() for k, v in tensors.items()}
    if write:
        try:
            _write(out / "state", position, tensors, keep)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{out / 'state'}: the state of step {position.step} cannot be written ({error}); the one before it is "
                "whole: make room, and run again to go on"
            ) from None


def _write(root: Path, position: Position, tensors: dict[str, Tensor], keep: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    name = f"{position.stage:02d}-{position.step:08d}"
    fresh, final = root / f".{name}.tmp", root / name
    for stale in root.glob(".*.tmp"):  # of a process that was killed while it wrote
        shutil.rmtree(stale, ignore_errors=True)
    fresh.mkdir()
    try:
        save_file(tensors, fresh / "tensors.safetensors")
        record = asdict(position)
        record["best_score"] = None if position.best_score == float("-inf") else position.best_score
        (fresh / "position.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        if final.exists():  # the same step again: only what it repeats may be lost, never both
            old = final.with_name(f".{name}.old.tmp")
            final.rename(old)
        fresh.rename(final)
        pointer = root / ".latest.json"
        pointer.write_text(json.dumps({"state": name}) + "\n", encoding="utf-8")
        os.replace(pointer, root / "latest.json")
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    older = sorted(p for p in root.iterdir() if p.is_dir() and p.name != name and not p.name.startswith("."))
    for folder in [*older[: -(keep - 1) or None], *root.glob(".*.old.tmp")]:
        shutil.rmtree(folder, ignore_errors=True)


def load_state(out: Path) -> tuple[Position, dict[str, Tensor]] | None:
    """The last whole state, or None for a new run.

    Raises:
        InputError: the state is damaged.
    """
    pointer = out / "state" / "latest.json"
    if not pointer.is_file():
        return None
    try:
        folder = out / "state" / Path(json.loads(pointer.read_text(encoding="utf-8"))["state"]).name
        record = json.loads((folder / "position.json").read_text(encoding="utf-8"))
        if record["best_score"] is None:
            record["best_score"] = float("-inf")
        return Position(**record), load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{pointer}: the saved state cannot be read ({error}); start anew with --no-resume") from None


def restore(
    tensors: dict[str, Tensor],
    model: ReportGenerator,
    optimizer: torch.optim.Optimizer | None,
    average: Average | None,
) -> dict[str, Tensor]:
    """Puts a state back; returns the best parameters so far.

    Raises:
        InputError: the state is of another model.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    strange = [n for n, t in saved.items() if n not in own or own[n].shape != t.shape]
    if strange:
        raise InputError(f"the saved state is of another model ({strange[0]}); start anew with --no-resume")
    with torch.no_grad():
        for name, value in saved.items():
            assign(own[name], value)
        for i in range(len(average.values) if average else 0):
            assign(average.values[i], tensors[f"average.{i}"])  # type: ignore[union-attr]
    ranks = {n.removeprefix("allocator."): t for n, t in tensors.items() if n.startswith("allocator.")}
    restore_allocator(model.language.model, ranks)
    if optimizer is not None:
        if any(n.startswith("zero.") for n in tensors):
            raise InputError(
                "the saved state is of a run under DeepSpeed: go on in that way, or start anew with --no-resume"
            )
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                target = parameters[int(index)]
                if isinstance(target, DTensor) and value.shape == target.shape:
                    value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}


def snapshot(model: ReportGenerator, groups: Groups) -> dict[str, Tensor]:
    """Copies of the parameters in training, by name."""
    wanted = {id(p) for part in groups.values() for p in part}
    return {n: p.detach().clone() for n, p in model.named_parameters() if id(p) in wanted}


@torch.no_grad()
def put_back(model: ReportGenerator, values: dict[str, Tensor]) -> None:
    """Sets parameters by name."""
    own = dict(model.named_parameters())
    for name, value in values.items():
        if isinstance(value, DTensor):
            own[name].copy_(value)
        else:
            assign(own[name], value)


def _learnt(model: ReportGenerator) -> dict[str, Tensor]:
    """Weights that some stage may change: all but the frozen base language model."""
    frozen = {
        n
        for n, p in model.named_parameters()
        if n.startswith("language.") and not p.requires_grad and not is_adapter(n)
    }
    return {n: t for n, t in model.state_dict().items() if n not in frozen and _is_own(n, model)}


def _is_own(name: str, model: ReportGenerator) -> bool:
    # Tied weights appear twice in a state dict; only parameters and buffers by their own name are kept.
    return not name.startswith("language.") or name in dict(model.named_parameters())
