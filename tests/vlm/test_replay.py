"""Continued training: old studies in every batch, what is measured on them, what is kept of the start's calibration,
and the loss that holds a run to its start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_processes import TWO, losses_of, vlm, write_config
from tiny import tiny_config

from vlm import training
from vlm.assembly import starting_point
from vlm.checkpoint import Calibration, load_checkpoint, save_checkpoint
from vlm.config import Config, Replay, parse_config
from vlm.data.examples import Example
from vlm.data.replay import replay_plan, shares
from vlm.fitting import estimate
from vlm.losses import retention_loss
from vlm.training_data import labels_kept
from vlm.types import InputError
from vlm.validation import kept_calibration
from vlm.weightless import without_weights

IMAGE = {
    "name": "image",
    "epochs": 2,
    "train": ["pyramid", "knowledge"],
    "losses": ["findings", "knowledge"],
    "batch_size": 4,
}
TEXT = {"name": "text", "epochs": 1, "train": ["bridge", "adapter"], "losses": ["report"], "batch_size": 4}
OLD = {
    "sets": [{"format": "phantom", "count": 9, "seed": 7}],
    "share": 0.25,
    "validation": [{"format": "phantom", "count": 12, "seed": 8}],
}


def config_for(
    language: Path, replay: dict[str, Any] | None = OLD, stages: Any = (IMAGE, TEXT), **loss: float
) -> Config:
    tree = tiny_config(language).model_dump(mode="json")
    tree["data"] |= {
        "train": [{"format": "phantom", "count": 7, "seed": 5}],
        "validation": [{"format": "phantom", "count": 4, "seed": 6}],
        "replay": replay,
        "augment": False,
    }
    tree["training"]["stages"] = list(stages)
    tree["training"]["loss"].update(loss)
    return parse_config(tree, "test.yaml")


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def example(number: int, size: int = 64, length: int = 5) -> Example:
    nothing = np.zeros(0)
    return Example(
        f"e{number}", size, nothing, nothing, (), (), None, {}, "findings", np.zeros(length), nothing, nothing,  # type: ignore[arg-type]
        nothing, (), (), nothing,
    )  # fmt: skip


def names(plan: tuple[Any, list[list[int]]]) -> list[list[str]]:
    examples, batches = plan
    return [[examples[i].id for i in batch] for batch in batches]


def test_every_batch_holds_its_share_drawn_anew() -> None:
    """12 new studies at 6 a batch of 8: two batches with 2 old ones each, of sets that compare 3 to 1."""
    new = [(1.0, [example(n, length=n) for n in range(12)])]
    kept = [(1.0, [example(n) for n in range(100, 130)]), (1.0, [example(n) for n in range(200, 210)])]
    drawn = []
    for epoch in range(3):
        plan = names(replay_plan(new, kept, 2, 8, np.random.default_rng([0, epoch]), 100))
        assert plan == names(replay_plan(new, kept, 2, 8, np.random.default_rng([0, epoch]), 100))
        old = [[n for n in batch if int(n[1:]) >= 100] for batch in plan]
        assert [len(batch) for batch in plan] == [8, 8]
        assert [len(o) for o in old] == [2, 2]
        assert sorted(n for batch in plan for n in batch if int(n[1:]) < 100) == sorted(f"e{n}" for n in range(12))
        assert sum(int(n[1:]) >= 200 for o in old for n in o) == 1
        drawn.append(sorted(n for o in old for n in o))
    assert len({tuple(d) for d in drawn}) == 3


def test_old_images_of_another_size_get_batches_of_their_own() -> None:
    new, kept = [(1.0, [example(n) for n in range(9)])], [(1.0, [example(n, 96) for n in range(100, 103)])]
    plan = names(replay_plan(new, kept, 1, 4, np.random.default_rng(0), 100))
    assert sorted(map(len, plan)) == [3, 3, 3, 3]
    assert sorted(n for batch in plan for n in batch if len(n) == 4) == ["e100", "e101", "e102"]
    assert all(len({len(n) for n in batch}) == 1 for batch in plan)


def test_fewer_old_studies_than_a_share_are_seen_again() -> None:
    plan = names(
        replay_plan(
            [(1.0, [example(n) for n in range(12)])], [(1.0, [example(100)])], 1, 4, np.random.default_rng(0), 9
        )
    )
    assert [sum(n == "e100" for n in batch) for batch in plan] == [1, 1, 1, 1]


def test_shares_add_up() -> None:
    assert shares([3, 1], 4) == [3, 1]
    assert shares([1, 1, 1], 4) == [2, 1, 1]
    assert shares([2, 0], 3) == [3, 0]


@pytest.fixture(scope="module")
def run(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay") / "run"
    start = _start(language_folder, out)
    training.train(starting_point(config_for(language_folder, retention=1.0), start), out)
    return out


def _start(language: Path, out: Path) -> Path:
    folder = out.parent / "start"
    if not folder.is_dir():
        checkpoint = starting_point(config_for(language, None), None)
        checkpoint.calibration = Calibration(
            {"mass": (2.0, 1.0), "edema": (3.0, 0.5)}, {"edema": 0.6}, {"edema": 0.02}, (2.0, 0.1), 0.4,
            {"mr": ["mass"], "xray": ["tuberculosis"]}, {"edema": 0.3}, (1.5, 0.2),
        )  # fmt: skip
        save_checkpoint(folder, checkpoint)
    return folder


def test_forgetting_is_measured_from_the_start(run: Path) -> None:
    epochs = [r for r in rows(run) if "epoch" in r]
    assert [(r["stage"], r["epoch"]) for r in epochs] == [
        ("image", 0), ("image", 1), ("image", 2), ("text", 0), ("text", 1)
    ]  # fmt: skip
    assert all("old_loss" in r for r in epochs)
    assert {"old_auc", "loss"} <= set(epochs[1])
    assert "loss" not in epochs[0]
    # 7 new studies at 3 a batch are 3 steps an epoch (without replay they would be 2).
    assert [r["step"] for r in epochs] == [0, 3, 6, 0, 3]
    assert "train_retention" in epochs[1]
    assert (run / "curve.png").stat().st_size > 1000


def test_the_start_keeps_what_validation_cannot_judge(run: Path) -> None:
    calibration = load_checkpoint(run / "best").calibration
    assert calibration.findings["edema"] == (3.0, 0.5)
    assert (calibration.upper["edema"], calibration.lower["edema"], calibration.seen["edema"]) == (0.6, 0.02, 0.3)
    assert calibration.sentences == (1.5, 0.2)
    assert calibration.modalities["mr"] == ["mass"]
    assert "tuberculosis" in calibration.modalities["xray"]
    assert calibration.findings["normal"] != (1.0, 0.0)  # old and new studies together know enough of it


def test_calibration_of_what_was_judged_is_new() -> None:
    def study(value: float) -> Example:
        made = example(0)
        made.finding_targets = np.array([value, np.nan])
        return made

    before = Calibration({"a": (2.0, 0.0), "b": (3.0, 0.0)}, box_threshold=0.3, boxes=(4.0, 0.0))
    now = Calibration({"a": (1.5, 0.0), "b": (1.0, 0.0), "c": (1.0, 0.0)})
    found = kept_calibration(before, now, [study(1.0)] * 5 + [study(0.0)] * 5, ("a", "b"))
    assert found.findings == {"a": (1.5, 0.0), "b": (3.0, 0.0), "c": (1.0, 0.0)}
    assert (found.boxes, found.box_threshold) == ((4.0, 0.0), 0.3)
    assert kept_calibration(before, now, [study(1.0)] * 9, ("a", "b")).findings["a"] == (2.0, 0.0)
    assert labels_kept({"ct": ["b"]}, {"ct": ["a"], "mr": ["b"]}, ("a", "b")) == {"ct": ["a", "b"], "mr": ["b"]}


@pytest.mark.slow
def test_a_resumed_run_replays_the_unbroken_one(language_folder: Path, run: Path, tmp_path: Path) -> None:
    """Stopped in the second epoch, the run goes on with the same losses."""
    start = _start(language_folder, run)
    config = config_for(language_folder, retention=1.0)
    config.training.log_every = 1
    whole = tmp_path / "whole"
    training.train(starting_point(config, start), whole)

    class Halted(Exception):
        pass

    taken = training.StageLoop._step
    steps: list[int] = []

    def halting(self: training.StageLoop, epoch: int, examples: list[Example]) -> dict[str, float]:
        if len(steps) == 5:
            raise Halted
        steps.append(epoch)
        return taken(self, epoch, examples)

    broken = tmp_path / "broken"
    training.StageLoop._step = halting  # type: ignore[method-assign]
    try:
        with pytest.raises(Halted):
            training.train(starting_point(config, start), broken)
    finally:
        training.StageLoop._step = taken  # type: ignore[method-assign]
    kept = [r for r in rows(broken) if r["step"] <= 3]
    (broken / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    training.train(starting_point(config, start), broken)
    assert rows(broken) == rows(whole)


def test_a_set_of_frozen_features_holds_old_studies_too(language_folder: Path, tmp_path: Path) -> None:
    """A stage of text alone, from cached features of new and old studies; only it replays."""
    config = config_for(language_folder, OLD | {"stages": ["text"]})
    training.train(starting_point(config, None), tmp_path / "run")
    epochs = [r for r in rows(tmp_path / "run") if r.get("epoch")]
    assert [r["step"] for r in epochs] == [2, 4, 3]


@pytest.mark.slow
def test_two_processes_replay_what_one_does(language_folder: Path, tmp_path: Path) -> None:
    path = write_config(language_folder, tmp_path)
    old = (
        "data.replay={sets: [{format: phantom, count: 6, seed: 9}], validation: [{format: phantom, count: 3, seed: 8}]}"
    )
    for name, launcher in (("one", ()), ("two", TWO)):
        done = vlm("train", str(path), "--out", str(tmp_path / name), "--set", old, launcher=launcher)
        assert done.returncode == 0, done.stderr
    pairs = list(zip(losses_of(tmp_path / "one"), losses_of(tmp_path / "two"), strict=True))
    assert len(pairs) == 5  # three epochs, and each stage's first look at the old data
    for a, b in pairs:
        assert a == pytest.approx(b, rel=2e-4, abs=1e-5)


def test_retention_by_hand() -> None:
    """One unknown label with q = 0.5, p = 0.8: KL = 0.5 ln(0.5 / 0.8) + 0.5 ln(0.5 / 0.2) = 0.22314; the gradient is
    p - q = 0.3. A known label takes no part, and at the start the loss is 0."""
    logits = torch.tensor([[math.log(4.0), 9.0]], requires_grad=True)
    start, targets = torch.tensor([[0.0, -9.0]]), torch.tensor([[float("nan"), 1.0]])
    loss = retention_loss(logits, start, targets)
    assert loss is not None
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.22314, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad.tolist()[0] == pytest.approx([0.3, 0.0])
    same = retention_loss(start, start, targets)
    assert same is not None
    assert float(same) == pytest.approx(0.0, abs=1e-7)
    assert retention_loss(start, start, torch.ones(1, 2)) is None


@pytest.mark.slow
def test_a_dry_run_counts_the_old_studies(language_folder: Path) -> None:
    need = estimate(without_weights(config_for(language_folder)), gpu=False)
    assert [stage.steps for stage in need.stages] == [6, 3]


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        (OLD | {"share": 0.0}, "data.replay: share is 0.0: it must lie above 0 and below 1"),
        (OLD | {"share": 1}, "train on them instead"),
        ({"share": 0.3, "validation": OLD["validation"]}, "a share of what"),
        ({}, "names neither sets nor validation"),
        ({"sets": [{"format": "phantom", "seed": 5, "count": 3}]}, "data.replay.sets.0: shares its studies with d"),
        ({"validation": [{"format": "phantom", "seed": 6}]}, "data.replay.validation.0: shares its studies w"),
        (OLD | {"stages": ["image", "txt"]}, "data.replay.stages: 'txt' is no stage; stages are image, text"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_said(language_folder: Path, replay: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_for(language_folder, replay)


def test_a_resolved_configuration_reads_back(language_folder: Path) -> None:
    for replay in (OLD, {"validation": OLD["validation"]}, {"sets": OLD["sets"]}):
        config = config_for(language_folder, replay)
        assert parse_config(config.model_dump(mode="json"), "again") == config
    assert config.data.replay is not None
    assert config.data.replay.share == 0.25


def test_batches_too_small_or_too_large(language_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stages.image.batch_size: 1 leaves no room"):
        config_for(language_folder, stages=[IMAGE | {"batch_size": 1}])
    large = config_for(language_folder, stages=[IMAGE | {"batch_size": 16}])
    with pytest.raises(InputError, match=r"only 7 studies to learn from beside the 4 old .*batch_size=9$"):
        training.train(starting_point(large, None), tmp_path / "run")
    blank = config_for(language_folder, {"sets": [{"format": "blank", "count": 3}]}, [IMAGE])
    training.train(starting_point(blank, None), tmp_path / "blank")
    with pytest.raises(InputError, match=r"training.loss.retention: a model that is built anew"):
        starting_point(config_for(language_folder, retention=1.0), None)


def test_old_studies_without_reports_cannot_be_replayed_by_text(language_folder: Path) -> None:
    config = config_for(language_folder)
    bare = example(1, length=0)
    sets = training.RunSets([], [], [(config.data.train[0], [bare])], [])
    with pytest.raises(InputError, match=r"data.replay.sets: no study has what the losses of stage 'text' \(report\)"):
        sets.replayed(config.training.stages[1], Replay(sets=config.data.train))


def test_without_replay_the_runs_own_data_say_what_is_spoken_of(language_folder: Path, tmp_path: Path) -> None:
    """What nothing held on to has drifted: the start's cuts for it would demand findings that nobody taught."""
    start = _start(language_folder, tmp_path / "run")
    training.train(starting_point(config_for(language_folder, None), start), tmp_path / "run")
    calibration = load_checkpoint(tmp_path / "run" / "best").calibration
    assert "mr" not in calibration.modalities
    assert "tuberculosis" not in calibration.modalities.get("xray", [])
    assert calibration.findings["edema"] != (3.0, 0.5)
