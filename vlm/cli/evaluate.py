"""`vlm evaluate`: scores reports against references, floors and intervals beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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

    Exit code 3 when a --fail-if holds.
    """
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
    reasons = command.run(arguments, console)
    if perturb and checkpoint is not None:
        from vlm.cli.perturb_images import rerun

        rerun(checkpoint, studies or references, limit, seed, console, json_file)
    if reasons:
        for reason in reasons:
            console.print(f"gate: {reason}", style="red", markup=False, highlight=False)
        raise typer.Exit(3)
