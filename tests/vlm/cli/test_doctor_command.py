"""`vlm doctor`: what a machine can do, also where packages are missing; and what a run needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import tiny_config

from vlm import doctor
from vlm.cli.main import main

ROOT = Path(__file__).parents[3]

HIDE = """
import sys
hidden = set(sys.argv[1].split(","))
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
from vlm.cli.main import main
main(["doctor"])
"""


def test_it_works_where_packages_are_missing() -> None:
    hidden = "torch,transformers,peft,pydicom,numpy,psutil,nibabel"
    done = subprocess.run(
        [sys.executable, "-c", HIDE, hidden], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if len(line.split()) > 2}
    assert rows["pydicom"].startswith("missing")
    assert "pip install pydicom" in rows["pydicom"]
    assert "pip install torch (which torchvision needs)" in rows["torchvision"]
    assert rows["pyyaml"].startswith("ok")
    assert "Traceback" not in done.stderr


def test_a_part_that_fails_is_told_and_the_rest_goes_on(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def fails() -> str:
        raise OSError("libfoo.so: cannot open shared object file")

    def absent() -> str:
        raise doctor.Off("for training.trackers: pip install x")

    monkeypatch.setattr(doctor, "PARTS", {"a": fails, "b": absent, "c": lambda: "works"})
    lines = [line for line in doctor.examine() if line.group == "parts"]
    assert [(line.state, line.name) for line in lines] == [("broken", "a"), ("off", "b"), ("ok", "c")]
    assert "libfoo.so" in lines[0].note


def test_bits_are_tried_and_not_only_found() -> None:
    assert "works on the" in doctor.PARTS["4-bit weights (nf4)"]()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.fixture
def small(tmp_path: Path, language_folder: Path) -> Path:
    """A run of one stage on a language model of which only the configuration file is there."""
    folder = tmp_path / "language"
    folder.mkdir()
    (folder / "config.json").write_text((language_folder / "config.json").read_text())
    tree = tiny_config(folder).model_dump(mode="json")
    tree["data"] |= {"train": [{"format": "blank", "count": 16}], "validation": [{"format": "blank", "count": 8}]}
    tree["training"]["stages"] = [
        {"name": "text", "epochs": 2, "train": ["bridge", "adapter"], "losses": ["report"], "batch_size": 8}
    ]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "run.yaml"


def test_a_run_that_does_not_fit_is_told_what_would(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", str(small), "--memory", "900TB") == 0
    assert "fits" in capsys.readouterr().out
    pair = ("--set", "training.stages.0.batch_size=2")
    assert run("doctor", str(small), "--memory", "1MB", *pair) == 1
    shown = capsys.readouterr().out
    assert "its tokenizer is not at hand" in shown
    assert "does not fit" in shown
    smallest = "--set data.max_views=1 --set training.stages.0.batch_size=1 --set training.stages.0.accumulate=2"
    assert f"not enough: {smallest}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory", "much"), "--memory 'much': write it as 24GB or 500MB"),
        (("--set", "training.stages=[]"), "training.stages: names no stage"),
        (("--set", "model.language.path=./nowhere"), "./nowhere: no configuration of a language model"),
        (("--start", "nowhere"), "nowhere: is not a checkpoint that can be read"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...], message: str, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("doctor", str(small), *arguments) == 2
    shown = capfd.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown


def test_a_dry_run_counts_parameters_and_steps(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", str(small), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "gradient_checkpointing: false" in shown
    row = next(line for line in shown.splitlines() if "bridge" in line and "│" in line)
    assert row.split("│")[2].strip() == "4"
    assert not Path("runs/run").exists()
