"""Tiny random language models of the families that beam search is checked against."""

from __future__ import annotations

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 67
FAMILIES = ("llama", "qwen3", "gpt2", "gemma", "phi", "opt")


def tiny(family: str, vocabulary: int = VOCABULARY) -> torch.nn.Module:
    """A random model, sharpened so that beams differ by more than rounding."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": vocabulary}
    common = {**ends, "max_position_embeddings": 256}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**wide, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    match family:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**common, **grouped))
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**common, **grouped))
        case "gemma":
            model = GemmaForCausalLM(GemmaConfig(**common, **grouped))
        case "phi":
            model = PhiForCausalLM(PhiConfig(**common, **wide, intermediate_size=48))
        case "opt":
            model = OPTForCausalLM(OPTConfig(**common, **wide, ffn_dim=48, word_embed_proj_dim=32))
        case _:
            model = GPT2LMHeadModel(GPT2Config(**ends, n_embd=32, n_layer=2, n_head=4, n_positions=256))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()
