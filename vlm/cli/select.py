"""`vlm data select`: which unlabelled studies to annotate next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlm.selecting.picking import Selection


def select(
    pool: Annotated[
        list[Path], typer.Argument(metavar="POOL...", help="Unlabelled studies: whatever vlm generate takes.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="How many studies to choose.")],
    out: Annotated[Path, typer.Option("--out", help="List to write, .csv or .jsonl, in a folder above the images.")],
    strategy: Annotated[
        str,
        typer.Option(
            metavar="uncertainty|diversity|disagreement",
            help="Unsure of the findings; unlike what is labelled; members of a committee differ.",
        ),
    ] = "uncertainty",
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint folder; several make a committee. Default: the shipped one.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="Adapter on the checkpoint; several make a committee.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(metavar="LIST", help="Studies that are labelled already; left out, by id.")
    ] = None,
    passes: Annotated[
        int, typer.Option(min=2, max=256, help="Of drop-out, for disagreement with one checkpoint.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of drop-out; the same seed gives the same list.")] = 0,
    window: Annotated[
        str | None, typer.Option(metavar="NAME|C/W", help="CT window: lung, bone, ... or CENTRE/WIDTH such as 40/400.")
    ] = None,
    slices: Annotated[
        str | None, typer.Option(metavar="KIND:N", help="Slices of a volume to look at: uniform:8 or mip:8.")
    ] = None,
    format: Annotated[str, typer.Option(help="Layout of the pool, see `vlm data formats`.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Only studies of this split.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many studies.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a list that is there.")] = False,
) -> None:
    """Choose the studies to annotate next; labels and reports of the pool are not looked at."""
    from rich.console import Console

    from vlm.cli.progress import calm_libraries, watching
    from vlm.data.sources import gather_studies

    # Before the models' libraries, which take seconds to load.
    studies = gather_studies(pool, format, split, window, limit, slices)
    known = [] if labelled is None else gather_studies([labelled], window=window, slices=slices)
    calm_libraries()
    from vlm.selecting.listing import check_out, write_list
    from vlm.selecting.looking import Committee
    from vlm.selecting.picking import check_strategy, kept_beside, labelled_to_see, make_pool
    from vlm.selecting.picking import select as choose

    check_strategy(strategy)
    chosen_from = make_pool(studies, known, n)
    check_out(out, chosen_from.free, overwrite)
    committee = Committee.load_for(strategy, checkpoint or [], adapter or [], passes, seed)
    kept = kept_beside(out)
    try:
        with watching(len(chosen_from.free) + len(labelled_to_see(chosen_from, strategy))) as watch:
            selection = choose(committee, chosen_from, n, strategy, kept, watch)
    except KeyboardInterrupt:
        line = "interrupted; what was seen is kept: run the same command again to go on"
        Console(stderr=True, soft_wrap=True).print(line, style="yellow", markup=False, highlight=False)
        raise typer.Exit(130) from None
    write_list(out, selection.picks)
    kept.unlink(missing_ok=True)
    _tell(selection, strategy, out)


def _tell(selection: Selection, strategy: str, out: Path) -> None:
    """What was chosen, in one line; what failed before it."""
    from rich.console import Console

    from vlm.selecting.picking import summary

    console = Console(soft_wrap=True)
    if selection.failed:
        line = f"failures: {len(selection.failed)} left out; the first: {selection.failed[0].message}"
        console.print(line, style="yellow", markup=False, highlight=False)
    console.print(f"{out}: {summary(selection, strategy)}", markup=False, highlight=False)
