"""Many studies -> a folder of reports: what `vlm generate` and `vlm demo` do.

    DIR/reports.jsonl     one line a study, written as soon as its report is made
    DIR/failures.jsonl    studies without a report, and why; absent when there are none
    DIR/index.html        all of them on one page, written at the end, also after an interruption
    DIR/run.json          checkpoint and settings: a later call with the same ones goes on where this one stopped
    DIR/fhir, DIR/sr      one file a report, on request

Until the page is written its entries lie in a hidden file beside it, so that a killed run loses nothing of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import dcmread

from vlm import __version__
from vlm.data.dicom_tags import flips_of
from vlm.data.examples import choose_views
from vlm.data.files import read_json, write_atomic
from vlm.data.images import file_kind, load_image
from vlm.data.phantoms.chest_ct import phantom_study, write_phantom
from vlm.data.slices import Score
from vlm.data.sources import read_studies
from vlm.data.windows import window_of
from vlm.evaluation.baselines import Settings
from vlm.evaluation.detection import average_precision
from vlm.evaluation.inputs import Reports, join
from vlm.evaluation.run import evaluate_reports
from vlm.export.dicom_sr import write_dicom_sr
from vlm.export.fhir import write_fhir
from vlm.export.files import file_stem
from vlm.export.html import failure_entry, page_entry, read_entries, write_page
from vlm.export.jsonl import GrowingFile, read_rows, report_from_dict, report_to_dict, write_rows
from vlm.pipeline import FailedStudy, GenerationSettings, Pipeline
from vlm.types import InputError, Report, Study, StudyImage

MAX_ON_PAGE = 1000
SPOOL = ".index.jsonl"
TEXT_SCORES = {
    "finding_f1_micro": "findings in the text: F1 (micro)",
    "finding_f1_macro": "findings in the text: F1 (macro)",
    "bleu4": "BLEU-4",
    "rougeL": "ROUGE-L",
    "cider": "CIDEr",
}
"""Metric of `vlm.evaluation` -> its name in the demo's table."""
Watch = Callable[[Study, Report | FailedStudy | None], None]


CONSTANTS = 24
"""Phantom studies among whose reports the demo chooses its constant one."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a call of `vlm generate` asks for, beside its studies.

    Args:
        out: folder to write to.
        settings: for the pipeline. window, slices: what `gather_studies` was given, for the record.
        fhir, dicom_sr: write these too.
        overwrite: start anew where `out` holds reports of another run.
        title: of the page.
    """

    out: Path
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    window: str | None = None
    slices: str | None = None
    fhir: bool = False
    dicom_sr: bool = False
    overwrite: bool = False
    title: str = "Radscribe"


@dataclass(slots=True)
class Outcome:
    """What a batch did.

    Args:
        reports: number of reports that now exist for the studies asked for.
        earlier: how many of them an earlier call had made.
        failed: studies without a report.
        page, reports_file: paths.
    """

    reports: int
    earlier: int
    failed: list[FailedStudy]
    page: Path
    reports_file: Path


def gather_studies(
    paths: Sequence[Path],
    format: str = "auto",
    split: str | None = None,
    window: str | None = None,
    limit: int | None = None,
    slices: str | None = None,
    score: Score | None = None,
) -> list[Study]:
    """Reads the studies of several paths; ids that two paths share are told apart by a number.

    Args:
        paths: files and folders, as `vlm.data.sources.read_studies` takes them.
        format, split: passed on.
        window: "CENTRE/WIDTH" or a name of `vlm.data.windows.WINDOWS`, for every image that has Hounsfield units.
        limit: keep the first so many.
        slices, score: which slices of volumes are kept (`vlm.data.slices`), by the same window.

    Raises:
        InputError: a path that cannot be read, an unknown window, no study.
    """
    window_pair = None if window is None else window_of(window)
    windowed = None if score is None else lambda image: score(replace(image, window=window_pair or image.window))
    studies: list[Study] = []
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        for study in read_studies(path, format, split, slices, windowed):
            name, number = study.id, 2
            while name in taken:
                name, number = f"{study.id}-{number}", number + 1
            taken.add(name)
            images = study.images if window_pair is None else [replace(i, window=window_pair) for i in study.images]
            studies.append(replace(study, id=name, images=images))
    if not studies:
        part = f" of split {split!r}" if split else ""
        raise InputError(f"{', '.join(map(str, paths))}: no studies{part} found")
    return studies if limit is None else studies[:limit]


