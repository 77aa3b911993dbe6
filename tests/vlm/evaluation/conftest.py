"""Real reports for the tests that need them, skipped where the data is absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vlm.evaluation.tokens import make_profile


@pytest.fixture(scope="session")
def openi() -> Path:
    """The folder of Open-i."""
    folder = Path(os.environ.get("RADSCRIBE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "openi"
    if not (folder / "r2gen_annotation.json").is_file():
        pytest.skip(f"needs Open-i's r2gen_annotation.json in {folder} (set RADSCRIBE_DATA)")
    return folder


@pytest.fixture(scope="session")
def openi_reports(openi: Path) -> list[str]:
    """Tokens of Open-i's 296 validation reports."""
    profile = make_profile("canonical")
    content = json.loads((openi / "r2gen_annotation.json").read_text())
    return [profile.reference(entry["report"]) for entry in content["val"]]
