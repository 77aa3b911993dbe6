"""`vlm train` from the shipped configuration to a checkpoint that writes reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm.checkpoint import RECORD, SHIPPED
from vlm.cli.main import main
from vlm.config import load_config
from vlm.types import InputError

ROOT = Path(__file__).parents[3]
TINY = str(ROOT / "configs" / "tiny.yaml")
FINETUNE = str(ROOT / "configs" / "finetune.yaml")
needs_shipped = pytest.mark.skipif(not (SHIPPED / RECORD).is_file(), reason="no checkpoint is shipped in this checkout")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@needs_shipped
def test_tiny_trains_and_its_checkpoint_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run("train", TINY, "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "adapter: loss" in shown
    assert (out / "curve.png").is_file()
    assert run("data", "phantom", "--n", "2", "--seed", "3", "--out", str(tmp_path / "ct")) == 0
    reports = tmp_path / "reports"
    assert run("generate", str(tmp_path / "ct"), "--out", str(reports), "--checkpoint", str(out / "best")) == 0
    rows = [json.loads(line) for line in (reports / "reports.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["findings"] for row in rows)


@needs_shipped
def test_dry_run_prints_what_each_stage_trains_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", TINY, "--out", str(tmp_path / "run"), "--dry-run", "--set", "training.seed=5") == 0
    shown = capsys.readouterr().out
    assert "seed: 5" in shown
    assert "adapter" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.yaml",), "nowhere.yaml: cannot read the configuration"),
        ((TINY, "--set", "training.stages.0.lr=.nan"), "training.stages.0.lr: must be a finite number"),
        ((TINY, "--set", "model.vision.name=resnet9999"), "timm knows no model 'resnet9999'"),
        ((TINY, "--set", "model.language.path=./nowhere"), "./nowhere: no such folder of a language model"),
        ((TINY, "--set", "model.knowledge.view=nonsense"), "the graph has no view 'nonsense'"),
        ((TINY, "--data", "mine.csv"), "has no data set with a path that it could stand for"),
        ((FINETUNE, "--data", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], language_folder: Path
) -> None:
    language: tuple[str, ...] = ("--set", f"model.language.path={language_folder}")
    if arguments[0] == FINETUNE or any("language.path" in a for a in arguments):
        language = ()
    assert run("train", *arguments, *language, "--out", str(tmp_path / "run")) == 2
    shown = capfd.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown


def test_data_stands_for_the_paths_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As typed, relative to the working directory, also where RADSCRIBE_DATA is set; splits stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RADSCRIBE_DATA", "/elsewhere")
    config = load_config(Path(FINETUNE), [], Path("mine.csv"))
    assert [s.location() for s in (*config.data.train, *config.data.validation)] == [tmp_path / "mine.csv"] * 2
    assert config.data.train[0].split == ("train",)
    several = tmp_path / "several.yaml"
    several.write_text("data: {train: [{path: a}, {path: b}]}\n")
    with pytest.raises(InputError, match=r"names 2 data sets \(a, b\)"):
        load_config(several, [], Path("mine.csv"))
