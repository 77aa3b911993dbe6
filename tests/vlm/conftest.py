"""Fixtures that several test folders of vlm share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random decoder as a Hugging Face folder."""
    from tiny import write_language

    return write_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def tiny_checkpoint_folder(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint of a tiny untrained model."""
    from tiny import tiny_config

    from vlm.assembly import starting_point
    from vlm.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(folder, starting_point(tiny_config(language_folder), None))
    return folder
