"""Gradient checkpointing: the same gradients in less memory, whatever is in training mode."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from families import write_family
from transformers import AutoModelForCausalLM

from vlm.models.adapters import AdapterSpec, add_adapter
from vlm.models.language import LanguageModel, decoder_layers, load_language_model
from vlm.models.lean_lora import quick_steps


def language(name: str, folder: Path, tokens: Path, kind: str = "lora") -> LanguageModel:
    model, _ = load_language_model(str(write_family(name, folder / name, tokens)))
    model.requires_grad_(False)
    torch.manual_seed(0)
    return LanguageModel(add_adapter(model, AdapterSpec(kind, r=2, alpha=4, dropout=0.2)))


def gradients(model: LanguageModel) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Of a loss, with respect to the prefix and to the adapter; and the bytes kept for the backward pass."""
    torch.manual_seed(1)
    prefix = torch.randn(2, 6, 32, requires_grad=True)
    ids = torch.randint(5, 300, (2, 8))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ones = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 8, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, index = model(prefix, ones[0], ids, ones[1], ids)
        loss = torch.nn.functional.cross_entropy(logits, ids.flatten()[index])
    learnt = [p for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    loss.backward()
    assert prefix.grad is not None
    return prefix.grad, [p.grad for p in learnt], sum(kept.values())  # type: ignore[misc]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "opt"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("quick", [True, False])
def test_gradients_are_the_same(name: str, training: bool, quick: bool, tmp_path: Path, language_folder: Path) -> None:
    model = language(name, tmp_path, language_folder).train(training)
    model.attend("cpu", torch.float32)
    with quick_steps(model, "cpu") if quick else nullcontext():
        plain, own, much = gradients(model)
        model.recompute = True
        again, others, little = gradients(model)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))
    assert little < 0.8 * much
    assert all("forward" not in vars(layer) for layer in decoder_layers(model.base))


def test_a_prefix_is_refused(tmp_path: Path, language_folder: Path) -> None:
    model = language("llama", tmp_path, language_folder, "prefix")
    model.recompute = True
    with pytest.raises(ValueError, match=r"gradient_checkpointing: not with a prefix"):
        gradients(model)


def test_layers_are_found_in_every_family(tmp_path: Path, language_folder: Path) -> None:
    for name in ("phi", "biogpt", "qwen3"):
        base = AutoModelForCausalLM.from_pretrained(write_family(name, tmp_path / name, language_folder))
        assert len(decoder_layers(base)) == 2
