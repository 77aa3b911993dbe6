"""A model of shapes alone: what a configuration would build, without reading or holding a language model's weights.

The language model is built from its configuration file on torch's "meta" device, gets its adapter, and then every
tensor becomes a fake one (torch's FakeTensor): operations on fake tensors compute shapes and types, so a training step
of a model of any size runs in seconds and in no memory, and `vlm.memory` can watch what it would hold.

Weights in 4 or 8 bits are stood in for by `FewBits`, which does what bitsandbytes does: the weight is written out in
full for each product, forward and backward, and let go.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from vlm.assembly import over
from vlm.checkpoint import LANGUAGE_VARIABLE, RECORD, SHIPPED
from vlm.config import Config, parse_config
from vlm.models.adapters import AdapterSpec, add_adapter
from vlm.models.build import build_model, label_list
from vlm.models.language import SHIPPED_LANGUAGE, LanguageModel
from vlm.models.report_generator import ReportGenerator
from vlm.types import InputError

BITS = {"nf4": 4, "int8": 8}
BLOCK, SECOND_BLOCK = 64, 256
"""Weights that share a scale in NF4, and scales that share one in turn."""


@dataclass(slots=True)
class Weightless:
    """What a run would train.

    Args:
        model: of fake tensors. mode: that they belong to.
        config: resolved, with the model of the checkpoint that the run starts from. labels: the model's findings.
        graph: knowledge. tokenizer: of the language model; None when only its configuration is at hand.
        source: folder or hub id of the language model. language: its configuration.
    """

    model: ReportGenerator
    mode: FakeTensorMode
    config: Config
    labels: tuple[str, ...]
    graph: KnowledgeGraph
    tokenizer: PreTrainedTokenizerBase | None
    source: str
    language: PretrainedConfig


def without_weights(config: Config, start: Path | None = None) -> Weightless:
    """Builds what `vlm.assembly.starting_point` would, of shapes alone.

    Args:
        config: resolved. start: a checkpoint to start from.

    Raises:
        InputError: a part cannot be built, a checkpoint or a language model's configuration cannot be had.
    """
    if start is None and config.start is not None:
        start = SHIPPED if config.start == "shipped" else Path(config.start)
    path = config.model.language.path
    folder: Path | None = None
    if start is not None:
        config, path = _of_checkpoint(start, config)
        folder = start
    try:
        graph = KnowledgeGraph.load(folder / "graph.json" if folder else config.model.knowledge.graph)
    except KnowledgeError as error:
        raise InputError(str(error)) from None
    path = str(SHIPPED_LANGUAGE) if path == "shipped" else path
    options: dict[str, Any] = {
        "revision": config.model.language.revision if not Path(path).is_dir() else None,
        "trust_remote_code": False, "local_files_only": Path(path).is_dir(),
    }  # fmt: skip
    try:
        language = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model.language.path: {path}: no configuration of a language model: {' '.join(str(error).split())[:200]}"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError):
        tokenizer = None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    base = _language(config, language)
    stand_in = _Words(_width(base))
    model, _ = build_model(
        config.model, graph, config.data.image_size.get("default", 256), stand_in, tokenizer or _Plain(),  # type: ignore[arg-type]
        vision_weights=False,
    )  # fmt: skip
    head, tail = model.language.head.tolist(), model.language.tail.tolist()
    model.language = LanguageModel(base, head, tail)
    to_fake(model, mode)
    return Weightless(
        model, mode, config, label_list(graph, config.model.knowledge.view), graph, tokenizer, path, language
    )


def _of_checkpoint(folder: Path, config: Config) -> tuple[Config, str]:
    """The run's configuration on a checkpoint's model, and where the language model's configuration lies."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record["config"]["model"]["language"].setdefault("frame", "prompt")
        own = parse_config(record["config"], str(folder / RECORD))
        named = record.get("language") or record["config"]["model"]["language"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: is not a checkpoint that can be read: {error}") from None
    inside = folder / "language"
    path = str(inside) if inside.is_dir() else os.environ.get(LANGUAGE_VARIABLE) or str(named["path"])
    return over(own, config), path


def _language(config: Config, language: PretrainedConfig) -> nn.Module:
    """The causal LM with its adapter, on the meta device."""
    chosen, a = config.model.language, config.model.language.adapter
    with torch.device("meta"):
        try:
            base = AutoModelForCausalLM.from_config(
                language, dtype=getattr(torch, chosen.dtype), attn_implementation="eager", trust_remote_code=False
            )
            if chosen.quantize != "none":
                hold_in_few_bits(base, BITS[chosen.quantize])
            base.requires_grad_(False)
            if a.type == "none":
                return base  # type: ignore[no-any-return]
            return add_adapter(base, AdapterSpec(a.type, a.r, a.alpha, a.dropout, a.targets, a.tokens))
        except (ValueError, KeyError) as error:
            raise InputError(f"{chosen.path}: {' '.join(str(error).split())[:250]}") from None


def hold_in_few_bits(base: nn.Module, bits: int) -> None:
    """Puts `FewBits` in place of every linear layer but the output, and the rest in full precision, as PEFT's
    preparation for training in few bits does."""
    head = base.get_output_embeddings()  # type: ignore[operator]
    for name, module in list(base.named_modules()):
        if module is head or not isinstance(module, (nn.Linear, Conv1D)):
            continue
        shape = tuple(module.weight.shape)
        rows, columns = shape if isinstance(module, nn.Linear) else shape[::-1]
        parent = base.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], FewBits(columns, rows, module.bias, bits, module.weight.dtype))
    for module in base.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype in (torch.float16, torch.bfloat16):
                module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)


