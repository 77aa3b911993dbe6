"""`vlm evaluate --perturb --checkpoint` tells a model that looks at its images from one that does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from vlm.cli.evaluate import evaluate
from vlm.config import Config
from vlm.types import Finding, Report, Study, StudyImage

sources = pytest.importorskip("vlm.data.sources")
pipeline = pytest.importorskip("vlm.pipeline")


class Stub:
    """A pipeline that says on which side an image is bright, or, when blind, always the same."""

    blind = False
    checkpoint = SimpleNamespace(config=Config())

    @classmethod
    def load(cls, folder: Path | None) -> Stub:
        return cls()

    def reports(self, studies: Iterable[Study], settings: object) -> Iterator[tuple[Study, Report]]:
        for study in studies:
            pixels = study.images[0].pixels
            assert pixels is not None
            left, right = pixels[:, :4].mean(), pixels[:, 4:].mean()
            side = "none" if self.blind or settings.blank else ("left" if left > right else "right")  # type: ignore[attr-defined]
            yield (
                study,
                Report(
                    study.id, {"findings": f"Opacity {side}."}, (), (Finding("opacity", probability=float(left)),), ()
                ),
            )


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    studies = []
    for i in range(6):
        pixels = np.zeros((8, 8), np.float32)
        pixels[:, : 4 if i % 2 else 8] = 0.5
        pixels[:, 4 * (i % 2 == 0) :][:, :4] += 0.4
        studies.append(Study(f"s{i}", [StudyImage(pixels=pixels)]))
    monkeypatch.setattr(sources, "read_studies", lambda *args, **kwargs: studies)
    monkeypatch.setattr(pipeline, "Pipeline", Stub)
    monkeypatch.setattr("vlm.data.images.load_image", lambda image: image)
    reports = tmp_path / "r.jsonl"
    reports.write_text("".join(json.dumps({"id": f"s{i}", "text": f"opacity {i}"}) + "\n" for i in range(6)))
    options = [
        "--references",
        str(reports),
        "--no-clinical",
        "--resamples",
        "0",
        "--perturb",
        "--checkpoint",
        str(tmp_path),
        "--quiet",
    ]
    return [str(reports), *options, "--json", str(tmp_path / "o.json")]


def test_a_model_that_looks_changes_and_a_blind_one_fails_the_gate(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    seen = CliRunner().invoke(app, [*call, "--fail-if", "changed_blank<0.9"])
    assert seen.exit_code == 0, seen.output
    found = json.loads((tmp_path / "o.json").read_text())
    assert (found["changed_blank"], found["changed_swapped"], found["changed_mirrored"]) == (1.0, 1.0, 1.0)
    assert "Does it look at the image?" in seen.output
    monkeypatch.setattr(Stub, "blind", True)
    blind = CliRunner().invoke(app, [*call, "--fail-if", "changed_blank<0.9"])
    assert blind.exit_code == 3
    assert "changed_blank = 0 < 0.9" in blind.output
