"""The language model: any Hugging Face causal LM, frozen, with a PEFT adapter, reading a prefix of embeddings.

A folder is loaded as it is, with no network; a name that is not a folder is a hub id, which the user chose by naming
it. No remote code is run and no pickle is read (safetensors only).

Shapes: B studies, P prefix tokens, N prompt tokens, R report tokens, L the model's width, M labelled positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel, prepare_model_for_kbit_training
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)  # fmt: skip
from transformers.utils import cached_file

from vlm.compat import cache_argument
from vlm.models.adapters import virtual_tokens
from vlm.models.dropout import QuickDropout
from vlm.types import InputError

SHIPPED_LANGUAGE = Path(__file__).parents[1] / "pretrained" / "language"

UNWRITTEN = "XXXX"
"""The de-identifier's mark: read where a text holds it, never learnt, never written."""

SAMPLES = 64
"""Values of each tensor that a fingerprint looks at."""

_PLACEHOLDER = "\N{REPLACEMENT CHARACTER}study\N{REPLACEMENT CHARACTER}"


def load_language_model(
    path: str, revision: str | None = None, quantize: str = "none", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal LM and its tokenizer.

    Args:
        path: a folder, a hub id, or "shipped" for the small decoder that comes with this package. revision: of a hub
            id.
        quantize: "nf4" or "int8" keeps the linear layers' frozen weights in 4 or 8 bits (bitsandbytes; Dettmers et al.
            2023, arXiv:2305.14314), on a GPU or on the CPU.
        dtype: of the frozen weights; "bfloat16" halves them.

    Raises:
        ValueError: a folder that holds no causal LM, or a hub id that cannot be had.
    """
    path = str(SHIPPED_LANGUAGE) if path == "shipped" else path
    folder = Path(path)
    local = folder.is_dir()
    if not local and (path.startswith((".", "/", "runs/")) or path.count("/") > 1):
        raise ValueError(f"{path}: no such folder of a language model")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=getattr(torch, dtype), attn_implementation="eager", use_safetensors=True,
            quantization_config=_quantization(quantize, dtype), **options,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"{path}: not a causal language model that transformers can load: {' '.join(str(error).split())[:300]}"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no end token, so no report would ever end")
    if quantize != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            if type(module).__name__ == "Linear4bit":
                # On CPUs it would repack its weights for bf16 at the first evaluation and round otherwise from then on.
                module.support_avx512bf16_for_cpu = False
        _let_file_go(model)
    return model, tokenizer


def _let_file_go(model: nn.Module) -> None:
    """What was not packed still looks into the mapped file, and one such weight keeps all of its pages in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def origin(base: nn.Module) -> tuple[str, str | None]:
    """Folder or hub id that a causal LM was loaded from, and the hub's commit."""
    config = vars(base.config)
    return str(config.get("_name_or_path", "")), config.get("_commit_hash")


