"""scripts/measure_selection.py: bad input in one line, results that are not measured twice, and the table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_selection", ROOT / "scripts" / "measure_selection.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks for its own module
    spec.loader.exec_module(module)
    return module


def test_a_finished_result_is_shown_and_not_measured_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), "--seeds", "2", "--only", "random;diversity"]
    options = script.parse(arguments)
    for name, gain in (("random", 0.0), ("diversity", 0.1)):
        for seed in (0, 1):
            rows = [{"auc": 0.5, "f1": 0.1, "studies": 60}, {"auc": 0.6 + gain + seed / 10, "f1": 0.2, "studies": 120}]
            script.write_json(
                script.unit_path(options, name, seed), {"options": script.digest(options), "rounds": rows}
            )
    monkeypatch.setattr(sys, "argv", ["measure_selection.py", *arguments])
    monkeypatch.setattr(script, "read_world", lambda *_: pytest.fail("nothing is missing"))
    script.main()
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].startswith("| random | 0.650 ± 0.635 | 0.200")  # t = 12.706 on one degree of freedom, 0.05 * t
    assert lines[3].endswith("| +0.100 ± 0.000 | +0.000 ± 0.000 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "chance"], "'chance' is none of random; uncertainty"),
        (["--pool", "100"], "--pool 100: is smaller than --start and --n times --rounds together"),
        (["--seeds", "0"], "must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    script: ModuleType, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["measure_selection.py", *arguments])
    monkeypatch.setattr(script.err, "soft_wrap", True)
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
