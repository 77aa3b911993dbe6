"""`vlm demo`: phantom studies, reports of them, and how far both agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the studies, reports and page.")] = Path("demo"),
    n: Annotated[int, typer.Option(min=1, max=500, help="Number of phantom studies.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Of the phantom; the same seed gives the same files.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder; default: the shipped one.")] = None,
) -> None:
    """Write phantom chest CT, report it with the shipped checkpoint, and score it against the phantom's exact truth."""
    from rich.console import Console
    from rich.table import Table

    from vlm.cli.progress import calm_libraries, watching

    calm_libraries()
    from vlm.batch import run_demo

    with watching(n) as watch:
        result = run_demo(out, n, seed, checkpoint, watch)
    console = Console()
    table = Table("score", "model", "constant report", title=f"{result.outcome.reports} phantom studies, seed {seed}")
    for row in result.rows:
        table.add_row(row.name, row.model, row.floor)
    console.print(table)
    console.print(f"{n} studies: too few for intervals; `vlm evaluate` gives them.", style="dim", highlight=False)
    for path in (result.outcome.reports_file, result.outcome.page):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    if result.outcome.reports == 0:
        raise typer.Exit(2)
