"""Every family and every adapter: train, save, reload to the same logits, generate; and the bases that don't fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, write_family
from peft import PeftModel
from tiny import tiny_config
from transformers import AutoModelForCausalLM

from vlm import training
from vlm.assembly import starting_point
from vlm.checkpoint import LANGUAGE_VARIABLE, Checkpoint, load_checkpoint
from vlm.config import Config
from vlm.data.batches import Collator
from vlm.data.examples import ExampleBuilder
from vlm.data.phantoms.chest_ct import phantom_study
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.models.adapters import TYPES, AdapterSpec, adapter_type, add_adapter, is_adapter
from vlm.models.language import fingerprint, frame, load_language_model
from vlm.pipeline import Pipeline
from vlm.types import InputError, Report

STAGE = {"name": "adapter", "epochs": 1, "train": ["bridge", "adapter"], "losses": ["report"], "batch_size": 4}


def config_of(language: Path, adapter: str, **options: object) -> Config:
    tree = tiny_config(language).model_dump(mode="json")
    tree["data"]["train"] = [{"format": "phantom", "count": 8, "seed": 5}]
    tree["data"]["validation"] = [{"format": "phantom", "count": 2, "seed": 6}]
    tree["training"]["stages"] = [STAGE]
    tree["model"]["language"].update(options)
    tree["model"]["language"]["adapter"].update({"type": adapter, "tokens": 4})
    return Config.model_validate(tree)


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    config = checkpoint.config
    builder = ExampleBuilder(
        config.data, checkpoint.labels, config.model.detection.labels, checkpoint.graph, checkpoint.tokenizer,
        begin=config.model.language.frame == "prompt",
    )  # fmt: skip
    batch = Collator(builder)([builder.build(phantom_study(9, i)) for i in range(3)])
    with torch.inference_mode():
        out = checkpoint.model.eval()(batch).report_logits
    assert out is not None
    return out


def train_and_reload(config: Config, out: Path) -> tuple[Checkpoint, Checkpoint]:
    made = starting_point(config, None)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    training.train(made, out)
    changed = {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(is_adapter(n) for n in changed)
    assert all(is_adapter(n) or n.startswith("bridge.") for n in changed)
    return made, load_checkpoint(out / "best")


@pytest.fixture(scope="module")
def llama(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("llama", tmp_path_factory.mktemp("families") / "llama", language_folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_saves_reloads_and_writes(family: str, language_folder: Path, tmp_path: Path) -> None:
    folder = write_family(family, tmp_path / family, language_folder, chat=family in ("qwen3", "gemma3"))
    made, again = train_and_reload(config_of(folder, "lora"), tmp_path / "run")
    torch.testing.assert_close(logits(again), logits(made), rtol=0, atol=2e-6)
    found = [report for _, report in Pipeline(again).reports([phantom_study(9, 0)])]
    assert isinstance(found[0], Report)


@pytest.mark.parametrize("kind,family", [(kind, family) for kind in TYPES for family in ("llama", "gpt2")])
def test_every_adapter_trains_and_loads_with_peft_alone(
    kind: str, family: str, language_folder: Path, tmp_path: Path
) -> None:
    folder = write_family(family, tmp_path / family, language_folder)
    made, again = train_and_reload(config_of(folder, kind), tmp_path / "run")
    assert adapter_type(again.model.language.model) == kind
    torch.testing.assert_close(logits(again), logits(made), rtol=0, atol=2e-6)
    alone = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "run/best/language", attn_implementation="eager"),
        str(tmp_path / "run/best/adapter"),
    ).eval()
    ids = torch.arange(5, 17)[None]
    with torch.inference_mode():
        torch.testing.assert_close(alone(ids).logits, made.model.language.model.eval()(ids).logits, rtol=0, atol=2e-6)
    assert isinstance(next(iter(Pipeline(again).reports([phantom_study(9, 0)])))[1], Report)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_bases_train_on_the_cpu(kind: str, language_folder: Path, tmp_path: Path) -> None:
    # bitsandbytes packs rows of 64 for its product on CPUs.
    llama = write_family("llama", tmp_path / "llama", language_folder, hidden_size=64)
    made, again = train_and_reload(config_of(llama, "lora", quantize=kind), tmp_path / "run")
    assert "bitsandbytes" in type(again.model.language.base.model.layers[0].mlp.up_proj.base_layer).__module__
    # 8-bit products round their inputs too, and rounding hangs on the last bit of the image features.
    torch.testing.assert_close(logits(again), logits(made), rtol=0, atol=1e-5 if kind == "nf4" else 5e-3)
    assert fingerprint(tmp_path / "run/best/language") == fingerprint(llama)


def test_a_bfloat16_base_keeps_its_type(llama: Path, tmp_path: Path) -> None:
    made, again = train_and_reload(config_of(llama, "lora", dtype="bfloat16"), tmp_path / "run")
    assert again.model.language.embedding.weight.dtype == torch.bfloat16
    torch.testing.assert_close(logits(again), logits(made))


def test_logits_are_the_models_own(language_folder: Path, tmp_path: Path) -> None:
    """Gemma 2 caps its logits: what training sees must be capped too."""
    folder = write_family("gemma2", tmp_path / "gemma2", language_folder)
    made = starting_point(config_of(folder, "none"), None)
    made.model.language.embedding.weight.data *= 40
    assert float(logits(made).abs().max()) <= 2.0


def test_a_chat_template_goes_around_images_and_prompt(language_folder: Path, tmp_path: Path) -> None:
    folder = write_family("qwen3", tmp_path / "chat", language_folder, chat=True)
    made = starting_point(config_of(folder, "lora"), None)
    head, tail = frame(made.tokenizer, "auto")
    assert made.tokenizer.decode(head) == "<|im_start|>user\n"
    assert made.tokenizer.decode(tail) == "<|im_end|>\n<|im_start|>assistant\n"
    language = made.model.language
    inside = torch.zeros(1, 3, language.width)
    whole, mask = language.framed(inside, torch.ones(1, 3, dtype=torch.bool))
    assert whole.shape[1] == len(head) + 3 + len(tail)
    assert bool(mask.all())
    assert torch.equal(whole[0, : len(head)], language.embed(torch.tensor(head)))


def test_a_base_that_is_only_named_must_be_the_same(
    llama: Path, language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, again = train_and_reload(config_of(llama, "lora", bundle="no"), tmp_path / "run")
    best = tmp_path / "run" / "best"
    assert not (best / "language").exists()
    assert again.config.model.language.path == str(llama)
    other = write_family("mistral", tmp_path / "other", language_folder)
    monkeypatch.setenv(LANGUAGE_VARIABLE, str(other))
    with pytest.raises(InputError, match=f"was trained on the language model {llama}"):
        load_checkpoint(best)
    monkeypatch.setenv(LANGUAGE_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=rf"not at .*nowhere; say where it lies: {LANGUAGE_VARIABLE}"):
        load_checkpoint(best)


def test_a_target_that_matches_nothing_is_named(llama: Path) -> None:
    config = config_of(llama, "lora")
    tree = config.model_dump(mode="json")
    tree["model"]["language"]["adapter"]["targets"] = ["q_proj", "query"]
    with pytest.raises(InputError, match=r"'query' matches no linear layer; this model has .*q_proj"):
        starting_point(Config.model_validate(tree), None)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("kind", TYPES)
def test_the_search_sees_the_adapter(kind: str, family: str, language_folder: Path, tmp_path: Path) -> None:
    """With any adapter, the short way of Llama included, the search returns what PEFT's own generate returns; with a
    prefix, what PEFT's own forward gives step by step (its generate leaves the prefix out, seen in 0.21.2)."""
    folder = write_family(family, tmp_path / family, language_folder)
    model, tokenizer = load_language_model(str(folder))
    wrapped = add_adapter(model, AdapterSpec(kind, r=4, tokens=5)).eval()
    torch.manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if is_adapter(name):
            parameter.data += 0.2 * torch.randn_like(parameter) if parameter.is_floating_point() else 0
    ids = torch.randint(5, 200, (2, 7))
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "prefix":
        one = BeamSettings(1, 8, eos_token_ids=(tokenizer.eos_token_id,))
        assert [list(own[0].tokens) for own in beam_search(wrapped, one, input_ids=ids)] == greedy(wrapped, ids, one)
        return
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        expected = wrapped.generate(
            input_ids=ids, attention_mask=mask, num_beams=3, do_sample=False, max_new_tokens=8, **ends
        )[:, 7:]
    found = beam_search(wrapped, BeamSettings(3, 8, eos_token_ids=(tokenizer.eos_token_id,)), input_ids=ids)
    assert [list(answers[0].tokens) for answers in found] == [
        [t for t in row if t != tokenizer.pad_token_id] for row in expected.tolist()
    ]


@torch.inference_mode()
def greedy(model: torch.nn.Module, ids: torch.Tensor, settings: BeamSettings) -> list[list[int]]:
    """The likeliest token of a whole forward pass, again and again; an end token is the last."""
    start = ids.shape[1]
    for _ in range(settings.max_new_tokens):
        best = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], 1)
    rows = ids[:, start:].tolist()
    ends = settings.eos_token_ids
    return [row[: next((i + 1 for i, t in enumerate(row) if t in ends), len(row))] for row in rows]
