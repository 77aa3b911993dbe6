"""A short way through Llama-shaped decoders: packed weights, fused projections, the tree cache read in place.

It computes what transformers' `LlamaForCausalLM.forward` computes, from the same weights (adapters of LoRA added to
them), and is used by `beam_search` when the model is one; everything else goes through its own forward. On the CPU the
matrices are repacked once for oneDNN, which at the few rows of a beam search is two to three times faster than the
library's product; the packed copy is kept as long as the weights don't change. On a CPU that has no bfloat16
instructions a bfloat16 model is packed and computed in float32 (its keys and values stay in bfloat16): the library's
own product of bfloat16 is many times slower there.

Shapes: `B` studies, `K` beams, `n` tokens of a pass, `S` slots, `H` heads, `E` width of a head, `D` width, `V`
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from vlm.generation.packing import PackedLinear
from vlm.generation.tree_cache import HuggingFaceStepper, Slots
from vlm.generation.widening import computed_in, stamp_of

FEW = 4
"""Queries of a study below which they are attended more than once: the order of so few sums hangs on the threads."""

_READY: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], LeanWeights]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class LeanLayer:
    """One block: query, key and value in one matrix."""

    norm: Tensor
    attend_in: PackedLinear
    attend_out: PackedLinear
    mlp_norm: Tensor
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True, slots=True)
class LeanWeights:
    """A whole decoder.

    Args:
        layers: its blocks.
        norm: (D,) of the last normalisation.
        head: to logits.
        embedding: (V, D).
        epsilon: of the normalisations.
        heads, key_heads, width: numbers of heads, and E.
    """

    layers: tuple[LeanLayer, ...]
    norm: Tensor
    head: PackedLinear
    embedding: Tensor
    epsilon: float
    heads: int
    key_heads: int
    width: int


def supported(model: nn.Module) -> bool:
    """Whether the short way computes what the model computes."""
    base = _base(model)
    if type(base) is not LlamaForCausalLM or model.training:
        return False
    config = base.config
    scaled = (config.to_dict().get("rope_parameters") or {}).get("rope_type", "default")
    plain = config.hidden_act == "silu" and config.pretraining_tp == 1 and scaled != "dynamic"
    return plain and all(_readable(module) for module in base.modules())


def lean_weights(model: nn.Module) -> LeanWeights:
    """The model's weights, packed; made again when one of them has changed."""
    base = _base(model)
    stamp = stamp_of(model)
    known = _READY.get(base)
    if known is not None and known[0] == stamp:
        return known[1]
    weights = _pack(base)
    _READY[base] = (stamp, weights)
    return weights


def _base(model: nn.Module) -> nn.Module:
    """The Llama inside a PEFT wrapper."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


def _readable(module: nn.Module) -> bool:
    """Linear layers and LoRA over them; other adapters (and quantised layers) keep their own forward."""
    if isinstance(module, nn.Linear):
        return type(module) is nn.Linear
    name = type(module).__module__
    if not name.startswith(("peft.", "bitsandbytes.")):
        return True
    return name.startswith("peft.tuners.lora") and type(module).__name__ in ("Linear", "ParameterDict", "LoraVariant")


def _weight_of(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer, its active LoRA adapters added."""
    if type(module) is nn.Linear:
        return module.weight.detach(), module.bias
    base = module.get_base_layer()
    weight = base.weight.detach()
    if not module.merged and not module.disable_adapters:
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                weight = weight + module.get_delta_weight(adapter).to(weight.dtype)
    return weight, base.bias


def _joined(*modules: Any) -> PackedLinear:
    parts = [_weight_of(module) for module in modules]
    biases = [bias for _, bias in parts if bias is not None]
    return PackedLinear(torch.cat([weight for weight, _ in parts]), torch.cat(biases).detach() if biases else None)