def run_batch(pipeline: Pipeline, studies: Sequence[Study], job: Job, watch: Watch | None = None) -> Outcome:
    """Writes a report for every study that has none yet in the job's folder.

    Args:
        pipeline: loaded.
        studies: with unique ids.
        job: what to write, and where.
        watch: called after each study, when its line is on disk; with None for one that an earlier call did.

    Returns:
        What was done.

    Raises:
        InputError: the folder holds reports of another checkpoint or of other settings.
        KeyboardInterrupt: after the page of what exists was written.
    """
    _claim(job, pipeline)
    failed: list[FailedStudy] = []
    reports_file = job.out / "reports.jsonl"
    with GrowingFile(reports_file) as reports, _spool(job.out) as spool:
        earlier = sum(study.id in reports.done for study in studies)
        todo = [study for study in studies if study.id not in reports.done]
        for study in studies:
            if watch is not None and study.id in reports.done:
                watch(study, None)
        try:
            for study, result in pipeline.reports(todo, job.settings):
                if isinstance(result, FailedStudy):
                    failed.append(result)
                else:
                    _write_report(pipeline, study, result, job, reports, spool)
                if watch is not None:
                    watch(study, result)
        finally:
            _finish(pipeline, studies, failed, job, reports.done)
    spool.path.unlink()
    return Outcome(earlier + len(todo) - len(failed), earlier, failed, job.out / "index.html", reports_file)


def _claim(job: Job, pipeline: Pipeline) -> None:
    """Makes the folder this run's own, or refuses it."""
    settings = {k: v for k, v in asdict(job.settings).items() if k not in ("batch_size", "attention")}
    settings["window"], settings["slices"] = job.window, job.slices
    mine = json.loads(json.dumps({"checkpoint": pipeline.checkpoint.hash, "settings": settings}))
    record = job.out / "run.json"
    if job.out.exists() and not job.out.is_dir():
        raise InputError(f"{job.out}: is a file; give a folder with --out")
    reports = job.out / "reports.jsonl"
    if job.overwrite:
        for name in ("reports.jsonl", "failures.jsonl", "index.html", SPOOL, "run.json"):
            (job.out / name).unlink(missing_ok=True)
    elif reports.is_file() and reports.stat().st_size:
        theirs = read_json(record) if record.is_file() else None
        theirs = theirs if isinstance(theirs, dict) else {}
        for key, what in (("checkpoint", "another checkpoint"), ("settings", "other settings")):
            if theirs.get(key) != mine[key]:
                raise InputError(
                    f"{job.out}: holds reports of {what}; choose another --out, or replace them with --overwrite"
                )
    content = {"radscribe": __version__, "started": datetime.now(UTC).isoformat(timespec="seconds"), **mine}
    write_atomic(record, json.dumps(content, indent=1) + "\n")


def _spool(out: Path) -> GrowingFile:
    """The page's entries on their way: those of an unfinished run, or those of the page that it left."""
    path, page = out / SPOOL, out / "index.html"
    if not path.exists() and page.is_file():
        write_rows(path, (entry for entry in read_entries(page) if "error" not in entry))
    return GrowingFile(path)


def _write_report(
    pipeline: Pipeline, study: Study, report: Report, job: Job, reports: GrowingFile, spool: GrowingFile
) -> None:
    """The page's entry first: a report that has a line always has an entry."""
    chosen = choose_views(study.images, job.settings.max_views or pipeline.checkpoint.config.data.max_views)
    # Decoded again rather than kept: a window of the pipeline's studies would hold gigabytes of pixels.
    images = [load_image(image) if i in chosen else image for i, image in enumerate(study.images)]
    seen = replace(study, images=images)
    if study.id not in spool.done:
        spool.append(page_entry(seen, report, chosen))
    if job.fhir:
        write_fhir(job.out / "fhir" / f"{file_stem(study.id)}.json", report, seen, pipeline.checkpoint.hash)
    if job.dicom_sr:
        write_dicom_sr(job.out / "sr" / f"{file_stem(study.id)}.dcm", report, seen, [_flips(i) for i in images])
    reports.append(report_to_dict(report, seen))


def _flips(image: StudyImage) -> tuple[bool, bool]:
    """Whether the display mirrors a DICOM file's columns and rows; no other file is mirrored."""
    if image.path is None or file_kind(image.path) != "DICOM":
        return False, False
    return flips_of(dcmread(image.path, stop_before_pixels=True, force=True), image.frame or 0)


def _finish(
    pipeline: Pipeline, studies: Sequence[Study], failed: Sequence[FailedStudy], job: Job, done: Iterable[str]
) -> None:
    """Writes failures.jsonl and the page."""
    path = job.out / "failures.jsonl"
    asked = {study.id for study in studies}
    kept = [row for row in read_rows(path, torn_tail=True) if row["id"] not in asked] if path.is_file() else []
    rows = [*kept, *({"id": f.study_id, "error": f.message} for f in failed)]
    if rows:
        write_rows(path, rows)
    else:
        path.unlink(missing_ok=True)
    order = [*(study.id for study in studies), *(name for name in done if name not in asked)]
    facts = _facts(pipeline, job, len(order))
    write_page(job.out / "index.html", _entries(job.out / SPOOL, order, rows), job.title, facts)


