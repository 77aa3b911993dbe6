"""A tiny random model of every family that is supported, as Hugging Face folders with the tokenizer of `tiny.py`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

SIZE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 512,
}  # fmt: skip
WIDE = {k: v for k, v in SIZE.items() if k != "num_key_value_heads"}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZE),
    "qwen2": ("Qwen2Config", SIZE),
    "qwen3": ("Qwen3Config", {**SIZE, "head_dim": 8}),
    "mistral": ("MistralConfig", SIZE),
    "gemma": ("GemmaConfig", {**SIZE, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**SIZE, "head_dim": 16, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", {**SIZE, "head_dim": 16}),
    "phi": ("PhiConfig", WIDE),
    "phi3": ("Phi3Config", SIZE),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "opt": ("OPTConfig", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
        "max_position_embeddings": 512, "word_embed_proj_dim": 32,
    }),
    "biogpt": ("BioGptConfig", WIDE),
}  # fmt: skip

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_family(name: str, folder: Path, language: Path, chat: bool = False, **changes: Any) -> Path:
    """Writes a folder.

    Args:
        name: of `FAMILIES`. folder: new. language: a folder with a tokenizer. chat: give it a chat template.
        changes: to the configuration.
    """
    kind, options = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(language)
    ends = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("pad", "bos", "eos")}
    config = getattr(transformers, kind)(vocab_size=len(tokenizer), **ends, **{**options, **changes})
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def copy_family(source: Path, target: Path) -> Path:
    """A second folder with the same files."""
    shutil.copytree(source, target)
    return target