@torch.inference_mode()
def _pack(base: Any) -> LeanWeights:
    dtype = computed_in(base.lm_head.weight)
    layers = tuple(
        LeanLayer(
            block.input_layernorm.weight.detach().to(dtype),
            _joined(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
            _joined(block.self_attn.o_proj),
            block.post_attention_layernorm.weight.detach().to(dtype),
            _joined(block.mlp.gate_proj),
            _joined(block.mlp.up_proj),
            _joined(block.mlp.down_proj),
        )
        for block in base.model.layers
    )
    config = base.config
    return LeanWeights(
        layers,
        base.model.norm.weight.detach().to(dtype),
        _joined(base.lm_head),
        base.get_input_embeddings().weight.detach(),
        config.rms_norm_eps,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )


class LeanLlamaStepper(HuggingFaceStepper):
    """`HuggingFaceStepper` for a model that `supported` accepts, without the library's forward."""

    def __init__(
        self,
        model: Any,
        inputs_embeds: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor,
        num_beams: int,
        max_new_tokens: int,
    ) -> None:
        super().__init__(model, inputs_embeds, input_ids, attention_mask, num_beams, max_new_tokens)
        self.weights = lean_weights(model)
        longest = attention_mask.shape[1] + max_new_tokens
        positions = torch.arange(longest, device=attention_mask.device)[None]
        base: Any = _base(model)
        rotary = base.model.rotary_emb
        self.computed = computed_in(self.weights.embedding)
        cosines, sines = rotary(self.weights.embedding[:1].to(self.computed), positions)
        self.cosines, self.sines = cosines[0], sines[0]  # (longest, E)

    def prefill(self) -> Tensor:
        """Logits after the prompt, (B, V) float32."""
        x = self.inputs_embeds if self.inputs_embeds is not None else self.weights.embedding[self.input_ids]
        assert x is not None
        positions = (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        visible = causal & self.attention_mask.bool()[:, None]  # (B, N, N)
        visible = visible | torch.eye(
            length, dtype=torch.bool, device=x.device
        )  # padding sees itself, so no row is empty
        hidden = self._blocks(x.to(self.computed), positions, visible, last=True)
        return self._logits(hidden[:, 0])

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits after one more token a beam, (B, K, V) float32."""
        self.slots.advance(parents)
        position = (self.slots.lengths + self.slots.depth - 1)[:, None].expand_as(tokens)
        embedded = self.weights.embedding[tokens].to(self.computed)
        return self._logits(self._blocks(embedded, position, self.slots.mask()))

    def _logits(self, hidden: Tensor) -> Tensor:
        hidden = functional.rms_norm(hidden, hidden.shape[-1:], self.weights.norm, self.weights.epsilon)
        return self.weights.head(hidden).float()

    def _blocks(self, x: Tensor, positions: Tensor, visible: Tensor, last: bool = False) -> Tensor:
        """All blocks over x (B, n, D), which see `visible` (B, n, S); of a prompt only the last token's state is
        kept."""
        weights, shape = self.weights, x.shape[-1:]
        cosines = self.cosines[positions][:, None]  # (B, 1, n, E)
        sines = self.sines[positions][:, None]
        attention = Attention(visible, self.slots, self.computed)
        for index, layer in enumerate(weights.layers):
            joined = layer.attend_in(functional.rms_norm(x, shape, layer.norm, weights.epsilon))
            joined = joined.view(*x.shape[:2], -1, weights.width).transpose(1, 2)  # (B, H + 2 G, n, E)
            rotated = _rotate(joined[:, : weights.heads + weights.key_heads], cosines, sines)
            query, key = rotated.split([weights.heads, weights.key_heads], 1)
            value = joined[:, weights.heads + weights.key_heads :]
            keys, values = self.layers[index].update(key.to(self.dtype), value.to(self.dtype))
            if last and index + 1 == len(weights.layers):
                query, x = query[:, :, -1:], x[:, -1:]
            x = layer.attend_out.plus(attention(query, keys, values), x)
            inner = functional.rms_norm(x, shape, layer.mlp_norm, weights.epsilon)
            x = layer.down.plus(layer.up.times(inner, layer.gate.silu(inner)), x)
        return x


class Attention:
    """What every layer of one pass attends with: the same tokens see the same slots.

    On the CPU each study is attended for itself, over its own slots and without its padding: nothing is computed for
    padding, and no rounding depends on the study's neighbours. On a GPU all studies are one call.

    Args:
        visible: (B, n, S) bool.
        slots: of the cache; tell where each study's prompt begins and its slots end.
        dtype: of the model.
    """

    def __init__(self, visible: Tensor, slots: Slots, dtype: torch.dtype) -> None:
        self.apart = visible.device.type == "cpu"
        if not self.apart:
            self.mask = _additive(visible, dtype)[:, None]  # (B, 1, n, S)
            return
        first = slots.new is None
        self.spans = [
            (begin, slots.prompt + top)
            for begin, top in zip(slots.begins, [0] * len(visible) if first else slots.tops, strict=True)
        ]
        self.begins = slots.begins if first else [0] * len(visible)
        self.masks = [
            _additive(visible[study, row:, begin:end], dtype)[None, None]
            for study, (row, (begin, end)) in enumerate(zip(self.begins, self.spans, strict=True))
        ]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, H, n, E) over (B, G, S, E) -> (B, n, H * E); a query of one token behind a longer prompt is its last."""
        batch, heads, length, width = query.shape
        grouped = heads != keys.shape[1]
        attend = functional.scaled_dot_product_attention
        if not self.apart:
            mask = self.mask[:, :, -length:]
            return (
                attend(query, keys, values, attn_mask=mask, enable_gqa=grouped)
                .transpose(1, 2)
                .reshape(batch, length, -1)
            )
        out = query.new_zeros(batch, length, heads * width)
        for study, ((begin, end), mask) in enumerate(zip(self.spans, self.masks, strict=True)):
            row = max(0, length - mask.shape[2])
            own = slice(study, study + 1)
            asking, seen = query[own, :, row:], mask[:, :, -length:]
            if length - row < FEW:
                times = -(-FEW // (length - row))
                asking, seen = asking.repeat(1, 1, times, 1), seen.repeat(1, 1, times, 1)
            found = attend(
                asking, keys[own, :, begin:end].to(query.dtype), values[own, :, begin:end].to(query.dtype),
                attn_mask=seen, enable_gqa=grouped,
            )  # fmt: skip
            out[study, row:] = found[0, :, : length - row].transpose(0, 1).flatten(1)
        return out


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary position embedding of (B, H, n, E)."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cosines, torch.cat([-second, first], -1), sines)
