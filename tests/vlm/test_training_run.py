"""Training: stages, what is kept, resumption that repeats the unbroken run, and the messages of what cannot go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config

from vlm import training
from vlm.assembly import starting_point
from vlm.checkpoint import load_checkpoint
from vlm.config import Config, load_config
from vlm.optimization import select_parameters
from vlm.types import InputError, StudyBatch

STAGES = [
    {
        "name": "vision",
        "epochs": 1,
        "train": ["vision", "pyramid", "knowledge", "detection"],
        "losses": ["findings", "knowledge", "detection"],
        "batch_size": 4,
        "choose_by": "auc+map",
    },
    {"name": "adapter", "epochs": 2, "train": ["bridge", "adapter"], "losses": ["report"], "batch_size": 4},
]


def config_for(language: Path, stages: list[dict] | None = None, **loss: float) -> Config:  # type: ignore[type-arg]
    config = tiny_config(language)
    tree = config.model_dump(mode="json")
    tree["data"]["train"] = [{"format": "phantom", "count": 10, "seed": 5}]
    tree["data"]["validation"] = [{"format": "phantom", "count": 4, "seed": 6}]
    tree["training"]["stages"] = stages or STAGES
    tree["training"]["loss"].update(loss)
    return Config.model_validate(tree)


def rows(out: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder).model.named_parameters())


def test_stages_leave_a_checkpoint_a_curve_and_their_metrics(language_folder: Path, tmp_path: Path) -> None:
    metrics = training.train(starting_point(config_for(language_folder), None), tmp_path / "run")
    assert set(metrics) == {"vision", "adapter"}
    assert {"auc", "map"} <= set(metrics["vision"])
    epochs = [r for r in rows(tmp_path / "run") if "epoch" in r]
    assert [(r["stage"], r["epoch"]) for r in epochs] == [("vision", 1), ("adapter", 1), ("adapter", 2)]
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
    checkpoint = load_checkpoint(tmp_path / "run" / "best")
    assert checkpoint.metrics["adapter"]["loss"] == pytest.approx(metrics["adapter"]["loss"])
    slope, _ = checkpoint.calibration.findings["nodule"]
    assert slope > 0


class Stopped(Exception):
    pass


def test_a_resumed_run_repeats_the_unbroken_one(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training.train(starting_point(config_for(language_folder), None), whole)
    original = training.StageLoop._step
    count = 0

    def stop_in_the_middle(self, epoch, examples):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count == 6:  # the second stage has begun
            raise Stopped
        return original(self, epoch, examples)

    monkeypatch.setattr(training.StageLoop, "_step", stop_in_the_middle)
    tree = config_for(language_folder).model_dump(mode="json")
    with pytest.raises(Stopped):
        training.train(starting_point(Config.model_validate(tree), None), broken)
    monkeypatch.setattr(training.StageLoop, "_step", original)
    training.train(starting_point(Config.model_validate(tree), None), broken)
    first, second = weights(whole / "best"), weights(broken / "best")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_loss_that_is_not_finite_names_terms_and_studies(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.losses, "finding_loss", lambda logits, targets: logits.sum() * float("nan"))
    with pytest.raises(InputError, match=r"loss is not finite \(.*findings nan.*\) in studies phantom-5-0"):
        training.train(starting_point(config_for(language_folder), None), tmp_path / "run")


def test_another_configuration_is_not_resumed(language_folder: Path, tmp_path: Path) -> None:
    training.train(starting_point(config_for(language_folder), None), tmp_path / "run")
    with pytest.raises(InputError, match=r"another configuration \(training\.loss\.report: 1\.0 there, 0\.5 here\)"):
        training.train(starting_point(config_for(language_folder, report=0.5), None), tmp_path / "run")


def test_a_run_from_before_a_setting_existed_is_resumed(language_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training.train(starting_point(config_for(language_folder), None), run)
    kept = json.loads((run / "config.json").read_text())
    del kept["training"]["loss"]["retention"], kept["data"]["replay"]
    (run / "config.json").write_text(json.dumps(kept))
    lines = len((run / "metrics.jsonl").read_text().splitlines())
    training.train(starting_point(config_for(language_folder), None), run)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == lines


def test_frozen_parts_stay_as_they_are(language_folder: Path, tmp_path: Path) -> None:
    made = starting_point(config_for(language_folder, [STAGES[1]]), None)
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    training.train(made, tmp_path / "run")
    changed = {name for name, value in made.model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("bridge.") for name in changed)
    assert any(".lora_" in name for name in changed)
    assert all(name.startswith("bridge.") or ".lora_" in name for name in changed)


def test_every_part_can_be_named(language_folder: Path) -> None:
    made = starting_point(config_for(language_folder), None)
    for part in ("vision", "pyramid", "detection", "knowledge", "bridge", "adapter", "language"):
        stage = Config.model_validate({"training": {"stages": [{**STAGES[1], "train": [part]}]}}).training.stages[0]
        chosen = select_parameters(made.model, stage, 0)[part]
        assert chosen
        assert sum(p.requires_grad for p in made.model.parameters()) == len(chosen), part


def test_a_set_without_reports_is_refused_where_only_reports_teach(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = starting_point(config_for(language_folder, [STAGES[1]]), None)
    monkeypatch.setattr(training.ExampleBuilder, "_tokens", lambda self, report: (np.zeros(0, int),) * 3)
    with pytest.raises(InputError, match=r"stages\.adapter: no study has what its losses \(report\) need"):
        training.train(made, tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stages.0.lr=.nan", r"training\.stages\.0\.lr: .*finite"),
        ("training.stages.0.lr=0", r"training\.stages\.0\.lr: .*greater than 0"),
        ("training.sed=3", r"unknown key 'training\.sed'; did you mean 'seed'"),
        ("model.widht=64", r"unknown key 'model\.widht'; did you mean 'width'"),
        ("data.image_size.ct=100", r"data\.image_size\.ct: .*multiple of 32"),
        ("nonsense", r"write it as section\.key=value"),
    ],
)
def test_a_wrong_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(Path(__file__).parents[2] / "configs" / "tiny.yaml", [override])


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("data: [unclosed")
    with pytest.raises(InputError, match=r"broken\.yaml: not YAML"):
        load_config(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot read the configuration"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_run_from_a_checkpoint_shows_studies_as_the_checkpoint_learnt_them(
    tiny_checkpoint_folder: Path, tmp_path: Path
) -> None:
    text = "data:\n  train: [{format: phantom, count: 2}]\n  max_views: 1\ngeneration: {num_beams: 3}\n"
    (tmp_path / "new.yaml").write_text(text)
    made = starting_point(load_config(tmp_path / "new.yaml"), tiny_checkpoint_folder)
    assert made.config.data.image_size == {"default": 64}
    assert made.config.data.max_views == 1
    assert made.config.generation.num_beams == 3
    assert made.config.generation.max_new_tokens == 24
    assert made.config.model.width == 32


def test_a_model_beside_a_checkpoint_to_start_from_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text("start: shipped\nmodel: {width: 64}\n")
    with pytest.raises(InputError, match="the model is the checkpoint's"):
        load_config(tmp_path / "both.yaml")


def test_kept_maps_of_a_frozen_vision_model_change_nothing(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [
        {"name": "image", "epochs": 2, "train": ["pyramid", "knowledge", "detection"], "batch_size": 4,
         "losses": ["findings", "knowledge", "detection"]},
        {"name": "text", "epochs": 1, "train": ["bridge", "adapter"], "losses": ["report"], "batch_size": 4},
    ]  # fmt: skip
    config = config_for(language_folder, stages)
    config = config.model_copy(update={"data": config.data.model_copy(update={"augment": False})})
    seen: list[int] = []
    shared = training.Shared()
    start = starting_point(config, None)
    start.model.vision.register_forward_hook(lambda module, given, out: seen.append(len(out[0])))
    training.train(start, tmp_path / "kept", shared=shared)
    assert sum(seen) == 14  # 10 training and 4 validation images, once
    monkeypatch.setattr(training.StageLoop, "_maps", lambda self: None)
    training.train(starting_point(config, None), tmp_path / "computed")
    kept, computed = weights(tmp_path / "kept" / "best"), weights(tmp_path / "computed" / "best")
    for name, value in computed.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_another_vision_model_empties_the_maps_and_a_limit_keeps_them_small(language_folder: Path) -> None:
    first, second = (starting_point(config_for(language_folder), None).model for _ in range(2))
    maps = training.FrozenMaps(None, most_bytes=1)
    maps.serve(first.vision)
    maps.store["a"] = ()
    maps.serve(second.vision)
    assert "a" in maps.store  # the same weights
    torch.nn.init.ones_(next(second.vision.parameters()))
    maps.serve(second.vision)
    assert not maps.store
    batch = StudyBatch(**dict.fromkeys(StudyBatch.__slots__))  # type: ignore[arg-type]
    batch.ids, batch.image_study, batch.pixel_values = ("a",), torch.tensor([0]), torch.rand(1, 1, 64, 64)
    found = maps.attach(second, batch)
    assert found.maps is not None
    assert not maps.store  # more than one byte
