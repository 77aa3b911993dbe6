"""Adapters on their own: exported, put on a base, merged, and refused where they don't belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import write_family
from test_language_families import config_of, logits
from typer.testing import CliRunner

from vlm import training
from vlm.adapter_folder import apply_adapter, export_adapter, merge_adapter
from vlm.assembly import starting_point
from vlm.checkpoint import load_checkpoint, save_checkpoint
from vlm.cli.adapter import app
from vlm.config import Config
from vlm.types import InputError


@pytest.fixture(scope="module")
def folders(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An untrained base, a fine-tuned checkpoint that started from it, and its exported adapter."""
    root = tmp_path_factory.mktemp("adapters")
    base = starting_point(config_of(language_folder, "lora"), None)
    save_checkpoint(root / "base", base)
    tree = config_of(language_folder, "lora").model_dump(mode="json")
    del tree["model"]
    tree["start"] = str(root / "base")
    training.train(starting_point(Config.model_validate(tree), None), root / "run")
    export_adapter(load_checkpoint(root / "run/best"), root / "adapter", load_checkpoint(root / "base"))
    return root / "base", root / "run/best", root / "adapter"


def test_base_and_adapter_make_the_fine_tuned_checkpoint(folders: tuple[Path, Path, Path]) -> None:
    base, tuned, adapter = folders
    found = apply_adapter(load_checkpoint(base), adapter)
    expected = load_checkpoint(tuned)
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=2e-6)
    assert not torch.allclose(logits(load_checkpoint(base)), logits(expected), atol=1e-4)
    assert found.calibration == expected.calibration
    parts = json.loads((adapter / "radscribe.json").read_text())
    assert parts["base"] == load_checkpoint(base).hash


def test_only_what_changed_is_written(folders: tuple[Path, Path, Path]) -> None:
    _, _, adapter = folders
    result = CliRunner().invoke(app, ["info", str(adapter)])
    assert result.exit_code == 0
    assert "bridge" in result.output
    assert "vision" not in result.output


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_a_merged_checkpoint_writes_the_same(kind: str, language_folder: Path, tmp_path: Path) -> None:
    made = starting_point(config_of(language_folder, kind), None)
    torch.manual_seed(2)
    for name, parameter in made.model.language.named_parameters():
        if "lora_B" in name or "ia3_l" in name:  # random: one constant would drown the activations, and rounding grow
            parameter.data += 0.02 * torch.randn_like(parameter)
    save_checkpoint(tmp_path / "tuned", made)
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "tuned"), "--out", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    merged = load_checkpoint(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    torch.testing.assert_close(logits(merged), logits(load_checkpoint(tmp_path / "tuned")), rtol=0, atol=1e-5)


def test_adapters_are_refused_where_they_do_not_belong(
    folders: tuple[Path, Path, Path], language_folder: Path, tmp_path: Path
) -> None:
    base, tuned, adapter = folders
    other = write_family("mistral", tmp_path / "mistral", language_folder)
    foreign = starting_point(config_of(other, "lora"), None)
    with pytest.raises(InputError, match="another language model"):
        apply_adapter(foreign, adapter)
    graph = load_checkpoint(base)
    record = json.loads((adapter / "radscribe.json").read_text())
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in adapter.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    record["graph_hash"] = "0" * 64
    (changed / "radscribe.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"another knowledge graph than the base checkpoint \(hash 000000000000"):
        apply_adapter(graph, changed)
    (changed / "parts.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"parts\.safetensors is missing or altered"):
        apply_adapter(graph, changed)
    with pytest.raises(InputError, match=r"is no adapter: adapter_config\.json is missing"):
        apply_adapter(graph, tmp_path / "mistral")
    with pytest.raises(InputError, match="choose a new folder"):
        export_adapter(load_checkpoint(tuned), adapter)


def test_a_prefix_cannot_be_merged(language_folder: Path) -> None:
    with pytest.raises(InputError, match="a prefix is not a change of weights"):
        merge_adapter(starting_point(config_of(language_folder, "prefix"), None))
    with pytest.raises(InputError, match="no adapter to merge"):
        merge_adapter(starting_point(config_of(language_folder, "none"), None))
