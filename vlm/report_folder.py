"""The folder that `vlm generate` writes: claimed, filled line by line, and put in order.

    DIR/reports.jsonl     one line a study, written as soon as its report is made; put in the studies' order at the end
    DIR/failures.jsonl    studies without a report, and why; absent when there are none
    DIR/index.html        all of them on one page, written at the end, also after an interruption
    DIR/run.json          checkpoint (of an ensemble: all members) and settings: a later call with the same ones goes
                          on where this one stopped
    DIR/fhir, sr, trace   one file a report, on request

Until the page is written its entries lie in a hidden file beside it, so that a killed run loses nothing of them. Of
several processes each writes hidden files of its own, which are joined at the end, or by the next call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom import dcmread

from vlm import __version__
from vlm.data.dicom_tags import flips_of
from vlm.data.examples import choose_views
from vlm.data.files import read_json, write_atomic
from vlm.data.images import file_kind, load_image
from vlm.export.dicom_sr import write_dicom_sr
from vlm.export.fhir import write_fhir
from vlm.export.files import file_stem, whole_file, write_whole
from vlm.export.html import failure_entry, page_entry, read_entries, write_page
from vlm.export.jsonl import GrowingFile, read_rows, report_to_dict, write_rows
from vlm.pipeline import FailedStudy, GenerationSettings, Pipeline
from vlm.types import InputError, Report, Study, StudyImage

MAX_ON_PAGE = 1000
REPORTS, SPOOL = "reports.jsonl", ".index.jsonl"


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


class ReportFolder:
    """The files of one process; `with` closes them.

    Args:
        job: what to write, and where; the folder has been claimed.
        pipeline: that makes the reports.
        part: number of this process among several; None for the only one.
    """

    def __init__(self, job: Job, pipeline: Pipeline, part: int | None = None) -> None:
        self.job, self.pipeline = job, pipeline
        if part is None:
            self.reports, self.spool = GrowingFile(job.out / REPORTS), _spool(job.out)
        else:
            self.reports, self.spool = (GrowingFile(job.out / name) for name in _part_names(part))

    def __enter__(self) -> ReportFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reports.close()
        self.spool.close()

    def write(self, study: Study, report: Report) -> None:
        """Writes a report; its line comes last, so that one that has a line has everything else."""
        job, pipeline = self.job, self.pipeline
        chosen = choose_views(study.images, job.settings.max_views or pipeline.checkpoint.config.data.max_views)
        # Decoded again rather than kept: the pipeline's waiting studies would hold gigabytes of pixels.
        images = [load_image(image) if i in chosen else image for i, image in enumerate(study.images)]
        seen = replace(study, images=images)
        stem = file_stem(study.id)
        if study.id not in self.spool.done:
            self.spool.append(page_entry(seen, report, chosen))
        if job.fhir:
            write_fhir(job.out / "fhir" / f"{stem}.json", report, seen, pipeline.checkpoint.hash)
        if job.dicom_sr:
            write_dicom_sr(job.out / "sr" / f"{stem}.dcm", report, seen, [_flips(i) for i in images])
        if report.trace is not None and job.settings.trace:
            trace = {"id": study.id, **report.trace}
            write_whole(job.out / "trace" / f"{stem}.json", json.dumps(trace, ensure_ascii=False) + "\n")
        self.reports.append(report_to_dict(report, seen))


def claim(job: Job, pipeline: Pipeline) -> set[str]:
    """Makes the folder this run's own and joins what processes left behind; the ids of the studies that have a report.

    Raises:
        InputError: the folder holds reports of another checkpoint or of other settings.
    """
    settings = {k: v for k, v in asdict(job.settings).items() if k not in ("batch_size", "attention", "constraints")}
    if job.settings.constraints is not None:
        settings["constraints"] = json.loads(job.settings.constraints.to_json())
    settings["window"], settings["slices"] = job.window, job.slices
    mine = json.loads(json.dumps({"checkpoint": pipeline.checkpoint.hash, "settings": settings}))
    record = job.out / "run.json"
    if job.out.exists() and not job.out.is_dir():
        raise InputError(f"{job.out}: is a file; give a folder with --out")
    parts = sorted(job.out.glob(".part-*.jsonl"))
    files = [job.out / REPORTS, *parts]
    if job.overwrite:
        for name in (REPORTS, "failures.jsonl", "index.html", SPOOL, "run.json"):
            (job.out / name).unlink(missing_ok=True)
        for path in parts:
            path.unlink()
    elif any(path.is_file() and path.stat().st_size for path in files):
        theirs = read_json(record) if record.is_file() else None
        theirs = theirs if isinstance(theirs, dict) else {}
        for key, what in (("checkpoint", "another checkpoint"), ("settings", "other settings")):
            if theirs.get(key) != mine[key]:
                raise InputError(
                    f"{job.out}: holds reports of {what}; choose another --out, or replace them with --overwrite"
                )
    if len(pipeline.members) > 1:
        mine["members"] = [member.checkpoint.hash for member in pipeline.members]
    content = {"radscribe": __version__, "started": datetime.now(UTC).isoformat(timespec="seconds"), **mine}
    write_atomic(record, json.dumps(content, indent=1) + "\n")
    join_parts(job.out)
    with GrowingFile(job.out / REPORTS) as reports:
        return set(reports.done)


def _part_names(part: int | str) -> tuple[str, str]:
    return f".part-{part}.jsonl", f".part-{part}.index.jsonl"


def join_parts(out: Path) -> None:
    """Appends what processes wrote to the folder's own files; a study that is there already is passed over."""
    found = [p for p in sorted(out.glob(".part-*.jsonl")) if not p.name.endswith(".index.jsonl")]
    if not found:
        return
    with GrowingFile(out / REPORTS) as reports, _spool(out) as spool:
        for path in found:
            entries = path.with_name(path.name.removesuffix(".jsonl") + ".index.jsonl")
            # Entries first: a report that has a line always has an entry, should this call be killed too.
            for source, target in ((entries, spool), (path, reports)):
                for row in read_rows(source, torn_tail=True) if source.is_file() else ():
                    if str(row["id"]) not in target.done:
                        target.append(row)
    for path in found:
        path.unlink()
        path.with_name(path.name.removesuffix(".jsonl") + ".index.jsonl").unlink(missing_ok=True)


