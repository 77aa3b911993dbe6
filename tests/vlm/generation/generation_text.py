"""Tokenizers of both kinds over a few report sentences, and a plain-Python reading of constraints to compare with."""

from __future__ import annotations

import random
import re
from functools import cache

import torch
from generation_models import tiny
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

REPORTS = (
    "The heart is normal in size. The lungs are clear. No pneumothorax or pleural effusion is seen.",
    "There is cardiomegaly with pulmonary edema. Small left pleural effusion. Pneumothorax is not seen.",
    "No acute disease. Mild degenerative changes of the spine. No change in the small effusion.",
    "Right upper lobe mass. Heart size is normal without pneumothorax, effusion or consolidation.",
)


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as the embedded decoder's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(REPORTS * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@cache
def sentence_piece() -> PreTrainedTokenizerFast:
    """BPE over pieces with a `▁` for the space, as Llama 2's and Gemma's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-:\n▁"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials[:4], initial_alphabet=letters)
    tokenizer.train_from_iterator(
        [word for report in REPORTS * 5 for word in (" " + report).replace(" ", " ▁").split(" ")], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@cache
def random_model(kind: str) -> torch.nn.Module:
    """A tiny random Llama over a tokenizer's vocabulary."""
    return tiny("llama", len({"byte": byte_level, "piece": sentence_piece}[kind]()))


def appears(text: str, terms: tuple[str, ...]) -> bool:
    """Whether a term stands in the text as words."""
    return any(
        re.search(rf"(?<![a-z0-9\x80-\uffff]){re.escape(term.lower())}(?![a-z0-9\x80-\uffff])", plain(text))
        for term in terms
    )


def plain(text: str) -> str:
    """Lower case, every white space a space."""
    return re.sub(r"[\t\n\x0b\x0c\r]", " ", text.lower())


def draw_prompt(model: torch.nn.Module, batch: int, draw: random.Random) -> torch.Tensor:
    """Random prompt ids (B, 4)."""
    torch.manual_seed(draw.randint(0, 10**6))
    return torch.randint(3, model.config.vocab_size, (batch, 4))
