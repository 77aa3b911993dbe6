"""One forward pass for all beams of all studies: the prompt's keys and values are kept once a study, beams are paths in
a tree.

The cache of a study holds its prompt (N slots) and one slot for every generated token that some living beam still has
among its ancestors. The K newest tokens of a study are K queries of one sequence; a 4-D attention mask lets each see
the prompt and its own ancestors. Reordering beams reorders rows of that mask, never keys or values, and the slots of
dead branches are written again.

Worked example, K = 2 and a prompt of 3 in slots 0 to 2: after two steps beam 0 has written `a b` and beam 1 `a c`, both
behind the same `a` in slot 3; slot 4 held a token whose beam has died, `b` is in slot 5 and `c` in slot 6. Beam 0 sees
slots 0 1 2 3 5, beam 1 sees 0 1 2 3 6, and the next tokens take the slots 4 and 7.

Departs from SpecInfer's tree attention (Miao et al. 2024) in that slots are reused and nothing is ever verified or
rolled back.

Shapes: `B` studies, `K` beams, `N` prompt tokens, `S` slots, `H` heads, `E` width of a head, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from peft import PeftModel, PeftType
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vlm.compat import cache_argument
from vlm.generation.packing import PackedLayers, packed_layers
from vlm.types import InputError

ATTENTION = ("eager", "sdpa")
"""Attention implementations of transformers that take a 4-D mask."""


class Stepper(Protocol):
    """What the search asks of a language model."""

    def prefill(self) -> Tensor:
        """Read the prompt; logits of the first new token, (B, V) float32."""

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append a token to each beam; `tokens`, `parents` (B, K) int64, parents count in the last step's beams; (B, K,
        V)."""


class Slots:
    """Which slots of the cache are taken, and by whom.

    Args:
        prompt_mask: (B, N) bool, False at padding.
        num_beams: K.
        max_new_tokens: longest path.
    """

    def __init__(self, prompt_mask: Tensor, num_beams: int, max_new_tokens: int) -> None:
        batch, self.prompt = prompt_mask.shape
        device = prompt_mask.device
        self.room = num_beams * max_new_tokens
        self.lengths = prompt_mask.sum(-1)  # (B,)
        self.prompt_mask = prompt_mask
        self.ancestors = torch.zeros(batch, num_beams, self.room, dtype=torch.bool, device=device)  # (B, K, S)
        self.positions = torch.zeros(batch, self.room, dtype=torch.long, device=device)  # (B, S)
        self.rows = torch.arange(batch, device=device)[:, None]  # (B, 1)
        self.beams = torch.arange(num_beams, device=device)[None, :]  # (1, K)
        self.high = 0  # slots in use, the prompt not counted
        self.tops = [0] * batch  # the same, of each study
        self.begins: list[int] = prompt_mask.to(torch.uint8).argmax(-1).tolist()  # where each prompt's padding ends
        self.depth = 0
        self.new: Tensor | None = None  # (B, K) slots of this step, the prompt counted

    def advance(self, parents: Tensor) -> None:
        """Give every beam a slot that no living beam needs, `parents` (B, K)."""
        num_beams = parents.shape[1]
        reach = min(self.high + num_beams, self.room)
        live = self.ancestors[:, :, :reach].gather(1, parents[:, :, None].expand(-1, -1, reach))
        taken = live.any(1)  # (B, S)
        free = taken.to(torch.uint8).argsort(dim=-1, stable=True)[:, :num_beams]  # lowest free slots first
        self.ancestors[:, :, :reach] = live
        self.ancestors[self.rows, self.beams, free] = True
        self.positions[self.rows, free] = (self.lengths + self.depth)[:, None]
        self.tops = [max(top, newest + 1) for top, newest in zip(self.tops, free.amax(1).tolist(), strict=True)]
        self.high = max(self.tops)
        self.depth += 1
        self.new = free + self.prompt

    def mask(self) -> Tensor:
        """What each beam may see, (B, K, N + high) bool."""
        num_beams = self.ancestors.shape[1]
        prompt = self.prompt_mask[:, None, :].expand(-1, num_beams, -1)
        return torch.cat([prompt, self.ancestors[:, :, : self.high]], dim=-1)

    def distances(self) -> Tensor:
        """Tokens between each beam's newest token and each slot, (B, N + high); for sliding windows."""
        prompt = (self.prompt_mask.long().cumsum(-1) - 1).clamp(min=0)
        positions = torch.cat([prompt, self.positions[:, : self.high]], dim=-1)
        return (self.lengths + self.depth - 1)[:, None] - positions


