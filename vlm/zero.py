"""DeepSpeed's ZeRO around the step of a run: shares the optimizer out over processes, in stage 3 the weights too.

The engine is made here, a new one for each stage of a run, and not by `Accelerator.prepare`, which holds on to its
first; settings come from Accelerate's launch file, or from `training.shard: zero2 | zero3`, which works on CPUs too.
Weights are kept in float32, and autocast is the loop's own, as without DeepSpeed. Checkpoints are whole; the
optimizer's parts are those of each process, so a run goes on with as many processes as it had.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch import distributed as dist

from vlm.config import Config
from vlm.models.language import decoder_layers
from vlm.steps import TrainStep
from vlm.types import InputError


def zero_settings(config: Config, accelerator: Accelerator) -> dict[str, Any] | None:
    """DeepSpeed's `zero_optimization`, by the launch file or by `training.shard`; None where neither asks for it.

    Raises:
        InputError: asked for, and not to be had.
    """
    training = config.training
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        asked: dict[str, Any] = dict(accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"])
    elif isinstance(training.shard, str):
        asked = {"stage": int(training.shard.removeprefix("zero"))}
    else:
        return None
    if asked["stage"] == 3 and training.ema:
        raise InputError("training.ema: no average of weights that ZeRO-3 shares out; set it to 0 or use zero2")
    if config.model.language.adapter.type == "adalora":
        raise InputError("model.language.adapter.type: adalora needs whole gradients, which ZeRO has not; take lora")
    return asked


def make_shareable(step: nn.Module) -> None:
    """Lays weights out as sharing over processes needs them: it takes no channels-last ones.

    Raises:
        InputError: no launcher, or a base held in few bits.
    """
    if not dist.is_initialized():
        raise InputError("training.shard: shares out over processes; start them with accelerate launch or torchrun")
    if any(not p.is_floating_point() for p in step.parameters()):
        raise InputError("training.shard: can't share out a language model that is held in 4 or 8 bits")
    step.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class Zero:
    """The engine of one stage at a time.

    Args:
        step: what is trained. settings: DeepSpeed's `zero_optimization`. clip: norm of the gradients.

    Raises:
        InputError: as `make_shareable`, or DeepSpeed is not installed.
    """

    def __init__(self, step: TrainStep, settings: dict[str, Any], clip: float) -> None:
        make_shareable(step)
        _deepspeed()
        # What is fetched and let go must not hang on a trace of the step before: processes have unlike batches.
        calm = {"max_reuse_distance": 0, "prefetch_bucket_size": 0, "param_persistence_threshold": 0}
        if settings["stage"] == 3:
            settings = settings | {f"stage3_{name}": value for name, value in calm.items()}
        self.step, self.settings, self.clip = step, settings, clip
        self.engine: Any = None

    @property
    def shares_weights(self) -> bool:
        """Whether a process holds a part of the weights alone (ZeRO-3)."""
        return bool(self.settings["stage"] == 3)

    def begin(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The step and the optimizer of a stage, as DeepSpeed runs them."""
        config = {
            "train_micro_batch_size_per_gpu": 1,  # the loop makes its batches itself, and accumulates itself
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.clip,
            "zero_optimization": self.settings,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        self.end()
        self.engine, wrapped, _, _ = _deepspeed().initialize(model=self.step, optimizer=optimizer, config=config)
        if self.shares_weights:
            self._keep_small()
        return self.engine, wrapped

    def _keep_small(self) -> None:
        """Only the layers of the language model are shared out, as under `fully_shard`. DeepSpeed wants every process
        to run the same modules in one order, backwards too, and with unlike batches only the layers are sure to."""
        layers = decoder_layers(self.step.model.language.base)
        large = {id(p) for layer in layers for p in layer.parameters()}
        kept = self.engine.optimizer.persistent_parameters
        kept.extend(p for p in self.step.parameters() if id(p) not in large)
        for parameter in kept:
            parameter.ds_persist = True
        kept[0].all_gather(kept)
        offload = self.engine.optimizer.parameter_offload
        inside = [module for layer in layers for module in layer.modules()]
        hooked = {id(hooks) for module in inside for hooks in (module._forward_pre_hooks, module._forward_hooks)}
        for handle in (*offload.forward_hooks, *offload.backward_hooks):
            if id(handle.hooks_dict_ref()) not in hooked:
                handle.remove()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Backward pass; with the last of a step's parts also clipping, the optimizer, and setting gradients back."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss)
        if last:
            self.engine.step()

    def end(self) -> None:
        """Takes the engine's hooks off the model."""
        if self.engine is not None:
            self.engine.destroy()
        self.engine = None

    def parts(self) -> dict[str, Tensor]:
        """Every process's part of the optimizer, in every process: "zero.<process>.<part>.<moment>" -> tensor."""
        found: dict[str, Tensor] = {}
        for index, (part, state) in enumerate(self._states()):
            for name, value in state.items():
                own = torch.as_tensor(value).to(part.device).contiguous()
                held = [torch.empty_like(own) for _ in range(dist.get_world_size())]
                dist.all_gather(held, own)
                found |= {f"zero.{rank}.{index}.{name}": each.cpu() for rank, each in enumerate(held)}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts this process's part of the optimizer back.

        Raises:
            InputError: it was saved without DeepSpeed, or by another number of processes.
        """
        count = len({name.split(".")[1] for name in tensors if name.startswith("zero.")})
        if not count and not any(name.startswith("optimizer.") for name in tensors):
            return  # saved between stages
        if count != dist.get_world_size():
            by = f"by {count} processes with DeepSpeed" if count else "without DeepSpeed"
            raise InputError(f"the saved state was written {by}: go on in that way, or start anew with --no-resume")
        for index, (part, state) in enumerate(self._states()):
            mine = f"zero.{dist.get_rank()}.{index}."
            for name, value in tensors.items():
                if name.startswith(mine):
                    # AdamW counts its steps on the host
                    place = part.device if value.dim() else torch.device("cpu")
                    state[name.removeprefix(mine)] = value.to(place)

    def _states(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Each flat part of the weights that this process steps, and what the optimizer keeps of it."""
        outer = self.engine.optimizer
        parts = outer.fp32_partitioned_groups_flat if self.shares_weights else outer.single_partition_of_fp32_groups
        for part in parts:
            yield part, outer.optimizer.state[part]


@contextmanager
def zero_gathered(module: nn.Module, change: bool = False) -> Iterator[None]:
    """While the block runs, every process holds all weights that ZeRO-3 shares out, if it does.

    Args:
        change: what the first process changes in the block is told to the others.
    """
    shared = [p for p in module.parameters() if hasattr(p, "ds_id")]
    if not shared:
        yield
        return
    with _deepspeed().zero.GatheredParameters(shared, modifier_rank=0 if change else None):
        yield


def dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter: a process that ZeRO-3 left a part holds it flat."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _deepspeed() -> Any:
    """The package, told to be quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError:
        raise InputError("ZeRO needs DeepSpeed: pip install deepspeed") from None
    logger.setLevel(logging.ERROR)
    return deepspeed
