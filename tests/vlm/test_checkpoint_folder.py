"""A checkpoint is one folder that reloads to the same logits; anything wrong with it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import draw_study, tiny_config

from vlm.assembly import starting_point
from vlm.checkpoint import load_checkpoint, save_checkpoint
from vlm.data.batches import Collator
from vlm.data.examples import ExampleBuilder
from vlm.types import InputError


@pytest.fixture
def checkpoint(language_folder: Path):  # type: ignore[no-untyped-def]
    made = starting_point(tiny_config(language_folder), None)
    torch.manual_seed(1)
    for parameter in made.model.parameters():  # no part keeps the value it was built with
        if parameter.dim() and not parameter.is_leaf:
            continue
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    made.model.eval()
    return made


def outputs(checkpoint, folder: Path) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    builder = ExampleBuilder(
        checkpoint.config.data,
        checkpoint.labels,
        checkpoint.config.model.detection.labels,
        checkpoint.graph,
        checkpoint.tokenizer,
    )
    batch = Collator(builder)([builder.build(draw_study(folder, n, views=1 + n % 2)) for n in range(3)])
    with torch.no_grad():
        out = checkpoint.model(batch)
    assert out.image.dense is not None
    assert out.image.evidence is not None
    return {
        "pooled": out.image.pooled,
        "findings": out.image.logits,
        "attention": out.image.evidence.attention,
        "gate": out.image.evidence.gate,
        "box classes": out.image.dense.logits,
        "boxes": out.image.dense.boxes_xyxy,
        "quality": out.image.dense.quality,
        "report": out.report_logits,
        "alignment": out.alignment,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_reloads_to_the_same_logits_in_every_part(checkpoint, tmp_path: Path, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    save_checkpoint(tmp_path / "first", checkpoint, dtype)
    first = load_checkpoint(tmp_path / "first")
    save_checkpoint(tmp_path / "second", first, dtype)
    second = load_checkpoint(tmp_path / "second")
    before, after, again = (outputs(c, tmp_path) for c in (checkpoint, first, second))
    for name, value in after.items():
        assert torch.equal(value, again[name]), name
        if dtype == torch.float32:
            assert torch.equal(value, before[name]), name
        else:
            assert torch.allclose(value, before[name], atol=0.05, rtol=0.05), name


def test_the_path_of_the_machine_is_not_kept(checkpoint, tmp_path: Path, language_folder: Path) -> None:  # type: ignore[no-untyped-def]
    save_checkpoint(tmp_path / "c", checkpoint)
    for file in (tmp_path / "c").rglob("*.json"):
        assert str(language_folder) not in file.read_text(), file.name


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_missing_file_is_named(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint_folder, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_checkpoint(folder)


def test_altered_file_is_named(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint_folder, tmp_path)
    (folder / "graph.json").write_text((folder / "graph.json").read_text() + " ")
    with pytest.raises(InputError, match=r"graph\.json is not the file that this checkpoint was saved with"):
        load_checkpoint(folder)


def test_foreign_file_is_named(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint_folder, tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not part of this checkpoint; remove it"):
        load_checkpoint(folder)


def test_path_outside_the_folder_is_refused(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint_folder, tmp_path)
    record = json.loads((folder / "checkpoint.json").read_text())
    record["files"]["../../secret"] = "0" * 64
    (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"\.\./\.\./secret is missing"):
        load_checkpoint(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a checkpoint: checkpoint\.json is missing"):
        load_checkpoint(tmp_path)


def test_saving_never_replaces_other_things(checkpoint, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are not a checkpoint"):
        save_checkpoint(tmp_path, checkpoint)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
