"""PEFT adapters by name: which layers they take in each family, what they need while training, and which parameters
are theirs.

| type | source | what it learns |
|---|---|---|
| lora | Hu et al. 2021, arXiv:2106.09685 | two thin matrices beside every linear layer |
| rslora | Kalajdzievski 2023, arXiv:2312.03732 | the same, scaled by alpha / sqrt(r): a large r still learns |
| dora | Liu et al. 2024, arXiv:2402.09353 | the same for the direction of a weight, its magnitude apart |
| adalora | Zhang et al. 2023, arXiv:2303.10512 | the same in singular-value form; layers that use ranks get them |
| ia3 | Liu et al. 2022, arXiv:2205.05638 | one factor a channel of keys, values and the feed-forward layer |
| prefix | Li and Liang 2021, arXiv:2101.00190 | keys and values of a few tokens that nobody wrote |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    TaskType,
    get_peft_model,
)  # fmt: skip
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from vlm.compat import cache_argument

TYPES = ("lora", "dora", "rslora", "ia3", "adalora", "prefix")
"""Adapters by the name that a configuration gives them."""

MARKS = (".lora_", ".ia3_l", "prompt_encoder.", ".modules_to_save.")
"""What PEFT calls the parameters that it adds."""

KEYS_VALUES = ("k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "k", "v")
"""Names of the layers that make keys and values, in the families that transformers holds."""

FEED_FORWARD = ("down_proj", "fc2", "dense_4h_to_h", "w2", "fc_out")
"""Names of the layer that ends a feed-forward block. GPT-2's is `mlp.c_proj`; its attention has a `c_proj` too."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What an adapter is made of.

    Args:
        type: one of `TYPES`.
        r: rank; AdaLoRA's mean rank at the end, 1.5 times as much at the start. alpha: the update is scaled by alpha /
            r (rsLoRA: alpha / sqrt(r)). dropout: on the adapter's input.
        targets: names of layers, or endings of them; None for every linear layer (IA3: keys, values, feed-forward).
        tokens: of a prefix.
        steps: optimizer steps of the training to come, which AdaLoRA's schedule needs.
    """

    type: str
    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    tokens: int = 16
    steps: int = 1000


def add_adapter(model: PreTrainedModel, spec: AdapterSpec) -> PeftModel:
    """Wraps a frozen model; at the start it computes what it computed before (a prefix apart).

    Raises:
        ValueError: the targets match no layer, or the family has none that the type can take.
    """
    if spec.targets is not None:
        _check_targets(model, spec.targets)
    try:
        return get_peft_model(model, _peft_config(model, spec))  # type: ignore[return-value]
    except ValueError as error:
        raise ValueError(f"adapter {spec.type!r}: {' '.join(str(error).split())[:250]}") from None


def load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """Wraps a frozen model with the adapter in a PEFT folder, ready to be trained further."""
    kind = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    # PEFT loads prompts for use only; a prefix is taken as it lies in the embedding either way.
    wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=kind != "PREFIX_TUNING")  # type: ignore[arg-type]
    for name, parameter in wrapped.named_parameters():
        if "prompt_encoder." in name:
            parameter.requires_grad_(True)
    return wrapped


def _peft_config(model: PreTrainedModel, spec: AdapterSpec) -> PeftConfig:
    task = TaskType.CAUSAL_LM
    if spec.type == "prefix":
        heads, width, layers = _key_shape(model)
        return PrefixTuningConfig(
            task_type=task, num_virtual_tokens=spec.tokens, num_layers=layers, num_attention_heads=heads,
            token_dim=heads * width,
        )  # fmt: skip
    convolved = any(isinstance(m, Conv1D) for m in model.modules())
    if spec.type == "ia3":
        every, forward = _ia3_targets(model, spec.targets)
        return IA3Config(task_type=task, target_modules=every, feedforward_modules=forward, fan_in_fan_out=convolved)
    targets: Any = list(spec.targets) if spec.targets else "all-linear"
    shared: dict[str, Any] = {
        "task_type": task, "lora_alpha": spec.alpha, "lora_dropout": spec.dropout, "fan_in_fan_out": convolved,
    }  # fmt: skip
    if spec.type == "adalora":
        if targets == "all-linear":  # AdaLoRA knows the shorthand only through a table of families
            targets = _linear_names(model)
        first, last = spec.steps // 10, spec.steps // 3
        return AdaLoraConfig(
            init_r=max(spec.r + 1, round(1.5 * spec.r)), target_r=spec.r, tinit=first, tfinal=last,
            deltaT=max(1, spec.steps // 100), total_step=max(3, spec.steps), target_modules=targets, **shared,
        )  # fmt: skip
    return LoraConfig(
        r=spec.r, target_modules=targets, use_dora=spec.type == "dora", use_rslora=spec.type == "rslora", **shared
    )


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers, the output layer left out."""
    head = model.get_output_embeddings()
    # Quantised layers derive from nn.Linear too.
    return [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]


def _check_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    names = _linear_names(model)
    for target in targets:
        if not any(n == target or n.endswith("." + target) for n in names):
            known = sorted({n.rpartition(".")[2] for n in names})
            raise ValueError(f"adapter targets: {target!r} matches no linear layer; this model has {', '.join(known)}")


