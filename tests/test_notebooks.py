"""Every notebook runs from its first cell to its last; what fine-tuning promises is measured in a slow test."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from vlm.checkpoint import RECORD, SHIPPED

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
needs_shipped = pytest.mark.skipif(not (SHIPPED / RECORD).is_file(), reason="no checkpoint is shipped in this checkout")


def execute(path: Path, folder: Path, seconds: int) -> None:
    """Runs a notebook in a folder of its own beside which the configurations lie."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "notebooks").mkdir()
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, timeout=seconds, resources=where).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.execution_count for cell in code)


@needs_shipped
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES", "20")  # of 01_finetune: every step, little to learn from
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    execute(path, tmp_path, 600)


@needs_shipped
@pytest.mark.slow
def test_a_fine_tuned_adapter_beats_its_start(tmp_path: Path) -> None:
    """The notebook as it stands; the interval of the paired difference is clear of zero."""
    execute(ROOT / "notebooks" / "01_finetune.ipynb", tmp_path, 3600)
    scores = json.loads((tmp_path / "notebooks" / "finetune" / "scores.json").read_text())
    for metric in ("cider", "finding_f1_micro", "finding_f1_macro"):
        assert scores[f"after.{metric}-before.low"] > 0, metric
