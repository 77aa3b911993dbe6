"""scripts/ablate.py: which variants there are, what each leaves out, runs that are not repeated, and bad input."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlm import ablation
from vlm.config import Config, lay_over, load_config
from vlm.types import InputError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "ablate.py"
TINY = ROOT / "configs" / "tiny.yaml"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variants_are_the_papers_rows_without_repetition() -> None:
    names = ablation.variants(["knowledge", "hierarchy", "detection"])
    fusions = ["full, fusion none", "full, fusion concatenate", "full, fusion attention"]
    assert list(names) == ["base", "+ knowledge", "+ fine-grained", "full", *fusions]
    assert list(ablation.variants(["knowledge"])) == ["base", "full", *fusions]
    assert list(ablation.variants(["hierarchy", "detection"])) == ["base", "full"]


def test_a_variant_leaves_out_what_its_name_says() -> None:
    base = load_config(TINY)
    every = ablation.variants(["knowledge", "hierarchy", "detection"])

    def config(name: str) -> Config:
        return ablation.variant_config(base, every[name], 7, "tiny")

    full, bare, fine = config("full"), config("base"), config("+ fine-grained")
    assert full.model.model_dump() == base.model.model_dump()
    assert full.training.seed == 7
    assert not bare.model.knowledge.enabled
    assert not bare.model.hierarchy.enabled
    assert bare.model.detection.strides == (16,)
    assert all("knowledge" not in stage.losses for stage in bare.training.stages)
    assert bare.training.loss.concept_weight == 1.0
    assert fine.model.hierarchy.enabled
    assert fine.model.detection.strides == (8, 16, 32)
    assert not fine.model.knowledge.enabled
    assert config("+ knowledge").model.knowledge.fusion == "gate"
    assert config("full, fusion none").model.knowledge.fusion == "none"
    assert [s.epochs for s in bare.training.stages] == [s.epochs for s in full.training.stages]


def test_cuts_come_from_the_other_half() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 1)) < 0.3).astype(np.float32)
    noise = ablation.finding_metrics(rng.normal(size=(200, 1)), targets)
    perfect = ablation.finding_metrics(targets * 8 - 4, targets)
    assert perfect["f1"] == perfect["accuracy"] == perfect["auc"] == 1.0
    assert noise["f1"] < 0.6
    half_known = np.where(np.arange(200)[:, None] < 100, targets, np.nan)
    assert ablation.finding_metrics(targets * 8 - 4, half_known)["precision"] == 1.0


def test_intervals_are_students() -> None:
    assert [ablation.student(n) for n in (1, 2, 9)] == pytest.approx([12.7062, 4.30265, 2.26216], rel=1e-4)
    mean, half = ablation.summary([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.30265 / 3**0.5, rel=1e-4)
    assert ablation.cell([0.5], 2) == "0.50"
    assert ablation.cell([float("nan")], 2) == "-"


def test_a_verdict_pairs_runs_of_one_seed() -> None:
    base = [{"seed": 0, "auc": 0.5, "f1": 0.1}, {"seed": 1, "auc": 0.7, "f1": 0.3}, {"seed": 2, "auc": 0.9, "f1": 0.2}]
    full = [
        {"seed": 2, "auc": 0.95, "f1": 0.1},
        {"seed": 0, "auc": 0.56, "f1": 0.4},
        {"seed": 1, "auc": 0.76, "f1": 0.2},
    ]
    lines = ablation.verdicts({"base": base, "full": full}, {"auc": ("AUC", 3), "f1": ("F1", 3)})
    assert lines == ["full against base: AUC +0.057 ± 0.014; not told apart: F1."]


def test_the_openi_ablation_is_a_valid_configuration() -> None:
    loaded = load_config(ROOT / "configs" / "openi.yaml")
    config = lay_over(loaded, loaded.ablation, "openi")
    assert config.start is None
    assert all("vision" not in stage.train for stage in config.training.stages)
    assert "ablation" not in loaded.model_dump()
    with pytest.raises(InputError, match=r"fusoin.*did you mean 'fusion'"):
        lay_over(loaded, loaded.ablation, "openi", ["model.knowledge.fusoin=none"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(TINY), "--parts", "knowlege"], "'knowlege' is none of knowledge, hierarchy, detection"),
        (["configs/none.yaml"], "cannot read the configuration"),
        ([str(TINY), "--set", "model.widht=8"], "did you mean 'width'"),
        ([str(TINY), "--only", "fuller"], "'fuller' is none of base"),
        ([str(TINY), "--seeds", "0"], "--seeds"),
    ],
)
def test_bad_input_is_one_line(
    script: ModuleType, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["ablate.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_tiny_ablation_runs_and_is_not_repeated(tmp_path: Path) -> None:
    arguments = [str(TINY), "--parts", "knowledge", "--only", "base;full, fusion attention", "--seeds", "2", "--limit",
                 "8", "--out", str(tmp_path / "out"), "--set", "generation.max_new_tokens=12"]  # fmt: skip
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: len(runs) for name, runs in results["runs"].items()} == {"base": 2, "full, fusion attention": 2}
    one = results["runs"]["base"][0]
    wanted = {"accuracy", "precision", "recall", "f1", "map", "bleu4", "cider", "finding_f1_micro", "memory_gib"}
    assert wanted | {"core_minutes"} <= set(one)
    assert results["runs"]["full, fusion attention"][0]["million_trained"] > one["million_trained"]
    assert "| base | 2 | " in (tmp_path / "out" / "table.md").read_text()
    unit = tmp_path / "out" / "base" / "seed0"
    assert not (unit / "best").exists()
    before = (unit / "metrics.json").stat().st_mtime_ns
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert (unit / "metrics.json").stat().st_mtime_ns == before
    other = run(*arguments[:-1], "generation.max_new_tokens=13")
    assert other.returncode == 2
    assert "holds a run of another configuration" in other.stderr
