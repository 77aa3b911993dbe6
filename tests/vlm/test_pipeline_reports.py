"""From studies to reports: order, failures, constraints, and that a report depends on its own study alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import draw_study

from vlm.export.jsonl import report_to_dict
from vlm.pipeline import FailedStudy, GenerationSettings, Pipeline
from vlm.types import Report, Study, StudyImage


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint_folder: Path) -> Pipeline:
    return Pipeline.load(tiny_checkpoint_folder)


def test_every_study_is_answered_in_order_and_a_bad_one_does_not_stop_the_rest(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    studies = [draw_study(tmp_path, n, views=1 + n % 2) for n in range(5)]
    studies.insert(2, Study("broken", [StudyImage(path=tmp_path / "missing.png")]))
    answers = list(pipeline.reports(studies, GenerationSettings(batch_size=2)))
    assert [study.id for study, _ in answers] == [study.id for study in studies]
    failed = [report for _, report in answers if isinstance(report, FailedStudy)]
    assert [f.study_id for f in failed] == ["broken"]
    assert "missing.png: no such image file" in failed[0].message


def test_a_report_holds_what_a_page_needs(pipeline: Pipeline, tmp_path: Path) -> None:
    ((_, report),) = pipeline.reports([draw_study(tmp_path, 1)])
    assert isinstance(report, Report)
    assert [f.label for f in report.findings] == list(pipeline.checkpoint.labels)
    assert all(0 <= (f.probability or 0) <= 1 for f in report.findings)
    assert set(report.sections) <= {"findings", "impression"}
    for name in ("nodule", "normal"):
        assert report.attention[name].shape[0] == 2
        assert report.attention[name].sum() == pytest.approx(1.0, abs=1e-3)
    for box in report.boxes:
        assert 0 <= box.xyxy[0] < box.xyxy[2] <= 80
        assert 0 <= box.xyxy[1] < box.xyxy[3] <= 96


@pytest.mark.parametrize("decoding", ["beam", "sample"])
def test_a_report_does_not_depend_on_the_batch(pipeline: Pipeline, tmp_path: Path, decoding: Any) -> None:
    """To the last digit: texts, alternatives, probabilities, boxes and confidences."""
    studies = [draw_study(tmp_path, n, views=1 + n % 2) for n in range(5)]
    studies = [replace(s, clinical={"indication": "Cough. " * n}) for n, s in enumerate(studies)]
    written = []
    threads = torch.get_num_threads()
    try:
        for size, count in ((1, 1), (2, 1), (5, 2)):
            torch.set_num_threads(count)
            settings = GenerationSettings(batch_size=size, num_reports=2, decoding=decoding)
            made = [r for _, r in pipeline.reports(studies, settings)]
            written.append([report_to_dict(r) for r in made if isinstance(r, Report)])
    finally:
        torch.set_num_threads(threads)
    assert len(written[0]) == 5
    assert written[0] == written[1] == written[2]


def test_reports_come_as_they_finish_and_in_order(pipeline: Pipeline, tmp_path: Path) -> None:
    studies = [draw_study(tmp_path, n, views=1 + n % 2) for n in range(6)]
    settings = GenerationSettings(batch_size=2, num_beams="auto")
    streamed = {index: report for index, _, report in pipeline.stream(studies, settings)}
    assert sorted(streamed) == list(range(6))
    ordered = [r for _, r in pipeline.reports(studies, settings)]
    assert [r.study_id for r in ordered if isinstance(r, Report)] == [s.id for s in studies]


def test_the_reference_is_never_read(pipeline: Pipeline, tmp_path: Path) -> None:
    study = draw_study(tmp_path, 1)
    ((_, before),) = pipeline.reports([study])
    study.report, study.findings, study.boxes = {"findings": "Something else entirely."}, None, None
    ((_, after),) = pipeline.reports([study])
    assert isinstance(before, Report)
    assert isinstance(after, Report)
    assert before.sections == after.sections
    assert before.findings == after.findings


def test_terms_that_must_appear_do_and_the_mark_of_the_deidentifier_never(pipeline: Pipeline, tmp_path: Path) -> None:
    settings = GenerationSettings(must=("small nodule",), steer=False)
    ((_, report),) = pipeline.reports([draw_study(tmp_path, 3)], settings)
    assert isinstance(report, Report)
    assert "small nodule" in report.sections["findings"].lower()
    assert "XXXX" not in " ".join(report.sections.values())


def test_blanking_changes_what_the_model_sees(pipeline: Pipeline, tmp_path: Path) -> None:
    study = draw_study(tmp_path, 2)
    ((_, seen),) = pipeline.reports([study])
    ((_, blank),) = pipeline.reports([study], GenerationSettings(blank=True))
    assert isinstance(seen, Report)
    assert isinstance(blank, Report)
    assert [f.probability for f in seen.findings] != [f.probability for f in blank.findings]
