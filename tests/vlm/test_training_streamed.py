"""Training on prepared sets: streamed in pools beside a set in memory, stopped and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import draw_study, tiny_config

from vlm import training
from vlm.assembly import starting_point
from vlm.checkpoint import load_checkpoint
from vlm.config import Config
from vlm.data.layouts.tabular import write_studies
from vlm.data.packing import Packing
from vlm.data.prepare import prepare

STAGES = [
    {"name": "vision", "epochs": 2, "train": ["vision"], "losses": ["findings", "detection"], "batch_size": 4},
    {"name": "adapter", "epochs": 1, "train": ["bridge", "adapter"], "losses": ["report"], "batch_size": 4},
]


@pytest.fixture
def config(language_folder: Path, tmp_path: Path) -> Config:
    """Twenty-four studies in shards of three, of which six are in play at a time, and four phantoms."""
    (tmp_path / "source").mkdir()
    studies = [draw_study(tmp_path / "source", i, lesion=i % 2 == 0, views=1) for i in range(24)]
    for number, study in enumerate(studies):
        study.split = "val" if number >= 20 else "train"
        study.report = None if number % 5 == 4 else study.report
    write_studies(tmp_path / "source" / "studies.jsonl", studies)
    prepare([(tmp_path / "source", "auto")], tmp_path / "prepared", Packing(size=64), shard=3)
    tree = tiny_config(language_folder).model_dump(mode="json")
    place = {"path": f"file://{tmp_path / 'prepared'}"}
    tree["data"] |= {"buffer": 6, "train": [{**place, "split": ["train"]}, {"format": "phantom", "count": 4}]}
    tree["data"]["validation"] = [{**place, "split": ["val"]}]
    tree["training"]["stages"] = STAGES
    return Config.model_validate(tree)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("steps", [3, 14])
def test_a_resumed_run_repeats_the_unbroken_one(
    config: Config, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []
    original = training.StageLoop._step

    def watched(self, epoch, examples):  # type: ignore[no-untyped-def]
        if len(seen) == stop:
            raise Stopped
        seen.append(tuple(e.id for e in examples))
        return original(self, epoch, examples)

    monkeypatch.setattr(training.StageLoop, "_step", watched)
    stop = -1
    training.train(starting_point(config, None), tmp_path / "whole")
    unbroken, seen = seen, []
    first_epoch = [name for batch in unbroken[: (20 + 4) // 4 + 3] for name in batch]
    assert {f"study{i}" for i in range(20)} <= set(first_epoch)
    stop = steps
    with pytest.raises(Stopped):
        training.train(starting_point(config, None), tmp_path / "broken")
    stop = -1
    training.train(starting_point(config, None), tmp_path / "broken")
    assert seen[-1] == unbroken[-1]
    whole, broken = (dict(load_checkpoint(tmp_path / n / "best").model.named_parameters()) for n in ("whole", "broken"))
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
