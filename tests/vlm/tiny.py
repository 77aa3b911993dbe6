"""Tiny parts for tests: a random decoder folder with its tokenizer, a configuration, studies with pictures that the
test draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knowledge.ontology import Certainty
from vlm.config import Config
from vlm.types import Box, Finding, Modality, Study, StudyImage, View

TEXTS = [
    "The heart is normal in size. The lungs are clear. No pneumothorax or pleural effusion.",
    "There is a small nodule in the right upper lobe. No acute disease.",
    "Modality: xray.\nIndication: Chest pain.\nFindings: Mild cardiomegaly XXXX.\nImpression: Normal chest.",
    "A calcification and an infiltrate are seen in the left lower lobe with a mass.",
]


def write_language(folder: Path) -> Path:
    """A random Llama of 4 layers' worth of nothing, with a byte-level tokenizer, as a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "XXXX"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_config(language: Path, **changes: object) -> Config:
    """A model of about 0.3 million parameters on 64-pixel images."""
    tree = {
        "data": {"image_size": {"default": 64}, "max_report_tokens": 60, "max_prompt_tokens": 48},
        "model": {
            "width": 32,
            "visual_grid": 2,
            "dropout": 0.0,
            "vision": {"name": "mobilenetv3_small_050"},
            "hierarchy": {"grid": 2, "heads": 2},
            "knowledge": {"heads": 2, "layers": 1},
            "language": {"path": str(language), "adapter": {"r": 4, "dropout": 0.0}},
        },
        "training": {"dtype": "float32"},
        "generation": {"max_new_tokens": 24, "num_beams": 2},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value  # type: ignore[index]
    return Config.model_validate(tree)


def draw_study(folder: Path, number: int, lesion: bool = True, views: int = 2) -> Study:
    """A grey gradient with a white disc, and a report of it."""
    rng = np.random.default_rng(number)
    images = []
    for view in (View.FRONTAL, View.LATERAL)[:views]:
        pixels = np.tile(np.linspace(20, 120, 80), (96, 1)) + rng.normal(0, 6, (96, 80))
        if lesion and view is View.FRONTAL:
            cv2.circle(pixels, (20, 40), 8, 240.0, -1)
        path = folder / f"study{number}_{view.value}.png"
        cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8))
        images.append(StudyImage(path=path, view=view, modality=Modality.XRAY))
    stated = Certainty.PRESENT if lesion else Certainty.ABSENT
    return Study(
        id=f"study{number}",
        images=images,
        clinical={"indication": "Chest pain."},
        findings=(
            Finding("nodule", stated),
            Finding("normal", Certainty.ABSENT if lesion else Certainty.PRESENT),
        ),
        boxes=(Box((12.0, 32.0, 28.0, 48.0), "nodule"),) if lesion else (),
        report={
            "findings": "There is a nodule in the right lung."
            if lesion
            else "The lungs are clear. The heart is normal.",
            "impression": "Nodule." if lesion else "Normal chest.",
        },
    )
