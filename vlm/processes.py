"""One process or many: what a launcher asked for against what runs, and weights that are shared out over processes.

`vlm train` runs as it is, under `accelerate launch`, or under `torchrun`. Weights
are sharded by torch's `fully_shard`, on GPUs and on CPUs alike: with `training.shard`, or under a launch file for FSDP.
ZeRO, by a launch
file for DeepSpeed or `training.shard: zero2 | zero3`, is in `vlm/zero.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vlm.config import Training
from vlm.models.language import decoder_layers
from vlm.models.report_generator import ReportGenerator
from vlm.types import InputError
from vlm.zero import make_shareable, zero_gathered


def make_accelerator(settings: Training) -> Accelerator:
    """Accelerate's view of this process.

    Args:
        settings: the `training` section.

    Raises:
        InputError: what was asked for (processes, sharding, precision) is not what is in effect.
    """
    asked = asked_processes()
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",  # autocast is the loop's own; a launcher's wish is checked below
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=settings.timeout_seconds)),
                DistributedDataParallelKwargs(find_unused_parameters=True),
            ],
        )
    except ImportError as error:
        raise InputError(f"what the launch file asks for is not installed: {_line(error)}") from None
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes of this run cannot reach one another: {_line(error)}") from None
    running = accelerator.num_processes
    if settings.processes is not None:
        asked["training.processes"] = settings.processes
    for who, count in asked.items():
        if count != running:
            raise InputError(
                f"{who} asks for {count} processes and {running} {'is' if running == 1 else 'are'} running; on CPUs "
                f"start them with: torchrun --nproc_per_node {count} -m vlm train ..., or with "
                "configs/accelerate/ddp.yaml"
            )
    for variable, kind, instead in (
        ("ACCELERATE_USE_FSDP", DistributedType.FSDP, "true"),
        ("ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED, "zero2 or zero3"),
    ):
        if os.environ.get(variable, "").lower() == "true" and accelerator.distributed_type != kind:
            raise InputError(
                f"the launch file asks for {kind.value}, which Accelerate ignores here ({accelerator.device.type}, "
                f"{running} processes); on CPUs use configs/accelerate/ddp.yaml with --set training.shard={instead}"
            )
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted not in ("no", "bf16") or (wanted == "bf16" and settings.dtype == "float32"):
        raise InputError(
            f"the launcher asks for mixed precision {wanted!r}, training.dtype is {settings.dtype}: set training.dtype "
            "(auto, float32, bfloat16) and leave the launcher's out"
        )
    return accelerator


def asked_processes() -> dict[str, int]:
    """How many processes each launcher around this one asks for: its environment, and `accelerate launch` itself.

    `accelerate launch --cpu --num_processes 2` starts one process and says nothing, so its command line is read.
    """
    asked = {}
    if "WORLD_SIZE" in os.environ:
        asked["WORLD_SIZE"] = int(os.environ["WORLD_SIZE"])
    for parent in psutil.Process().parents()[:2]:
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        if "launch" in words and any("accelerate" in Path(w).name for w in words[:3]):
            count = _launch_processes(words)
            if count is not None:
                asked["accelerate launch"] = count
            break
    return asked


def _launch_processes(words: Sequence[str]) -> int | None:
    """`--num_processes` of an `accelerate launch` command line, or that of its `--config_file`."""
    given: dict[str, str] = {}
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if word.startswith("--") and name in ("num_processes", "config_file"):
            given[name] = value if equals else words[index + 1] if index + 1 < len(words) else ""
    if given.get("num_processes", "").isdigit():
        return int(given["num_processes"])
    try:
        tree = (
            yaml.safe_load(Path(given["config_file"]).read_text(encoding="utf-8")) if "config_file" in given else None
        )
    except (OSError, yaml.YAMLError):
        return None
    count = tree.get("num_processes") if isinstance(tree, dict) else None
    return count if isinstance(count, int) else None


def shard_model(model: ReportGenerator, step: nn.Module, device: torch.device) -> None:
    """Shares the weights out over all processes, layer by layer of the language model (torch's `fully_shard`).

    Args:
        model: the composer. step: the module around it whose forward is a training step. device: of this process.

    Raises:
        InputError: as `make_shareable`.
    """
    make_shareable(step)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in decoder_layers(model.language.base):
        fully_shard(layer, mesh=mesh)
    fully_shard(step, mesh=mesh)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """While the block runs, every process holds all weights of a sharded module; others are left as they are."""
    sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        with zero_gathered(module):
            yield
    finally:
        for module in sharded:
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into one of which this process may hold a part."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements)
    target.copy_(value)


class Meeting:
    """Where processes wait for one another after work that takes them unequal time (loading, validating, saving).

    A step's own collectives give up after `training.timeout_seconds`; here one may be slow. That one is gone is noticed
    by `Watch`.

    Args:
        minutes: to wait at most.
    """

    def __init__(self, minutes: float = 60.0) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        made: Any = dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes)) if several else None
        self.group: dist.ProcessGroup | None = made

    def wait(self) -> None:
        """Returns when every process has come."""
        if self.group is not None:
            dist.barrier(group=self.group)


class Watch:
    """Hears within `training.timeout_seconds` that another process is gone, whatever this one is waiting for.

    A thread of each process takes part in a small sum every other second. A process that was killed closes its
    connections, a host without power or network doesn't: then the sum runs into its time limit. The main thread may be
    deep inside a collective that nothing can wake, so the process ends on the spot, with one line and exit code 2; what
    was saved is whole.

    Args:
        seconds: after which a silent process counts as gone. where: the run's folder, for the message.
    """

    def __init__(self, seconds: float, where: Path) -> None:
        self.where, self.leaving = where, threading.Event()
        several = dist.is_initialized() and dist.get_world_size() > 1
        made: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=0.8 * seconds)) if several else None
        self.group: dist.ProcessGroup | None = made
        if several:
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            said = torch.tensor(float(self.leaving.is_set()))
            try:
                dist.all_reduce(said, dist.ReduceOp.MAX, group=self.group)
            except RuntimeError as error:
                if not self.leaving.is_set():
                    print(f"error: {gone(error, self.where)}", file=sys.stderr, flush=True)  # noqa: T201
                    os._exit(2)
                return
            if said:
                return
            time.sleep(2)

    def end(self) -> None:
        """Stops listening, here and everywhere."""
        self.leaving.set()


def gone(error: Exception, where: Path) -> str:
    """The line that says so."""
    return (
        f"another process of this run is gone ({_line(error)[:120]}); its last state is in {where}, start all of them "
        "again to go on"
    )


def agree(flag: bool, device: torch.device) -> bool:
    """Whether any process says yes."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    said = torch.tensor(float(flag), device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return bool(said)


def lost(error: Exception) -> bool:
    """Whether an error says that another process of the run is gone."""
    text = str(error).lower()
    marks = ("connection closed", "connection reset", "gloo", "nccl", "timed out", "timeout", "broken pipe")
    return isinstance(error, (RuntimeError, OSError)) and any(mark in text for mark in marks)


def autocast_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is asked for, or where the processor multiplies it natively; None for float32."""
    if setting == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bf16()
        )
        return torch.bfloat16 if native else None
    return torch.bfloat16 if setting == "bfloat16" else None


def _has_bf16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
OWN_BLOCK = 2**20


def return_blocks() -> None:
    """From now on every block of a megabyte or more goes back to the system when it is let go, where the C library can
    (glibc): its heap would keep what recomputed layers let go, more than twice the memory. It takes time."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, OWN_BLOCK)


def trim_heap() -> None:
    """Gives memory that was let go back to the system, where the C library can (glibc): its heap keeps what small
    blocks between large ones pin, and the next stage's batches, of other shapes, would lie behind it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
