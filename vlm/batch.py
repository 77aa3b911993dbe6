"""Many studies -> a folder of reports (`report_folder`): what `vlm generate` and `vlm demo` do.

Under `accelerate launch` or `torchrun` each process takes every n-th study and writes files of its own, and the first
joins them: the same folder for any number of processes. A call that was interrupted is taken up by the next one, with
any number of processes, and no study is done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.data.phantoms.chest_ct import write_phantom
from vlm.demo_scores import ScoreRow, score_demo
from vlm.pipeline import FailedStudy, Pipeline
from vlm.report_folder import REPORTS, SPOOL, Job, ReportFolder, claim, finish, join_parts
from vlm.team import Team
from vlm.types import Report, Study

__all__ = ["Job", "Outcome", "run_batch", "run_demo", "score_demo"]

Watch = Callable[[Study, Report | FailedStudy | None], None]


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


def run_batch(
    pipeline: Pipeline, studies: Sequence[Study], job: Job, watch: Watch | None = None, team: Team | None = None
) -> Outcome:
    """Writes a report for every study that has none yet in the job's folder.

    Args:
        pipeline: loaded.
        studies: with unique ids.
        job: what to write, and where.
        watch: called after each study, when its line is on disk; with None for one that an earlier call did.
        team: the processes that share the work; None for this one alone. All must be given the same studies and job.

    Returns:
        What was done, by all processes.

    Raises:
        InputError: the folder holds reports of another checkpoint or of other settings.
        KeyboardInterrupt: after the page of what exists was written (by one process alone).
    """
    team = team or Team()
    done = team.first(lambda: claim(job, pipeline))
    todo = [study for study in studies if study.id not in done]
    for study in studies:
        if watch is not None and study.id in done:
            watch(study, None)
    failed: list[FailedStudy] = []
    part = team.rank if team.size > 1 else None
    try:
        with ReportFolder(job, pipeline, part) as folder:
            for _, study, result in pipeline.stream(todo[team.rank :: team.size], job.settings):
                if isinstance(result, FailedStudy):
                    failed.append(result)
                else:
                    folder.write(study, result)
                if watch is not None:
                    watch(study, result)
    finally:
        if team.size == 1:
            finish(pipeline, studies, failed, job)
    if team.size > 1:
        failed = [entry for own in team.gather(failed) for entry in own]
        team.first(lambda: _close(pipeline, studies, failed, job))
    elif (job.out / SPOOL).exists():
        (job.out / SPOOL).unlink()
    earlier = len(studies) - len(todo)
    return Outcome(len(studies) - len(failed), earlier, failed, job.out / "index.html", job.out / REPORTS)


def _close(pipeline: Pipeline, studies: Sequence[Study], failed: Sequence[FailedStudy], job: Job) -> None:
    """What the first process does when all have done their share."""
    join_parts(job.out)
    finish(pipeline, studies, failed, job)
    (job.out / SPOOL).unlink(missing_ok=True)


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
