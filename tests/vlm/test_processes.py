"""Several processes on this machine: the same losses as one, sharded weights that reload on one, kills, signals, and
launchers whose wishes are not in effect."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from tiny import tiny_config

from vlm import run_state, training
from vlm.assembly import starting_point
from vlm.checkpoint import load_checkpoint
from vlm.cli.main import main
from vlm.config import Config, Stage
from vlm.types import InputError

ROOT = Path(__file__).parents[2]
STAGES = [
    {
        "name": "all", "epochs": 1, "batch_size": 4, "choose_by": "auc+map",
        "train": ["vision", "pyramid", "knowledge", "detection", "bridge", "adapter"],
        "losses": ["report", "findings", "knowledge", "detection"],
    },
    {"name": "adapter", "epochs": 2, "batch_size": 4, "train": ["bridge", "adapter"], "losses": ["report"]},
]  # fmt: skip


def write_config(language: Path, folder: Path, **training_options: object) -> Path:
    tree = tiny_config(language).model_dump(mode="json")
    tree["data"] |= {
        "train": [{"format": "phantom", "count": 10, "seed": 1}],
        "validation": [{"format": "phantom", "count": 2, "seed": 2}],
        "augment": False, "clinical_dropout": 0, "seen_noise": 0,
    }  # fmt: skip
    tree["training"] |= {"stages": STAGES, "log_every": 1, **training_options}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def vlm(*words: str, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *launcher, "vlm", *words] if not launcher else [sys.executable, "-m", *launcher, *words],
        capture_output=True, text=True, timeout=400, env=settings(environment), cwd=ROOT,
    )  # fmt: skip


def settings(extra: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `vlm` says of a call that it refuses, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


TWO = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "vlm")


def losses_of(out: Path) -> list[dict[str, float]]:
    keep = ("loss", "train_", "map")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(keep)} for row in rows if "epoch" in row]


@pytest.fixture(scope="module")
def unbroken(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `write_config` in one process from its beginning to its end."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = vlm("train", str(write_config(language_folder, folder)), "--out", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def same_weights(first: Path, second: Path) -> bool:
    one, other = (load_checkpoint(run / "best").model.state_dict() for run in (first, second))
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


ZERO = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--set", "training.shard=true"),
        pytest.param(("--set", "training.shard=zero2"), marks=ZERO),
        pytest.param(("--set", "training.shard=zero3"), marks=ZERO),
    ],
)
def test_two_processes_learn_what_one_learns(
    options: tuple[str, ...], unbroken: Path, language_folder: Path, tmp_path: Path
) -> None:
    path = write_config(language_folder, tmp_path)
    two = vlm("train", str(path), "--out", str(tmp_path / "two"), *options, launcher=TWO)
    assert two.returncode == 0, two.stderr
    first, second = losses_of(unbroken), losses_of(tmp_path / "two")
    assert len(first) == len(second) == 3
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-5)
    single, both = (dict(load_checkpoint(n / "best").model.named_parameters()) for n in (unbroken, tmp_path / "two"))
    for name, value in single.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=2e-4, msg=name)


@ZERO
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_run_under_zero_goes_on_with_its_own_number_of_processes(
    kind: str, language_folder: Path, tmp_path: Path
) -> None:
    path = write_config(language_folder, tmp_path, shard=kind, keep=4)
    whole = vlm("train", str(path), "--out", str(tmp_path / "run"), launcher=TWO)
    assert whole.returncode == 0, whole.stderr
    first = load_checkpoint(tmp_path / "run" / "best").model.state_dict()
    (tmp_path / "run" / "state" / "latest.json").write_text(json.dumps({"state": "01-00000003"}))
    alone = vlm("train", str(path), "--out", str(tmp_path / "run"), "--set", "training.shard=false")
    assert alone.returncode == 2
    assert "the saved state is of a run under DeepSpeed" in alone.stderr
    again = vlm("train", str(path), "--out", str(tmp_path / "run"), launcher=TWO)
    assert again.returncode == 0, again.stderr
    for name, value in load_checkpoint(tmp_path / "run" / "best").model.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=1e-6, atol=1e-7, msg=name)


def test_a_launcher_that_starts_too_few_is_found_out(
    language_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", str(write_config(language_folder, tmp_path)), "--out", str(tmp_path / "run"))
    launcher = ("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2", "-m", "vlm")
    result = vlm(*command, launcher=launcher)
    assert result.returncode != 0
    assert "accelerate launch asks for 2 processes and 1 is running" in " ".join(result.stderr.split())
    result = vlm(*command, ACCELERATE_USE_FSDP="true")
    assert "the launch file asks for FSDP, which Accelerate ignores here" in result.stderr
    said = refused(capsys, *command, "--set", "training.processes=4")
    assert "training.processes asks for 4 processes and 1 is running" in said
    for kind in ("true", "zero2"):
        said = refused(capsys, *command, "--set", f"training.shard={kind}")
        assert "training.shard: shares out over processes" in said
    said = refused(capsys, *command, "--set", "training.shard=zero4")
    assert "training.shard: Input should be False, True, 'zero2' or 'zero3'" in said


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_zero_without_deepspeed_says_what_to_install(language_folder: Path, tmp_path: Path) -> None:
    path = write_config(language_folder, tmp_path)
    result = vlm("train", str(path), "--out", str(tmp_path / "run"), "--set", "training.shard=zero2", launcher=TWO)
    assert "error: ZeRO needs DeepSpeed: pip install deepspeed" in result.stderr
    result = vlm("train", str(path), "--out", str(tmp_path / "run"), ACCELERATE_USE_DEEPSPEED="true")
    assert result.returncode == 2
    assert "what the launch file asks for is not installed" in " ".join(result.stderr.split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(
    number: signal.Signals, unbroken: Path, language_folder: Path, tmp_path: Path
) -> None:
    path = write_config(language_folder, tmp_path)
    command = [sys.executable, "-m", "vlm", "train", str(path), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings({}), cwd=ROOT)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the state is saved in" in said
    again = vlm("train", str(path), "--out", str(tmp_path / "run"))
    assert again.returncode == 0, again.stderr
    assert same_weights(unbroken, tmp_path / "run")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if path.is_file() and path.stat().st_size:
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


@pytest.mark.slow
def test_twenty_kills_lose_nothing(unbroken: Path, language_folder: Path, tmp_path: Path) -> None:
    path = write_config(language_folder, tmp_path, save_minutes=0.001)
    command = [sys.executable, "-m", "vlm", "train", str(path), "--out", str(tmp_path / "run")]
    rng = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings({}), cwd=ROOT)
        begun = time.monotonic()
        log = tmp_path / "run" / "metrics.jsonl"
        size = log.stat().st_size if log.is_file() else 0
        while process.poll() is None and time.monotonic() - begun < 120:
            if log.is_file() and log.stat().st_size > size:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        _, said = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said
        state = run_state.load_state(tmp_path / "run")
        assert state is not None
    done = vlm("train", str(path), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert same_weights(unbroken, tmp_path / "run")


def test_a_full_disk_keeps_the_state_before(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = starting_point(tiny_config(language_folder), None)
    run_state.save_state(tmp_path, run_state.Position(step=1), made.model, None, None, {}, 2)

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run_state, "save_file", full)
    with pytest.raises(InputError, match=r"state of step 2 cannot be written \(.*No space left.*make room"):
        run_state.save_state(tmp_path, run_state.Position(step=2), made.model, None, None, {}, 2)
    state = run_state.load_state(tmp_path)
    assert state is not None
    assert state[0].step == 1
    assert not list((tmp_path / "state").glob(".*.tmp"))


def test_early_stopping_counts_epochs_without_a_better_one(
    language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny_config(language_folder).model_dump(mode="json")
    tree["data"] |= {
        "train": [{"format": "phantom", "count": 4}], "validation": [{"format": "phantom", "count": 2, "seed": 2}]
    }  # fmt: skip
    tree["training"]["stages"] = [{**STAGES[1], "epochs": 9, "patience": 2}]
    scores = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(training.Validator, "measure", lambda *_: {"loss": next(scores)})
    metrics = training.train(starting_point(Config.model_validate(tree), None), tmp_path / "run")
    assert metrics["adapter"]["loss"] == 2.0
    assert next(scores) == 1.0  # four epochs ran


def test_what_runs_out_is_named(tmp_path: Path) -> None:
    stage = Stage.model_validate({**STAGES[1], "batch_size": 16})
    with pytest.raises(InputError, match=r"out of memory with batches of 16; try --set training\.stages\.1\.batch_siz"):
        with training.explained(1, stage, tmp_path):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
    with pytest.raises(InputError, match="another process of this run is gone"):
        with training.explained(1, stage, tmp_path):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:598] Connection closed by peer")