def _ia3_targets(model: PreTrainedModel, targets: tuple[str, ...] | None) -> tuple[list[str], list[str]]:
    """Names that IA3 takes, and those among them that are feed-forward layers."""
    names = _linear_names(model)
    if targets is not None:
        names = [n for n in names if any(n == t or n.endswith("." + t) for t in targets)]
    last = [n.rpartition(".")[2] for n in names]
    forward = [n for n, end in zip(names, last, strict=True) if end in FEED_FORWARD or n.endswith("mlp.c_proj")]
    if targets is None:
        names = [n for n, end in zip(names, last, strict=True) if end in KEYS_VALUES] + forward
    if not names:
        raise ValueError("knows no keys, values or feed-forward layers of this family; name them in targets")
    return names, forward


def _key_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """(heads of keys, width of a head, layers), asked of the model itself: families name these differently."""
    cache = DynamicCache()
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    training = model.training
    model.eval()
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
    model.train(training)
    shapes = {tuple(layer.keys.shape[1::2]) for layer in cache.layers}  # type: ignore[union-attr]
    if len(shapes) != 1:
        raise ValueError("takes layers of one shape; this model's keys differ from layer to layer")
    heads, width = shapes.pop()
    return int(heads), int(width), len(cache.layers)


def is_adapter(name: str) -> bool:
    """Whether a parameter of a PEFT-wrapped model is the adapter's, by its name."""
    return any(mark in name for mark in MARKS)


def base_name(name: str) -> str:
    """The name that transformers gave a parameter which PEFT's wrapper renamed."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def adapter_type(model: nn.Module) -> str:
    """One of `TYPES`, or "none"."""
    if not isinstance(model, PeftModel):
        return "none"
    config: Any = model.peft_config[model.active_adapter]
    kind = str(config.peft_type.value).lower()
    if kind == "lora":
        return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
    return {"prefix_tuning": "prefix"}.get(kind, kind)


def virtual_tokens(model: nn.Module, batch: int) -> list[tuple[Tensor, Tensor]] | None:
    """A prefix's keys and values, (B, heads, tokens, width) a layer; None when the model has no prefix."""
    if adapter_type(model) != "prefix":
        return None
    assert isinstance(model, PeftModel)
    config: Any = model.peft_config[model.active_adapter]
    encoder: Any = model.prompt_encoder[model.active_adapter]
    flat: Tensor = encoder.embedding.weight  # (tokens, layers * 2 * heads * width)
    heads = config.num_attention_heads
    parts = flat.view(config.num_virtual_tokens, config.num_layers * 2, heads, config.token_dim // heads)
    parts = parts.permute(1, 2, 0, 3)[:, None].expand(-1, batch, -1, -1, -1)
    return [(parts[2 * i], parts[2 * i + 1]) for i in range(config.num_layers)]


def penalty(model: nn.Module) -> Tensor | None:
    """AdaLoRA's term that keeps its singular vectors orthogonal: weight times mean ||P'P - I||_F; None for other
    types."""
    if adapter_type(model) != "adalora":
        return None
    assert isinstance(model, PeftModel)
    config: Any = model.peft_config[model.active_adapter]
    terms = []
    for name, parameter in model.named_parameters():
        if ("lora_A" in name or "lora_B" in name) and model.active_adapter in name and parameter.numel():
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            terms.append((product - torch.eye(len(product), device=product.device)).norm())
    return config.orth_reg_weight * torch.stack(terms).mean()


def set_steps(model: nn.Module, steps: int) -> None:
    """Tells AdaLoRA how many optimizer steps the stage has: ranks fall from a tenth of them to two thirds."""
    if adapter_type(model) != "adalora":
        return
    assert isinstance(model, PeftModel)
    config: Any = model.peft_config[model.active_adapter]
    config.total_step, config.tinit, config.tfinal = max(3, steps), steps // 10, steps // 3
    config.deltaT = max(1, steps // 100)
    allocator(model).set_total_step(config.total_step)


def after_step(model: nn.Module, step: int) -> None:
    """Lets AdaLoRA share out its ranks; after the optimizer's step and before gradients are cleared. Step counts from
    0."""
    if adapter_type(model) == "adalora":
        model.base_model.update_and_allocate(step)  # type: ignore[union-attr, operator]


def allocator(model: nn.Module) -> Any:
    """AdaLoRA's rank allocator."""
    return model.base_model.rankallocator  # type: ignore[union-attr]


def allocator_state(model: nn.Module) -> dict[str, Tensor]:
    """What AdaLoRA remembers from step to step and no state dict holds; empty for other types."""
    if adapter_type(model) != "adalora":
        return {}
    held = allocator(model)
    out = {f"{k}.{n}": t for k in ("ipt", "exp_avg_ipt", "exp_avg_unc") for n, t in getattr(held, k).items()}
    pattern = model.peft_config[model.active_adapter].rank_pattern or {}  # type: ignore[union-attr, index]
    return out | {f"pattern.{n}": torch.tensor(mask) for n, mask in pattern.items()}


def restore_allocator(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts `allocator_state` back."""
    if adapter_type(model) != "adalora" or not state:
        return
    held = allocator(model)
    for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        setattr(held, kind, {n.removeprefix(f"{kind}."): t for n, t in state.items() if n.startswith(f"{kind}.")})
    pattern = {n.removeprefix("pattern."): t.tolist() for n, t in state.items() if n.startswith("pattern.")}
    model.peft_config[model.active_adapter].rank_pattern = pattern or None  # type: ignore[union-attr, index]