class TreeLayer(CacheLayerMixin):
    """Keys and values of one layer in slots; the prompt is written once, then K slots a step.

    Args:
        slots: shared by all layers. before: keys and values (B, H, n, E) that stand before the prompt (a trained
            prefix); its n slots count as the prompt's.
    """

    def __init__(self, slots: Slots, before: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.slots = slots
        self.before = before
        self.ahead = before[0].shape[2] if before is not None else 0  # n

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the prompt; the rest grows as beams part."""
        batch, heads, length, width = key_states.shape
        size = self.ahead + length + min(self.slots.room, 64)
        # (B, S, H, E): a slot is contiguous, so a step writes K rows and nothing moves.
        self.keys = key_states.new_zeros(batch, size, heads, width)
        self.values = value_states.new_zeros(batch, size, value_states.shape[1], value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values (B, H, n, E) and return all in use, (B, H, N + high, E)."""
        if not self.is_initialized or self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        used = self.slots.prompt + self.slots.high
        if self.slots.new is None:
            if self.before is not None:
                key_states = torch.cat([self.before[0].to(key_states.dtype), key_states], 2)
                value_states = torch.cat([self.before[1].to(value_states.dtype), value_states], 2)
            self.keys[:, :used] = key_states.transpose(1, 2)
            self.values[:, :used] = value_states.transpose(1, 2)
            return key_states, value_states
        if used > self.keys.shape[1]:
            self._grow(used)
        self.keys[self.slots.rows, self.slots.new] = key_states.transpose(1, 2)
        self.values[self.slots.rows, self.slots.new] = value_states.transpose(1, 2)
        return self.keys[:, :used].transpose(1, 2), self.values[:, :used].transpose(1, 2)

    def _grow(self, used: int) -> None:
        size = min(used + max(64, (used - self.slots.prompt) // 2), self.slots.prompt + self.slots.room)
        assert self.keys is not None
        assert self.values is not None
        more = size - self.keys.shape[1]
        self.keys = torch.cat([self.keys, self.keys.new_zeros(self.keys.shape[0], more, *self.keys.shape[2:])], 1)
        self.values = torch.cat(
            [self.values, self.values.new_zeros(self.values.shape[0], more, *self.values.shape[2:])], 1
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask; asked for the prompt only, later masks are given whole."""
        return self.ahead + query_length, 0

    def get_seq_length(self) -> int:
        """Slots in use."""
        return self.slots.prompt + self.slots.high if self.is_initialized else self.ahead

    def get_max_length(self) -> int:
        """Slots that there can be."""
        return self.slots.prompt + self.slots.room


def prompted(model: Any) -> bool:
    """Whether PEFT wrapped the model with a trained prompt or prefix."""
    return isinstance(model, PeftModel) and bool(model.active_peft_config.is_prompt_learning)


def split_prefix(model: Any, batch: int) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """The causal LM without PEFT's wrapper where that holds a prefix (Li and Liang 2021), and the prefix's keys and
    values by layer.

    Raises:
        InputError: another kind of trained prompt.
    """
    if not prompted(model):
        return model, []
    if model.active_peft_config.peft_type != PeftType.PREFIX_TUNING:
        raise InputError(f"adapter {model.active_peft_config.peft_type.value}: of trained prompts, prefixes are read")
    found = model.get_prompt(batch_size=batch)
    return model.get_base_model(), [(layer.keys, layer.values) for layer in found.layers]


class HuggingFaceStepper:
    """Any Hugging Face causal LM, through its own forward (PEFT-wrapped ones too).

    Args:
        model: in evaluation mode, attention "sdpa" or "eager".
        inputs_embeds: (B, N, D), or None when `input_ids` is given.
        input_ids: (B, N) int64, or None.
        attention_mask: (B, N), 0 at left padding.
        num_beams: K.
        max_new_tokens: longest answer.

    Raises:
        InputError: the model's attention takes no 4-D mask, or it keeps a recurrent state.
    """

    def __init__(
        self,
        model: Any,
        inputs_embeds: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor,
        num_beams: int,
        max_new_tokens: int,
    ) -> None:
        model, before = split_prefix(model, len(attention_mask))
        config = model.config.get_text_config()
        kind = config._attn_implementation
        if kind not in ATTENTION:
            raise InputError(
                f"attn_implementation {kind!r}: beam search needs 'sdpa' or 'eager'; load the model with one of them"
            )
        settings = config.to_dict()
        layer_types = set(settings.get("layer_types") or ())
        foreign = layer_types - {"full_attention", "sliding_attention"}
        if foreign:
            raise InputError(
                f"layers of type {sorted(foreign)}: beam search needs a model whose layers all use attention"
            )
        self.window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
        self.by_type = "sliding_attention" in layer_types
        self.model, self.inputs_embeds, self.input_ids = model, inputs_embeds, input_ids
        self.ahead = before[0][0].shape[2] if before else 0
        self.attention_mask = torch.nn.functional.pad(attention_mask, (self.ahead, 0), value=1)
        self.slots = Slots(self.attention_mask.bool(), num_beams, max_new_tokens)
        count = config.num_hidden_layers
        pairs: list[tuple[Tensor, Tensor] | None] = [*before] if before else [None] * count
        self.layers = [TreeLayer(self.slots, pair) for pair in pairs]
        self.cached: dict[str, Any] = {cache_argument(model): Cache(layers=list(self.layers))}
        self.dtype: torch.dtype = model.dtype
        self.packed: PackedLayers | None = None  # made at the first step

    def prefill(self) -> Tensor:
        """Logits after the prompt, (B, V) float32."""
        positions = (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            input_ids=self.input_ids,
            inputs_embeds=self.inputs_embeds,
            attention_mask=self.attention_mask,
            position_ids=positions[:, self.ahead :],
            use_cache=True,
            **self.cached,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits after one more token a beam, (B, K, V) float32."""
        self.slots.advance(parents)
        position = self.slots.lengths + self.slots.depth - 1
        if self.packed is None:
            self.packed = packed_layers(self.model)
        with self.packed.in_place():
            output = self.model(
                input_ids=tokens,
                attention_mask=self._mask(),
                position_ids=position[:, None].expand_as(tokens),
                use_cache=True,
                **self.cached,
            )
        return output.logits.float()

    def _mask(self) -> Tensor | dict[str, Tensor]:
        visible = self.slots.mask()[:, None]  # (B, 1, K, S)
        if self.window is None:
            return self._additive(visible)
        near = visible & (self.slots.distances() < self.window)[:, None, None, :]
        if self.by_type:
            return {"full_attention": self._additive(visible), "sliding_attention": self._additive(near)}
        return self._additive(near)

    def _additive(self, visible: Tensor) -> Tensor:
        return torch.zeros_like(visible, dtype=self.dtype).masked_fill_(~visible, torch.finfo(self.dtype).min)