def _spool(out: Path) -> GrowingFile:
    """The page's entries on their way: those of an unfinished run, or those of the page that it left."""
    path, page = out / SPOOL, out / "index.html"
    if not path.exists() and page.is_file():
        write_rows(path, (entry for entry in read_entries(page) if "error" not in entry))
    return GrowingFile(path)


def _flips(image: StudyImage) -> tuple[bool, bool]:
    """Whether the display mirrors a DICOM file's columns and rows; no other file is mirrored."""
    if image.path is None or file_kind(image.path) != "DICOM":
        return False, False
    return flips_of(dcmread(image.path, stop_before_pixels=True, force=True), image.frame or 0)


def finish(pipeline: Pipeline, studies: Sequence[Study], failed: Sequence[FailedStudy], job: Job) -> None:
    """Puts the reports in the studies' order, those that were not asked for behind them; writes failures and page."""
    path = job.out / "failures.jsonl"
    asked = {study.id for study in studies}
    kept = [row for row in read_rows(path, torn_tail=True) if row["id"] not in asked] if path.is_file() else []
    place = {study.id: number for number, study in enumerate(studies)}
    own = sorted(failed, key=lambda f: place[f.study_id])
    rows = [*kept, *({"id": f.study_id, "error": f.message} for f in own)]
    if rows:
        write_rows(path, rows)
    else:
        path.unlink(missing_ok=True)
    done = _sort(job.out / REPORTS, [study.id for study in studies])
    if not (job.out / SPOOL).exists():
        _spool(job.out).close()
    order = [*(study.id for study in studies), *(name for name in done if name not in asked)]
    facts = _facts(pipeline, job, len(order))
    write_page(job.out / "index.html", _entries(job.out / SPOOL, order, rows), job.title, facts)


def _offsets(path: Path) -> dict[str, int]:
    """Where the line of each id begins."""
    place: dict[str, int] = {}
    offset = 0
    with path.open("rb") as file:
        for line in file:
            place[str(json.loads(line)["id"])] = offset
            offset += len(line)
    return place


def _sort(path: Path, order: Sequence[str]) -> list[str]:
    """Puts the lines of a file in order, unnamed ones behind; the ids as they now stand."""
    place = _offsets(path)
    wanted = [name for name in order if name in place]
    wanted += [name for name in place if name not in set(wanted)]
    if wanted != list(place):
        with path.open("rb") as file, whole_file(path) as target:
            for name in wanted:
                file.seek(place[name])
                target.write(file.readline())
    return wanted


def _entries(spool: Path, order: Sequence[str], failures: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Page entries in the studies' order, one at a time in memory, then those that failed."""
    place = _offsets(spool)
    with spool.open("rb") as file:
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
    if len(pipeline.members) > 1:
        facts.insert(1, ("members", ", ".join(m.checkpoint.hash[:12] for m in pipeline.members)))
    if settings.decoding != "beam":
        facts[-2] = ("decoding", settings.decoding)
    if settings.must:
        facts.append(("must hold", ", ".join(settings.must)))
    if settings.must_not:
        facts.append(("must not say", ", ".join(settings.must_not)))
    if studies > MAX_ON_PAGE:
        facts.append(("shown", f"the first {MAX_ON_PAGE:,} of {studies:,}"))
    return facts
