"""`vlm generate`: what lies in the folder afterwards, what a second call does, and what wrong input prints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import draw_study

from vlm.batch import Job, run_batch
from vlm.cli.main import main
from vlm.data.sources import gather_studies
from vlm.export.html import read_entries
from vlm.pipeline import FailedStudy, GenerationSettings, Pipeline
from vlm.report_folder import ReportFolder, claim
from vlm.types import InputError, Report, Study

KEYS = {"id", "sections", "text", "findings", "boxes", "sentences", "images", "unmet"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*arguments: object) -> int:
    """Runs one command line; returns the exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        draw_study(folder, number, views=1)
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint_folder: Path) -> Pipeline:
    return Pipeline.load(tiny_checkpoint_folder)


def test_a_folder_of_pictures(
    pictures: Path, tiny_checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    (tmp_path / "in" / "zz.png").write_bytes(b"no image")
    out = tmp_path / "out"
    options = ("--checkpoint", tiny_checkpoint_folder, "--num-beams", 2, "--fhir", "--dicom-sr", "--batch-size", 2)
    assert run("generate", tmp_path / "in", "--out", out, *options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 reports, 1 failed"
    rows = lines(out / "reports.jsonl")
    assert [set(row) for row in rows] == [KEYS] * 3
    assert all(len(row["findings"]) == 25 and row["images"][0]["width"] == 80 for row in rows)
    (failure,) = lines(out / "failures.jsonl")
    assert "is not an image" in failure["error"]
    entries = list(read_entries(out / "index.html"))
    assert [e["id"] for e in entries] == [*(row["id"] for row in rows), failure["id"]]
    assert sorted(p.name for p in out.iterdir()) == [
        "failures.jsonl", "fhir", "index.html", "reports.jsonl", "run.json", "sr",
    ]  # fmt: skip
    assert len(list((out / "sr").iterdir())) == len(list((out / "fhir").iterdir())) == 3
    assert str(tmp_path) not in (out / "run.json").read_text()


def test_a_second_call_goes_on(
    pictures: Path, tiny_checkpoint_folder: Path, tmp_path: Path, pipeline: Pipeline
) -> None:
    studies, job = gather_studies([pictures]), Job(tmp_path / "out")
    first = run_batch(pipeline, studies[:2], job)
    before = (first.reports_file).read_text()
    seen: list[tuple[str, bool]] = []
    outcome = run_batch(pipeline, studies, job, lambda study, result: seen.append((study.id, result is None)))
    assert (outcome.reports, outcome.earlier) == (3, 2)
    assert first.reports_file.read_text().startswith(before)
    assert seen == [(studies[0].id, True), (studies[1].id, True), (studies[2].id, False)]
    entries = list(read_entries(outcome.page))
    assert [e["id"] for e in entries] == [s.id for s in studies]
    assert entries[0]["images"][0]["src"].startswith("data:image/webp")


def test_other_settings_are_refused_until_overwritten(pictures: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    studies, job = gather_studies([pictures], limit=1), Job(tmp_path / "out")
    run_batch(pipeline, studies, job)
    other = replace(job, settings=GenerationSettings(num_beams=1))
    with pytest.raises(InputError, match=r"other settings.*--overwrite"):
        run_batch(pipeline, studies, other)
    assert run_batch(pipeline, studies, replace(other, overwrite=True)).earlier == 0
    record = json.loads((job.out / "run.json").read_text())
    (job.out / "run.json").write_text(json.dumps({**record, "checkpoint": "0" * 64}))
    with pytest.raises(InputError, match="another checkpoint"):
        run_batch(pipeline, studies, other)


class Stopping(Pipeline):
    """Ctrl-C after the first report."""

    def stream(
        self, studies: Any, settings: GenerationSettings | None = None
    ) -> Iterator[tuple[int, Study, Report | FailedStudy]]:
        yield next(iter(super().stream(studies, settings)))
        raise KeyboardInterrupt


def test_an_interruption_keeps_what_is_written(pictures: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    studies, job = gather_studies([pictures]), Job(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_batch(Stopping(pipeline.checkpoint), studies, job)
    assert [row["id"] for row in lines(job.out / "reports.jsonl")] == [studies[0].id]
    assert [e["id"] for e in read_entries(job.out / "index.html")] == [studies[0].id]
    outcome = run_batch(pipeline, studies, job)
    assert (outcome.reports, outcome.earlier) == (3, 1)
    assert len(list(read_entries(outcome.page))) == 3


def test_a_repaired_study_leaves_the_failures(pictures: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    broken = tmp_path / "in" / "a.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    job = Job(tmp_path / "out")
    outcome = run_batch(pipeline, gather_studies([broken.parent]), job)
    assert (outcome.reports, len(outcome.failed)) == (0, 1)
    shutil.copy(next(pictures.iterdir()), broken)
    outcome = run_batch(pipeline, gather_studies([broken.parent]), job)
    assert (outcome.reports, len(outcome.failed)) == (1, 0)
    assert not (job.out / "failures.jsonl").exists()


def test_terms_reach_the_report(pictures: Path, tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--checkpoint", tiny_checkpoint_folder, "--must", "nodule", "--limit", 1)
    assert run("generate", pictures, "--out", out, *options) == 0
    (row,) = lines(out / "reports.jsonl")
    assert "nodule" in row["text"].lower() or row["unmet"] == ["--must nodule"]


def test_several_reports_sampling_and_a_trace(pictures: Path, tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    common = ("--checkpoint", tiny_checkpoint_folder, "--limit", 2)
    assert (
        run("generate", pictures, "--out", tmp_path / "a", *common, "--num-reports", 3, "--num-beams", 12, "--trace")
        == 0
    )
    rows = lines(tmp_path / "a" / "reports.jsonl")
    assert all(set(row) == KEYS | {"alternatives"} and len(row["alternatives"]) == 2 for row in rows)
    texts = [rows[0]["text"], *(other["text"] for other in rows[0]["alternatives"])]
    assert len(set(texts)) == 3
    trace = json.loads((tmp_path / "a" / "trace" / f"{rows[0]['id']}.json").read_text())
    assert {step["section"] for step in trace["steps"]} == set(rows[0]["sections"])
    drawn = []
    for out, seed in (("b", 1), ("c", 1), ("d", 2)):
        options = ("--decoding", "sample", "--temperature", 0.9, "--top-p", 0.9, "--seed", seed, "--must", "nodule")
        assert run("generate", pictures, "--out", tmp_path / out, *common, *options) == 0
        drawn.append(lines(tmp_path / out / "reports.jsonl"))
    assert drawn[0] == drawn[1] != drawn[2]
    assert all("nodule" in row["text"].lower() or row["unmet"] for rows in drawn for row in rows)


def test_constraints_from_a_file_and_beams_by_need(
    pictures: Path, tiny_checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "constraints.json"
    file.write_text(json.dumps({"must_appear": [{"name": "wanted", "terms": ["small nodule", "mass"]}]}))
    options = ("--checkpoint", tiny_checkpoint_folder, "--limit", 1, "--num-beams", "auto", "--constraints", file)
    assert run("generate", pictures, "--out", tmp_path / "o", *options) == 0
    (row,) = lines(tmp_path / "o" / "reports.jsonl")
    assert any(term in row["text"].lower() for term in ("small nodule", "mass")) or row["unmet"]
    file.write_text('{"must": []}')
    assert run("generate", pictures, "--out", tmp_path / "p", *options) == 2
    assert "constraints.json: constraints have an unknown key 'must'" in capsys.readouterr().err


def test_what_processes_left_is_taken_up_by_any_number_of_them(
    pictures: Path, tmp_path: Path, pipeline: Pipeline
) -> None:
    studies, whole, job = gather_studies([pictures]), Job(tmp_path / "whole"), Job(tmp_path / "out")
    run_batch(pipeline, studies, whole)
    claim(job, pipeline)
    for part, own in enumerate((studies[2:], studies[1:2])):  # as two processes that were killed
        with ReportFolder(job, pipeline, part) as folder:
            for _, study, report in pipeline.stream(own):
                assert isinstance(report, Report)
                folder.write(study, report)
    with (job.out / ".part-1.jsonl").open("a") as file:
        file.write('{"id": "torn')
    outcome = run_batch(pipeline, studies, job)
    assert (outcome.reports, outcome.earlier) == (3, 2)
    assert (job.out / "reports.jsonl").read_text() == (whole.out / "reports.jsonl").read_text()
    assert [e["id"] for e in read_entries(outcome.page)] == [s.id for s in studies]
    assert not list(job.out.glob(".*"))


def test_ids_that_two_folders_share_are_told_apart(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "again")
    studies = gather_studies([pictures, tmp_path / "again", pictures], window="lung")
    assert len({s.id for s in studies}) == len(studies) == 6
    assert studies[0].images[0].window == (-600.0, 1500.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("absent.png", "--out", "o"), "absent.png: no such file or folder"),
        (("empty", "--out", "o"), "empty"),
        (("notes.csv", "--out", "o"), "notes.csv"),
        (("a.png", "--out", "o", "--window", "lungs"), "window 'lungs' is not known; choose lung"),
        (("a.png", "--out", "o", "--format", "dcm"), "format 'dcm' is not known; choose auto"),
        (("a.png", "--out", "o", "--checkpoint", "empty"), "is not a checkpoint: checkpoint.json is missing"),
        (("a.png", "--out", "o", "--split", "val"), "val"),
        (("a.png", "--out", "o", "--temperature", "0.5"), "temperature and top_p are for decoding 'sample'"),
        (("a.png", "--out", "o", "--decoding", "greedy", "--num-reports", "2"), "greedy decoding has one report"),
        (("a.png", "--out", "o", "--num-beams", "2", "--num-reports", "3"), "3 reports of 2 beams"),
        (("a.png", "--out", "o", "--constraints", "none.json"), "none.json: cannot be read"),
        (("a.png", "--out", "o", "--must", " "), "--must: a term without a letter or digit"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.csv").write_text("name,value\na,1\n")
    shutil.copy(next(pictures.iterdir()), "a.png")
    assert run("generate", *arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1
    assert not Path("o").exists()


def test_exit_code_2_when_all_fail(
    tiny_checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    assert run("generate", tmp_path / "in", "--out", tmp_path / "o", "--checkpoint", tiny_checkpoint_folder) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "0 reports, 1 failed"
