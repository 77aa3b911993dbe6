"""`vlm generate` as processes of its own: Ctrl-C, and several that share the studies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import draw_study

pytestmark = pytest.mark.slow
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(pictures: Path, out: Path, checkpoint: Path) -> list[str]:
    return ["-m", "vlm", "generate", str(pictures), "--out", str(out), "--checkpoint", str(checkpoint)]


def run(arguments: list[str], launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **QUIET}
    line = [sys.executable, *launcher, *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        draw_study(folder, number, views=1)
    (folder / "zz.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def whole(pictures: Path, tiny_checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    done = run(command(pictures, out, tiny_checkpoint_folder))
    assert done.returncode == 0, done.stderr
    return out


def test_an_interrupted_call_says_how_to_go_on(
    pictures: Path, whole: Path, tiny_checkpoint_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = [sys.executable, *command(pictures, out, tiny_checkpoint_folder), "--batch-size", "1"]
    process = subprocess.Popen(line, env={**os.environ, **QUIET}, stderr=subprocess.PIPE, text=True)
    reports = out / "reports.jsonl"
    until = time.monotonic() + 300
    while time.monotonic() < until and (not reports.is_file() or reports.stat().st_size == 0):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith(f"interrupted; what was written is in {out}: run the same command")
    written = len(reports.read_text().splitlines())
    assert 1 <= written < 24
    assert (out / "index.html").is_file()
    again = run(command(pictures, out, tiny_checkpoint_folder))
    assert again.returncode == 0, again.stderr
    assert reports.read_text() == (whole / "reports.jsonl").read_text()


def test_two_processes_write_what_one_writes(
    pictures: Path, whole: Path, tiny_checkpoint_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(command(pictures, out, tiny_checkpoint_folder), launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "24 reports, 1 failed"
    for name in ("reports.jsonl", "failures.jsonl"):
        assert (out / name).read_text() == (whole / name).read_text()
    assert sorted(p.name for p in out.iterdir()) == ["failures.jsonl", "index.html", "reports.jsonl", "run.json"]
    ids = [json.loads(row)["id"] for row in (out / "reports.jsonl").read_text().splitlines()]
    assert len(set(ids)) == len(ids) == 24
    refused = run([*command(pictures, out, tiny_checkpoint_folder), "--num-beams", "1"], launcher)
    assert refused.returncode != 0
    assert "holds reports of other settings" in refused.stderr
