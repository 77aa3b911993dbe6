"""`vlm generate`: reports for files, folders and lists of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Image, DICOM, folder, or JSONL/CSV list of studies.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for reports.jsonl and index.html.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder; default: the shipped one.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter to put on the checkpoint (vlm adapter export), or a PEFT folder.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, max=64, help="Width of the search.")] = None,
    must: Annotated[
        list[str] | None, typer.Option(metavar="TERM", help="Every report holds it, in any wording (repeatable).")
    ] = None,
    must_not: Annotated[
        list[str] | None, typer.Option(metavar="TERM", help="No report asserts it (repeatable).")
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="P", help="Leave out sentences with a confidence below P, and say so."
        ),
    ] = None,
    window: Annotated[
        str | None, typer.Option(metavar="NAME|C/W", help="CT window: lung, bone, ... or CENTRE/WIDTH such as 40/400.")
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:N",
            help="Slices of a volume to look at: uniform:8, mls:8 (surest boxes) or mip:8 (slabs).",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="Layout of the data set, see `vlm data --help`.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Only studies of this split.")] = None,
    fhir: Annotated[bool, typer.Option("--fhir", help="Write FHIR R4 DiagnosticReports too.")] = False,
    dicom_sr: Annotated[bool, typer.Option("--dicom-sr", help="Write DICOM structured reports too.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many studies.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Studies at a time.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the reports of another run in OUT.")] = False,
) -> None:
    """Write reports with their evidence; a call that was interrupted is taken up where it stopped."""
    from rich.console import Console

    from vlm.cli.progress import calm_libraries, watching

    calm_libraries()
    from vlm.batch import Job, gather_studies, run_batch
    from vlm.data.slices import SliceRule
    from vlm.pipeline import GenerationSettings, Pipeline

    rule = None if slices is None else SliceRule.parse(slices)
    ranked = Pipeline.load(checkpoint, adapter) if rule is not None and rule.kind == "mls" else None
    score = None if ranked is None else ranked.lesion_score
    studies = gather_studies(paths, format, split, window, limit, slices, score)
    settings = GenerationSettings(
        tuple(must or ()), tuple(must_not or ()), num_beams=num_beams, batch_size=batch_size,
        max_views=None if rule is None else rule.most, abstain=abstain,
    )  # fmt: skip
    pipeline = ranked or Pipeline.load(checkpoint, adapter)
    with watching(len(studies)) as watch:
        outcome = run_batch(pipeline, studies, Job(out, settings, window, slices, fhir, dicom_sr, overwrite), watch)
    console = Console(soft_wrap=True)
    for failure in outcome.failed[:10]:
        console.print(f"failed: {failure.study_id}: {failure.message}", style="yellow", markup=False, highlight=False)
    if len(outcome.failed) > 10:
        console.print(f"... and {len(outcome.failed) - 10} more in {out / 'failures.jsonl'}", markup=False)
    console.print(f"{outcome.page}", markup=False, highlight=False)
    console.print(f"{outcome.reports} reports, {len(outcome.failed)} failed", highlight=False)
    if outcome.reports == 0:
        raise typer.Exit(2)
