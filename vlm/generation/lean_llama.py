"""A short way through Llama-shaped decoders: packed weights, fused projections, static buffers, the tree cache read in
place.

It computes what transformers' `LlamaForCausalLM.forward` computes, from the same weights (adapters of LoRA added to
them), and is used by `beam_search` when the model is one; everything else goes through its own forward. On the CPU the
matrices are repacked once for oneDNN, which at the few rows of a beam search is two to three times faster than the
library's product; the packed copy is kept as long as the weights don't change.

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

from vlm.generation.tree_cache import HuggingFaceStepper

ROWS = 16
"""Rows that packing is told to expect; any number is served, only 1 would be packed badly."""

_READY: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], LeanWeights]] = WeakKeyDictionary()


class PackedLinear:
    """x W^T + b with W repacked for the CPU; the library's product elsewhere.

    Args:
        weight: (out, in).
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        packs = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
        self.packed = packs and torch.backends.mkldnn.is_available()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LeanLayer:
    """One block: query, key and value in one matrix, gate and up in one."""

    norm: Tensor
    attend_in: PackedLinear
    attend_out: PackedLinear
    mlp_norm: Tensor
    mlp_in: PackedLinear
    mlp_out: PackedLinear


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
    stamp = tuple((parameter.data_ptr(), parameter._version) for parameter in model.parameters())
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
    layers = tuple(
        LeanLayer(
            block.input_layernorm.weight.detach(),
            _joined(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
            _joined(block.self_attn.o_proj),
            block.post_attention_layernorm.weight.detach(),
            _joined(block.mlp.gate_proj, block.mlp.up_proj),
            _joined(block.mlp.down_proj),
        )
        for block in base.model.layers
    )
    config = base.config
    return LeanWeights(
        layers,
        base.model.norm.weight.detach(),
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
        cosines, sines = rotary(self.weights.embedding[:1], positions)
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
        hidden = self._blocks(x.to(self.dtype), positions, self._additive(visible[:, None]), last=True)
        return self._logits(hidden[:, 0])

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits after one more token a beam, (B, K, V) float32."""
        self.slots.advance(parents)
        position = (self.slots.lengths + self.slots.depth - 1)[:, None].expand_as(tokens)
        hidden = self._blocks(self.weights.embedding[tokens], position, self._additive(self.slots.mask()[:, None]))
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        hidden = functional.rms_norm(hidden, hidden.shape[-1:], self.weights.norm, self.weights.epsilon)
        return self.weights.head(hidden).float()

    def _blocks(self, x: Tensor, positions: Tensor, mask: Tensor, last: bool = False) -> Tensor:
        """All blocks over x (B, n, D), mask (B, 1, n, S); of a prompt only the last token's state is kept."""
        weights, shape = self.weights, x.shape[-1:]
        cosines = self.cosines[positions][:, None]  # (B, 1, n, E)
        sines = self.sines[positions][:, None]
        for index, layer in enumerate(weights.layers):
            joined = layer.attend_in(functional.rms_norm(x, shape, layer.norm, weights.epsilon))
            joined = joined.view(*x.shape[:2], -1, weights.width).transpose(1, 2)  # (B, H + 2 G, n, E)
            rotated = _rotate(joined[:, : weights.heads + weights.key_heads], cosines, sines)
            query, key = rotated.split([weights.heads, weights.key_heads], 1)
            keys, values = self.layers[index].update(key, joined[:, weights.heads + weights.key_heads :])
            if last and index + 1 == len(weights.layers):
                query, mask, x = query[:, :, -1:], mask[:, :, -1:], x[:, -1:]
            grouped = weights.heads != weights.key_heads
            mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=grouped)
            x = x + layer.attend_out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))
            gate, up = layer.mlp_in(functional.rms_norm(x, shape, layer.mlp_norm, weights.epsilon)).chunk(2, -1)
            x = x + layer.mlp_out(functional.silu(gate).mul_(up))
        return x


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary position embedding of (B, H, n, E)."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cosines, torch.cat([-second, first], -1), sines)
