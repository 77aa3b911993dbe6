"""`vlm generate`: reports for files, folders and lists of studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vlm.batch import Outcome


def generate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Image, DICOM, folder, or JSONL/CSV list of studies.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for reports.jsonl and index.html.")],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoint folder; default: the shipped one. Several write together (repeatable)."),
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            help="Adapter to put on the checkpoint (vlm adapter export), or a PEFT folder. Several on one checkpoint "
            "write together (repeatable)."
        ),
    ] = None,
    num_beams: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Width of the search, 1 to 64; auto: by what was seen in each study."),
    ] = None,
    decoding: Annotated[
        Literal["beam", "greedy", "sample"], typer.Option(help="How texts are found; constraints hold in all three.")
    ] = "beam",
    temperature: Annotated[float | None, typer.Option(help="Of --decoding sample; default: the checkpoint's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of the likeliest tokens that are drawn.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn; the same seed gives the same reports.")] = 0,
    num_reports: Annotated[
        int, typer.Option(min=1, max=64, help="Reports a study; further ones are its `alternatives`.")
    ] = 1,
    trace: Annotated[
        bool, typer.Option("--trace", help="Write what the beams did to OUT/trace, a file a study.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what moved each finding; draw that and the search on the page.")
    ] = False,
    constraints: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Constraints for every report, see `vlm.generation`.")
    ] = None,
    must: Annotated[
        list[str] | None, typer.Option(metavar="TERM", help="Every report holds it, in any wording (repeatable).")
    ] = None,
    must_not: Annotated[
        list[str] | None, typer.Option(metavar="TERM", help="No report asserts it (repeatable).")
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="P", help="Leave out sentences with a confidence below P, and say so."),
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
    from vlm.data.slices import SliceRule
    from vlm.data.sources import gather_studies
    from vlm.generation.constraints import Constraints

    # What can be wrong with the words of the call is said before the models' libraries are loaded, which takes seconds.
    rule = None if slices is None else SliceRule.parse(slices)
    given = None if constraints is None else Constraints.load(constraints)
    ranks = rule is not None and rule.kind == "mls"
    studies = [] if ranks else gather_studies(paths, format, split, window, limit, slices)
    calm_libraries()
    from vlm.batch import Job, run_batch
    from vlm.pipeline import GenerationSettings, Pipeline
    from vlm.team import Team

    settings = GenerationSettings(
        tuple(must or ()), tuple(must_not or ()), num_beams=_width(num_beams), batch_size=batch_size,
        max_views=None if rule is None else rule.most, abstain=abstain, decoding=decoding, temperature=temperature,
        top_p=top_p, seed=seed, num_reports=num_reports, trace=trace,
        explain=explain, constraints=given,
    )  # fmt: skip
    pipeline = Pipeline.load(checkpoint, adapter)
    if ranks:
        studies = gather_studies(paths, format, split, window, limit, slices, pipeline.lesion_score)
    job = Job(out, settings, window, slices, fhir, dicom_sr, overwrite)
    team = Team.join()
    try:
        with watching(len(studies), team.rank == 0) as watch:
            outcome = run_batch(pipeline, studies, job, watch, team)
    except KeyboardInterrupt:
        line = f"interrupted; what was written is in {out}: run the same command again to go on"
        Console(stderr=True, soft_wrap=True).print(line, style="yellow", markup=False, highlight=False)
        raise typer.Exit(130) from None
    finally:
        team.leave()
    if team.rank == 0:
        _tell(outcome)
    if outcome.reports == 0:
        raise typer.Exit(2)


def _width(text: str | None) -> int | Literal["auto"] | None:
    """The value of --num-beams."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise typer.BadParameter(f"{text!r} is neither a number from 1 to 64 nor 'auto'", param_hint="--num-beams")
    return int(text)


def _tell(outcome: Outcome) -> None:
    """What was written, and what failed."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    for failure in outcome.failed[:10]:
        console.print(f"failed: {failure.study_id}: {failure.message}", style="yellow", markup=False, highlight=False)
    if len(outcome.failed) > 10:
        more = f"... and {len(outcome.failed) - 10} more in {outcome.page.with_name('failures.jsonl')}"
        console.print(more, markup=False)
    console.print(f"{outcome.page}", markup=False, highlight=False)
    console.print(f"{outcome.reports} reports, {len(outcome.failed)} failed", highlight=False)
