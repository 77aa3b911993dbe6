"""`vlm demo`: DICOM files, reports, scores and the page, from one seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm.batch import score_demo
from vlm.cli.main import main
from vlm.data.phantoms.chest_ct import phantom_study
from vlm.export.html import read_entries
from vlm.export.jsonl import report_to_dict, write_rows
from vlm.types import Box, Report


def test_the_demo_writes_studies_reports_and_the_page(
    tiny_checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", str(out), "--n", "2", "--seed", "3", "--checkpoint", str(tiny_checkpoint_folder)])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(out / "index.html")
    assert "mAP at IoU 0.5" in printed
    assert len(list((out / "phantom").glob("*.dcm"))) == 2
    assert len((out / "reports.jsonl").read_text().splitlines()) == 2
    entries = list(read_entries(out / "index.html"))
    truth = [json.loads(line) for line in (out / "phantom" / "studies.jsonl").read_text().splitlines()]
    for entry, study in zip(entries, truth, strict=True):
        assert entry["truth"]["sections"] == study["report"]
        assert [b["label"] for b in entry["truth"]["boxes"]] == [b["label"] for b in study["boxes"]]
        assert entry["images"][0]["mm"] > 0


def test_perfect_reports_get_perfect_scores(tmp_path: Path) -> None:
    studies = [phantom_study(0, index) for index in range(4)]
    rows = []
    for study in studies:
        boxes = tuple(Box(b.xyxy, b.label, 0, 0.9) for b in study.boxes or ())
        rows.append(report_to_dict(Report(study.id, dict(study.report or {}), (), (), boxes)))
    write_rows(tmp_path / "r.jsonl", rows)
    scores = {row.name: row for row in score_demo(studies, tmp_path / "r.jsonl")}
    assert scores["boxes: mAP at IoU 0.5"].model == "1.000"
    assert scores["boxes: mean IoU where matched"].model == "1.000"
    assert scores["BLEU-4"].model == "1.000"
    assert scores["findings in the text: F1 (micro)"].model == "1.000"
    assert float(scores["BLEU-4"].floor) < 1
    lesions = sum(len(s.boxes or ()) for s in studies)
    assert scores["boxes: found at confidence 0.5"].model == f"{lesions} of {lesions} lesions, 0 false"