def source_folder(model: nn.Module) -> Path:
    """Where a causal LM was loaded from: the folder, or the hub's snapshot on this machine.

    Raises:
        ValueError: neither is there any more.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    name, commit = origin(base)
    if Path(name).is_dir():
        return Path(name)
    found = cached_file(
        name, "config.json", revision=commit, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    if found is None:
        raise ValueError(f"{name}: the language model's files are not there any more")
    return Path(found).parent


def _quantization(kind: str, dtype: str) -> BitsAndBytesConfig | None:
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )  # fmt: skip
    return BitsAndBytesConfig(load_in_8bit=True) if kind == "int8" else None


def fingerprint(folder: Path) -> str:
    """Names the weights in a Hugging Face folder, whatever precision they are stored in.

    Sixty-four evenly spaced values of every tensor, as float16, its name and shape, and the family: a model that was
    trained on differs in all tensors, a copy in another precision in none. Reads kilobytes of a folder of gigabytes.

    Raises:
        ValueError: no safetensors file, or a broken one, or no config.json.
    """
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: holds no safetensors file")
    found: dict[str, bytes] = {}
    try:
        for file in files:
            with safe_open(str(file), framework="pt") as stream:
                for name in stream.keys():  # noqa: SIM118 - no mapping
                    part = stream.get_slice(name)
                    shape = part.get_shape()
                    rows = [round(i * (shape[0] - 1) / 7) for i in range(8)] if shape else []
                    values = [part[row : row + 1].flatten() for row in rows]
                    few = [v[torch.linspace(0, len(v) - 1, SAMPLES // 8).long()] for v in values]
                    # float16 is the coarsest that checkpoints are stored in.
                    numbers = torch.cat(few).to(torch.float16).numpy().tobytes() if few else b""
                    found[name] = json.dumps(shape).encode() + numbers
        digest.update(str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")).encode())
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{folder}: a broken config.json or safetensors file: {error}") from None
    for name in sorted(found):
        digest.update(name.encode() + found[name])
    return digest.hexdigest()


def frame(tokenizer: PreTrainedTokenizerBase, kind: str) -> tuple[list[int], list[int]]:
    """Token ids before the images and after the prompt.

    Args:
        kind: "auto" puts the images into the user's turn of the tokenizer's chat template, where it has one, and else
            the begin token in front of them, where language models expect it; "prompt" adds nothing here (the begin
            token then comes with the prompt's text).

    Returns:
        (head, tail).

    Raises:
        ValueError: a chat template that cannot hold one user's turn.
    """
    if kind == "prompt":
        return [], []
    if not tokenizer.chat_template:
        return ([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []), []
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _PLACEHOLDER}], tokenize=False, add_generation_prompt=True,
            enable_thinking=False,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(f"the tokenizer's chat template takes no user's turn: {error}") from None
    before, found, after = str(text).partition(_PLACEHOLDER)
    if not found:
        raise ValueError("the tokenizer's chat template leaves out what the user says")
    return [list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after)]  # type: ignore[return-value]


def decoder_layers(base: nn.Module) -> list[nn.Module]:
    """The layers of a causal LM: its longest list of modules of one kind."""
    longest: list[nn.Module] = []
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len({type(x) for x in module}) == 1 and len(module) > len(longest):
            longest = list(module)
    return longest


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While the block runs, layers keep their input alone for the backward pass and compute the rest again there (Chen
    et al. 2016, arXiv:1604.06174): gradients are the same, memory is a layer's, time is a third more.

    The library's own switch works only for layers in training mode, which would switch on the drop-out of a language
    model through which only the bridge learns.
    """

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), QuickDropout.again()

    def again(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(original, *args, use_reentrant=False, context_fn=contexts, **kwargs)

        return forward

    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = again(layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            if old is None:
                del layer.forward
            else:
                layer.forward = old


class LanguageModel(nn.Module):
    """A causal LM that reads a prefix of embeddings before its prompt.

    Args:
        model: a Hugging Face causal LM, PEFT-wrapped or not.
        head, tail: ids before the images and after the prompt, from `frame`.

    `recompute` trades time for memory while it learns, see `recomputed`.
    """

    head: Tensor
    tail: Tensor
    recompute: bool = False

    def __init__(self, model: nn.Module, head: list[int] | None = None, tail: list[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("head", torch.tensor(head or [], dtype=torch.long), persistent=False)
        self.register_buffer("tail", torch.tensor(tail or [], dtype=torch.long), persistent=False)

    @property
    def width(self) -> int:
        """L."""
        return int(self.embedding.weight.shape[1])  # type: ignore[index, union-attr]

    @property
    def embedding(self) -> nn.Module:
        """The input embedding."""
        return self.model.get_input_embeddings()  # type: ignore[operator, no-any-return]

    @property
    def base(self) -> nn.Module:
        """The causal LM inside PEFT's wrapper, its adapter layers in place."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def attend(self, device: str, dtype: torch.dtype | None) -> None:
        """Chooses the attention that learns fastest: torch's fused one, or transformers' eager one where the backward
        pass of the fused one is slower (bfloat16 on CPUs) or leaves something out (soft-capped scores).

        Args:
            device: "cpu" or "cuda". dtype: of autocast, or None.
        """
        base: Any = self.base
        capped = base.config.get_text_config().to_dict().get("attn_logit_softcapping") is not None
        narrow = device == "cpu" and (dtype or next(base.parameters()).dtype) != torch.float32
        base.set_attn_implementation("eager" if narrow or capped or not base._supports_sdpa else "sdpa")

    def embed(self, ids: Tensor) -> Tensor:
        """(B, N) -> (B, N, L)."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def framed(self, content: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Puts head and tail around (B, P, L) with its mask (B, P), in the frozen weights' precision."""
        studies = len(content)
        around = [self.embed(ids)[None].expand(studies, -1, -1) for ids in (self.head, self.tail)]
        ones = [mask.new_ones(studies, len(ids)) for ids in (self.head, self.tail)]
        kind = self.embedding.weight.dtype if not torch.is_autocast_enabled(content.device.type) else content.dtype  # type: ignore[union-attr]
        whole = torch.cat([around[0].to(content.dtype), content, around[1].to(content.dtype)], dim=1)
        return whole.to(kind), torch.cat([ones[0], mask, ones[1]], dim=1)  # type: ignore[arg-type]

    def forward(
        self, prefix: Tensor, prefix_mask: Tensor, report_ids: Tensor, report_mask: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of the labelled positions alone.

        Args:
            prefix: (B, P, L), padded on the left. prefix_mask: (B, P) True where a token exists.
            report_ids, report_mask: (B, R), padded on the right.
            labels: (B, R): what each report position should be; -100 takes no part.

        Returns:
            (M, vocabulary) logits and the (M,) flat indices into labels of the positions that they predict.
        """
        inputs = torch.cat([prefix, self.embed(report_ids).to(prefix.dtype)], dim=1)
        mask = torch.cat([prefix_mask, report_mask], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        extra: dict[str, Any] = {}
        virtual = virtual_tokens(self.model, len(inputs))
        if virtual is not None:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(virtual):
                cache.update(keys.to(inputs.dtype), values.to(inputs.dtype), layer)
            tokens = virtual[0][0].shape[2]
            mask = torch.cat([mask.new_ones(len(mask), tokens), mask], dim=1)
            positions, extra = positions + tokens, {cache_argument(self.model): cache}
        index = (labels.flatten() != -100).nonzero(as_tuple=True)[0]
        start, count = prefix.shape[1] - 1, report_ids.shape[1]

        def only_labelled(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The hidden state before a token predicts it: the last of the prefix predicts the report's first token.
            hidden = arguments[0][:, start : start + count]  # (B, R, L)
            return (hidden.flatten(0, 1)[index][None], *arguments[1:])

        # The model's own forward, for what some families do to logits (soft caps, scales) is part of them; what its
        # output layer is given is cut down to the labelled positions, which the rest of the loss never sees.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(only_labelled)  # type: ignore[operator, union-attr]
        layers = decoder_layers(self.base) if self.recompute and torch.is_grad_enabled() else []
        if layers and virtual is not None:
            raise InputError("training.gradient_checkpointing: not with a prefix, which each layer must see once only")
        try:
            with recomputed(layers):
                out = self.base(
                    inputs_embeds=inputs, attention_mask=mask.long(), position_ids=positions, use_cache=False, **extra
                )
        finally:
            hook.remove()
        return out.logits[0].float(), index
