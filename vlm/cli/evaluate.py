"""`vlm evaluate`: scores reports against references, floors and intervals beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from vlm.types import Study


def evaluate(
    predictions: Annotated[list[str], typer.Argument(help="Files of generated reports; or `review DIR`.")],
    references: Annotated[Path | None, typer.Option("--references", "-r", help="File of reference reports.")] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training references: for floors, and for which studies are new.")
    ] = None,
    train_predictions: Annotated[
        Path | None, typer.Option(help="The system's records of training studies, for the neighbour.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="JSON of id -> labels coded by people (Open-i's labels20.json).")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the reference file (annotation.json).")] = None,
    train_split: Annotated[str, typer.Option(help="Part of the --train file, where it has parts.")] = "train",
    id_column: Annotated[str | None, typer.Option("--id", help="Column of the ids in the predictions.")] = None,
    text_column: Annotated[str | None, typer.Option("--text", help="Column of the reports in the predictions.")] = None,
    reference_id: Annotated[str | None, typer.Option(help="Column of the ids in the references.")] = None,
    reference_text: Annotated[str | None, typer.Option(help="Column of the reports in the references.")] = None,
    names: Annotated[str | None, typer.Option(help="Names of the systems, comma-separated.")] = None,
    profile: Annotated[str, typer.Option(help="canonical, r2gen-compat, r2gen-compat-mimic or unicode.")] = "canonical",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score the studies that all files have.")
    ] = False,
    meteor: Annotated[str, typer.Option(help="stem (no Java), java, or off.")] = "stem",
    rouge_beta: Annotated[float, typer.Option(help="1.2 as the field; 1 for rouge_score's F1.")] = 1.2,
    view: Annotated[str, typer.Option(help="Label list that findings are scored by.")] = "radscribe",
    coded_view: Annotated[str, typer.Option(help="Label list of --labels.")] = "openi20",
    clinical: Annotated[bool, typer.Option("--clinical/--no-clinical", help="Read findings from the texts.")] = True,
    plugin: Annotated[list[str] | None, typer.Option(help="Optional metric by entry point (repeat).")] = None,
    resamples: Annotated[int, typer.Option(min=0, max=100_000, help="Bootstrap samples; 0 for none.")] = 1000,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    fail_if: Annotated[
        list[str] | None, typer.Option(help='Gate, such as "unique<0.1" or "cider<constant" (repeat).')
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write one flat object of named scores.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write every score by study.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write plots and tables as one page, and the plots beside it.")
    ] = None,
    explain: Annotated[str | None, typer.Option(help="Id of a study to show under both profiles, or `first`.")] = None,
    scorers: Annotated[
        bool, typer.Option("--scorers", help="Show the same predictions under six scorers in use.")
    ] = False,
    perturb: Annotated[
        bool, typer.Option("--perturb", help="Perturb texts (and, with --checkpoint, images) and show what changes.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint to rerun for --perturb.")] = None,
    studies: Annotated[
        Path | None, typer.Option(help="Studies to rerun for --perturb, as `vlm generate` takes them.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most studies that --perturb reruns.")] = 50,
    quiet: Annotated[bool, typer.Option("--quiet", help="Leave out the tables by label and the signatures.")] = False,
) -> None:
    """Scores reports against references, with floors, intervals and what fixes every number.

    `vlm evaluate review DIR` writes a blinded page for expert readers and summarises their ratings.

    Exit code 3 when a --fail-if holds.
    """
    if os.environ.get("RANK", "0").strip() not in ("", "0"):
        return  # under torchrun or `accelerate launch` the first process scores: it takes seconds
    from rich.console import Console

    from vlm.evaluation import command

    console = Console(width=100, soft_wrap=False)
    if predictions[0] == "review" and len(predictions) == 2:
        command.review(Path(predictions[1]), console, json_file)
        return
    arguments = command.Arguments(
        [Path(p) for p in predictions],
        references,
        train,
        train_predictions,
        labels,
        split,
        train_split,
        id_column,
        text_column,
        reference_id,
        reference_text,
        names.split(",") if names else None,
        profile,
        allow_missing,
        meteor,
        rouge_beta,
        view,
        coded_view,
        clinical,
        tuple(plugin or ()),
        resamples,
        level,
        seed,
        tuple(fail_if or ()),
        json_file,
        markdown_file,
        csv_file,
        html,
        explain,
        scorers,
        perturb,
        quiet,
    )
    extra = (
        _rerun(checkpoint, studies or references, split, limit, console) if perturb and checkpoint is not None else {}
    )
    reasons = command.run(arguments, console, extra)
    if reasons:
        for reason in reasons:
            console.print(f"gate: {reason}", style="red", markup=False, highlight=False)
        raise typer.Exit(3)


def _rerun(checkpoint: Path, source: Path | None, split: str | None, limit: int, console: Console) -> dict[str, float]:
    """Runs a checkpoint on true, blank, swapped and mirrored images, prints what changed, and returns it by name."""
    from dataclasses import replace

    from vlm.cli.progress import calm_libraries, watching

    chosen = _with_pixels(source, split, limit, console)
    calm_libraries()
    from vlm.evaluation.reruns import Seen, compare_reruns, print_reruns, rerun_numbers, summary_of
    from vlm.pipeline import GenerationSettings, Pipeline
    from vlm.types import InputError, Report

    pipeline, plain = Pipeline.load(checkpoint), GenerationSettings(attention=False)
    # Consensus draws take most of a report's time and choose among texts of the same images: all runs do without.
    config = pipeline.checkpoint.config
    config.generation = config.generation.model_copy(update={"samples": 0})
    variants = {"true": (chosen, plain), "blank": (chosen, replace(plain, blank=True))}
    if len(chosen) > 1:
        swapped = [replace(s, images=chosen[(n + 1) % len(chosen)].images) for n, s in enumerate(chosen)]
        variants["swapped"] = (swapped, plain)
    mirrored = [replace(s, images=[replace(i, pixels=_mirror(i.pixels)) for i in s.images]) for s in chosen]
    variants["mirrored"] = (mirrored, plain)
    runs: dict[str, dict[str, Seen]] = {}
    with watching(len(variants) * len(chosen)) as watch:
        for name, (variant, settings) in variants.items():
            runs[name] = {}
            for study, report in pipeline.reports(variant, settings):
                watch(study, report)
                if isinstance(report, Report):
                    runs[name][report.study_id] = summary_of(report)
    if not runs["true"]:
        raise InputError(f"{source}: the checkpoint could not read any of {len(chosen)} studies; see `vlm generate`")
    written = {s.id: s.report.get("findings") or s.report.get("impression") or "" for s in chosen if s.report}
    rows = [compare_reruns(runs["true"], run, name, written) for name, run in runs.items()]
    print_reruns(rows, console)
    return rerun_numbers(rows)


def _with_pixels(source: Path | None, split: str | None, limit: int, console: Console) -> list[Study]:
    """Reads the first studies that have images, pixels included; one that can't be read is left out with a note."""
    from dataclasses import replace

    from vlm.data.images import load_image
    from vlm.data.sources import read_studies
    from vlm.types import InputError

    if source is None:
        raise InputError("--perturb with --checkpoint needs the studies: give --studies")
    try:
        studies = read_studies(source, split=split)
    except InputError as error:
        raise InputError(f"{error}; name the studies to rerun with --studies") from error
    found: list[Study] = []
    for study in studies:
        if len(found) == limit:
            break
        if not study.images:
            continue
        try:
            found.append(replace(study, images=[load_image(image) for image in study.images]))
        except InputError as error:
            console.print(f"left out: {study.id}: {error}", style="yellow", markup=False, highlight=False)
    if not found:
        raise InputError(f"{source}: no study with images to rerun; give --studies with the images' folder or file")
    return found


def _mirror(pixels: np.ndarray | None) -> np.ndarray | None:
    return None if pixels is None else pixels[:, ::-1].copy()
