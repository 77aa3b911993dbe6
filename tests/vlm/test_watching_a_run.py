"""Watching a run: samples, choice by written reports, trackers, and the messages of what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_training_run import STAGES, config_for, rows

from vlm import training, watching
from vlm.assembly import starting_point
from vlm.config import Config
from vlm.types import InputError


def with_training(language: Path, choose_by: str = "loss", **settings: object) -> Config:
    tree = config_for(language, [{**STAGES[1], "choose_by": choose_by}]).model_dump(mode="json")
    tree["training"].update(settings)
    tree["data"]["max_report_tokens"] = 400  # a cut report is no reference
    return Config.model_validate(tree)


def test_a_stage_is_chosen_by_its_reports_and_samples_are_kept(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([{"cider": 0.5}, {"cider": 0.1}])
    scored: list[list[watching.Sample]] = []
    real = watching.Scribe.score

    def score(self, samples):  # type: ignore[no-untyped-def]
        scored.append(samples)
        assert set(real(self, samples)) == set(watching.WRITTEN_METRICS)
        return next(told)

    monkeypatch.setattr(watching.Scribe, "score", score)
    config = with_training(language_folder, "cider", samples=2, written=3, trackers=["tensorboard"])
    metrics = training.train(starting_point(config, None), tmp_path / "run")
    assert metrics["adapter"]["cider"] == 0.5  # the first epoch, though the loss falls
    assert [r["cider"] for r in rows(tmp_path / "run") if "epoch" in r] == [0.5, 0.1]
    assert [len(s) for s in scored] == [3, 3]
    kept = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(k["epoch"], k["id"]) for k in kept] == [(e, f"phantom-6-0000{i}") for e in (1, 2) for i in (0, 1)]
    assert all("Impression" not in k["reference"] and len(k["reference"]) > 20 for k in kept)
    _read_events(tmp_path / "run")


def _read_events(out: Path) -> None:
    """TensorBoard's own reader finds the epochs' numbers, the samples and the configuration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = [p.parent for p in (out / "trackers" / "radscribe").glob("events.*")]
    assert folders
    events = EventAccumulator(str(folders[0]))
    events.Reload()
    tags = events.Tags()
    assert [e.value for e in events.Scalars("adapter/cider")] == pytest.approx([0.5, 0.1])
    assert any(tag.startswith("adapter/sample phantom-6-00000") for tag in tags["tensors"])


def test_a_score_is_that_of_the_evaluation(language_folder: Path) -> None:
    checkpoint = starting_point(config_for(language_folder), None)
    scribe = watching.Scribe(checkpoint, training.ExampleBuilder(
        checkpoint.config.data, checkpoint.labels, checkpoint.config.model.detection.labels, checkpoint.graph,
        checkpoint.tokenizer), [], torch.device("cpu"))  # fmt: skip
    texts = ["There is a nodule in the right lung .", "The heart is normal . No effusion is seen today ."]
    same = scribe.score([watching.Sample(str(i), t, t) for i, t in enumerate(texts)])
    assert same["bleu4"] == pytest.approx(1.0)
    assert same["finding_f1"] == pytest.approx(1.0)
    assert same["cider"] == pytest.approx(10.0)
    other = scribe.score(
        [watching.Sample(str(i), t, r) for i, (t, r) in enumerate(zip(texts, texts[::-1], strict=True))]
    )
    assert other["finding_f1"] == 0
    assert scribe.score([]) == {}


@pytest.mark.parametrize(
    ("choose_by", "settings", "message"),
    [
        ("auc", {}, "stages.adapter.choose_by: 'auc' needs the loss 'findings'; the stage has report"),
        ("loss", {"trackers": ["tensorbord"]}, "no tracker 'tensorbord'; did you mean 'tensorboard'"),
        ("loss", {"trackers": ["mlflow"]}, "mlflow is not installed: pip install mlflow"),
    ],
)
def test_what_cannot_be_is_told_before_data_is_read(
    choose_by: str, settings: dict[str, object], message: str, language_folder: Path, tmp_path: Path
) -> None:
    config = with_training(language_folder, choose_by, **settings)
    with pytest.raises(InputError) as told:
        training.train(starting_point(config, None), tmp_path / "run")
    assert message in str(told.value)


def test_without_validation_the_last_epoch_stands(language_folder: Path, tmp_path: Path) -> None:
    tree = with_training(language_folder).model_dump(mode="json")
    tree["data"]["validation"] = []
    metrics = training.train(starting_point(Config.model_validate(tree), None), tmp_path / "run")
    epochs = [r for r in rows(tmp_path / "run") if "epoch" in r]
    assert metrics["adapter"]["train_report"] == pytest.approx(epochs[-1]["train_report"])


def test_out_of_memory_names_what_to_change(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self, batch, wanted):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(training.TrainStep, "forward", full)
    with pytest.raises(InputError) as told:
        training.train(starting_point(with_training(language_folder), None), tmp_path / "run")
    for word in (
        "stages.0.batch_size=2",
        "stages.0.accumulate=2",
        "gradient_checkpointing=true",
        "quantize=nf4",
        "max_views",
    ):
        assert word in str(told.value)


def test_checkpointing_repeats_the_plain_run(language_folder: Path, tmp_path: Path) -> None:
    losses = []
    for on in (False, True):
        config = with_training(language_folder, gradient_checkpointing=on)
        losses.append(training.train(starting_point(config, None), tmp_path / str(on))["adapter"])
    assert losses[0] == losses[1]
