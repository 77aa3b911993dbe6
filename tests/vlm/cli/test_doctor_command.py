"""`vlm doctor`: what a machine can do, also where packages are missing; and what a run needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vlm import doctor

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
