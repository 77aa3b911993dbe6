"""What a run cannot learn from is said in one line before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import draw_study, tiny_config

from vlm import training, training_data
from vlm.assembly import starting_point
from vlm.config import DataSet, load_config
from vlm.data.examples import Example, ExampleBuilder
from vlm.types import InputError

STAGE = {
    "name": "all",
    "epochs": 1,
    "train": ["bridge", "knowledge"],
    "losses": ["report", "findings"],
    "batch_size": 2,
}


def unreported(example: Example) -> Example:
    empty = np.zeros(0, np.int64)
    return replace(example, report_ids=empty, report_labels=empty, report_weights=empty.astype(np.float32))


def unlabelled(example: Example) -> Example:
    return replace(example, finding_targets=np.full_like(example.finding_targets, np.nan))


def unlooked(example: Example) -> Example:
    return replace(example, box_known=np.zeros_like(example.box_known))


@pytest.mark.parametrize(
    ("change", "losses", "batch", "message"),
    [
        (unreported, ["report", "findings"], 2, r"stages\.all\.losses: 'report' has nothing.*no study has a report"),
        (unlabelled, ["report", "findings"], 2, r"stages\.all\.losses: 'findings' has nothing.*every label.*unknown"),
        (unlooked, ["findings", "detection"], 2, r"stages\.all\.losses: 'detection' has nothing.*give boxes"),
        (
            lambda e: e,
            ["report"],
            5,
            r"batch_size: 5, but an epoch has only 4.*--set training\.stages\.0\.batch_size=4",
        ),
    ],
)
def test_a_loss_without_anything_to_learn_from_is_named(  # type: ignore[no-untyped-def]
    change, losses, batch, message, language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**STAGE, "losses": losses, "batch_size": batch}
    data = [{"format": "phantom", "count": 4, "seed": 5}]
    config = tiny_config(language_folder, data__train=data, training__stages=[stage])
    made = starting_point(config, None)
    original = training_data.load_examples

    def changed(source: DataSet, builder: ExampleBuilder, show: bool) -> list[Example]:
        return [change(e) for e in original(source, builder, show)]

    monkeypatch.setattr(training_data, "load_examples", changed)
    with pytest.raises(InputError, match=message):
        training.train(made, tmp_path / "run")


def test_the_last_stage_is_checked_before_the_first_has_trained(language_folder: Path, tmp_path: Path) -> None:
    stages = [{**STAGE, "name": "one"}, {**STAGE, "name": "two", "batch_size": 9}]
    data = [{"format": "phantom", "count": 4, "seed": 5}]
    made = starting_point(tiny_config(language_folder, data__train=data, training__stages=stages), None)
    with pytest.raises(InputError, match=r"stages\.two\.batch_size: 9.*--set training\.stages\.1\.batch_size=4"):
        training.train(made, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    draw_study(tmp_path, 1)
    (tmp_path / "list.csv").write_text("id,image,split\na,study1_frontal.png,train\nb,study1_frontal.png,\n")
    with pytest.raises(InputError, match=r"list\.csv: has no study in split trian; it has train \(1\), without \(1\)"):
        training_data.open_set(DataSet(path=tmp_path / "list.csv", split=("trian",)))


@pytest.mark.parametrize("rate", ["0", "1e3"])
def test_a_learning_rate_out_of_bounds_is_refused(rate: str) -> None:
    path = Path(__file__).parents[2] / "configs" / "tiny.yaml"
    with pytest.raises(InputError, match=r"training\.stages\.0\.lr: .*(greater|less) than"):
        load_config(path, [f"training.stages.0.lr={rate}"])