def _entries(spool: Path, order: Sequence[str], failures: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Page entries in the studies' order, one at a time in memory, then those that failed."""
    place: dict[str, int] = {}
    with spool.open("rb") as file:
        offset = 0
        for line in file:
            place[str(json.loads(line)["id"])] = offset
            offset += len(line)
        for name in [name for name in order if name in place][:MAX_ON_PAGE]:
            file.seek(place[name])
            yield json.loads(file.readline())
    for row in failures:
        yield failure_entry(row["id"], row["error"])


def _facts(pipeline: Pipeline, job: Job, studies: int) -> list[tuple[str, str]]:
    settings, generation = job.settings, pipeline.checkpoint.config.generation
    facts = [
        ("checkpoint", pipeline.checkpoint.hash[:12]),
        ("graph", pipeline.checkpoint.graph.hash[:12]),
        ("beams", str(settings.num_beams or generation.num_beams)),
        ("radscribe", __version__),
    ]
    if settings.must:
        facts.append(("must hold", ", ".join(settings.must)))
    if settings.must_not:
        facts.append(("must not say", ", ".join(settings.must_not)))
    if studies > MAX_ON_PAGE:
        facts.append(("shown", f"the first {MAX_ON_PAGE:,} of {studies:,}"))
    return facts


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of the demo's table: a score of the model and of the best constant report, as printed."""

    name: str
    model: str
    floor: str


@dataclass(slots=True)
class DemoResult:
    """What `vlm demo` made: files, and scores against the phantom's exact truth."""

    outcome: Outcome
    rows: list[ScoreRow]


def run_demo(
    out: Path, n: int = 6, seed: int = 0, checkpoint: Path | None = None, watch: Watch | None = None
) -> DemoResult:
    """Writes phantom studies as DICOM, reports them, and scores the reports against the truth.

    Args:
        out: folder; the studies go to `out/phantom`. n, seed: of the phantom. checkpoint: None for the shipped one.
        watch: called after each study.

    Returns:
        What was written, and the scores.

    Raises:
        InputError: the checkpoint is missing or damaged.
    """
    pipeline = Pipeline.load(checkpoint)
    studies = write_phantom(out / "phantom", n, seed)
    outcome = run_batch(pipeline, studies, Job(out, overwrite=True, title="Radscribe demo: phantom chest CT"), watch)
    return DemoResult(outcome, score_demo(studies, outcome.reports_file, seed + 1))


def score_demo(studies: Sequence[Study], reports_file: Path, constant_seed: int = 1) -> list[ScoreRow]:
    """Scores a file of reports against what is known of its studies: boxes, finding probabilities, findings, words.

    The constant report beside the model is chosen on other phantom studies (`constant_seed`): of six references one
    would score by being its own copy.
    """
    made = {row["id"]: row for row in read_rows(reports_file)}
    known = [study for study in studies if study.id in made]
    if not known:
        return []
    reports = [report_from_dict(made[study.id]) for study in known]
    truths = [study.boxes or () for study in known]
    boxes = average_precision([report.boxes for report in reports], truths)
    count = f"{boxes.matched} of {boxes.truths} lesions, {boxes.predictions - boxes.matched} false"
    rows = [
        ScoreRow("boxes: mAP at IoU 0.5", _shown(boxes.mean_ap), "-"),
        ScoreRow("boxes: mean IoU where matched", _shown(boxes.mean_iou), "-"),
        ScoreRow("boxes: found at confidence 0.5", count, "-"),
    ]
    references = Reports(reports_file, {s.id: (s.report or {}).get("findings", "") for s in known})
    references.records.update({s.id: {"id": s.id} for s in known})
    texts = {r.study_id: r.sections.get("findings") or r.sections.get("impression", "") for r in reports}
    if not any(texts.values()) or not any(references.texts.values()):
        return rows
    predictions = Reports(reports_file, texts, {name: {"id": name} for name in texts})
    settings = Settings(resamples=0, meteor="off")
    others = [phantom_study(constant_seed, index) for index in range(CONSTANTS)]
    train = Reports(reports_file, {s.id: (s.report or {})["findings"] for s in others})
    result = evaluate_reports(join({"model": predictions}, references, allow_missing=True), settings, train)
    floor = next((s.values() for s in result.systems if s.floor and s.name.startswith("constant")), {})
    mine = result.system("model").values()
    return rows + [
        ScoreRow(shown, _shown(mine[name]), _shown(floor.get(name, float("nan"))))
        for name, shown in TEXT_SCORES.items()
        if name in mine
    ]


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