class FewBits(nn.Linear):
    """Stands in for bitsandbytes' Linear4bit and Linear8bitLt: the same bytes, the same temporaries.

    Args:
        columns, rows: features in and out. bias: or None. bits: 4 or 8. compute: type of the product.
    """

    def __init__(self, columns: int, rows: int, bias: Tensor | None, bits: int, compute: torch.dtype) -> None:
        super().__init__(1, 1, bias=False)
        self.in_features, self.out_features, self.bits, self.compute = columns, rows, bits, compute
        blocks = -(-rows * columns // BLOCK)
        self.weight = nn.Parameter(torch.empty(rows * columns * bits // 8, dtype=torch.uint8), requires_grad=False)
        scales = blocks + 4 * -(-blocks // SECOND_BLOCK) if bits == 4 else 4 * rows
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        kind = self.compute if self.bits == 4 else x.dtype
        return _Unpacked.apply(x.to(kind), self.weight, self).to(x.dtype)  # type: ignore[no-any-return]

    def whole(self, like: Tensor) -> Tensor:
        """The weight written out, (out, in)."""
        return like.new_empty(self.out_features, self.in_features)


class _Unpacked(torch.autograd.Function):
    """MatMul4Bit keeps nothing of its input; MatMul8bitFp keeps it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: FewBits) -> Tensor:
        """x W^T + b."""
        ctx.layer, ctx.kept = layer, x if layer.bits == 8 else None
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.whole(x), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of the input alone."""
        return gradients[0] @ ctx.layer.whole(gradients[0]), None, None


def to_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Puts fake tensors on the CPU in place of all parameters and buffers of floating-point or packed numbers; shared
    ones stay shared. Small buffers of whole numbers stay as they are, for they are read as indices."""
    made: dict[int, Tensor] = {}
    kept = []  # nothing may take the place, and so the id, of what was replaced

    def fake(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in made:
            kept.append(tensor)
            with mode:
                made[id(tensor)] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return made[id(tensor)]

    parameters: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in parameters:
                    parameters[id(parameter)] = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
                part._parameters[name] = parameters[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and (buffer.is_meta or buffer.is_floating_point() or buffer.dtype == torch.uint8):
                part._buffers[name] = fake(buffer)


def _width(base: nn.Module) -> int:
    return int(base.get_input_embeddings().weight.shape[1])  # type: ignore[operator]


class _Words(nn.Module):
    """A vocabulary of eight words of the language model's width: enough to build the image half around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, width), requires_grad=False)

    def get_input_embeddings(self) -> nn.Module:
        """Itself."""
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """(...,) -> (..., L)."""
        return self.weight[ids % 8]


class _Plain:
    """Stands in for a tokenizer that is not at hand: four characters a token, no chat template."""

    chat_template = None
    bos_token_id = eos_token_id = pad_token_id = 0

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        """Ids of zero."""
        return {"input_ids": [0] * max(1, len(text) // 4)}
