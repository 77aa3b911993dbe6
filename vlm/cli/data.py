"""`vlm data`: which layouts are read, the phantom, and checks of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.deidentify import deidentify
from vlm.cli.prepare import prepare
from vlm.cli.select import select
from vlm.cli.split import split
from vlm.cli.validate import validate

app = typer.Typer(no_args_is_help=True, help="Data sets: layouts, checks, preparation, the phantom.")
app.command()(deidentify)
app.command()(prepare)
app.command()(select)
app.command()(split)
app.command()(validate)


@app.command()
def formats() -> None:
    """Lists the layouts that are read, with an example of each."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vlm.data.sources import FORMATS

    table = Table(show_lines=True)
    for column in ("format", "what it is", "example"):
        table.add_column(column, overflow="fold")
    for layout in FORMATS.values():
        table.add_row(layout.name, escape(layout.summary), escape(layout.example))
    Console().print(table)


@app.command()
def phantom(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    n: Annotated[int, typer.Option("--n", min=1, max=1_000_000, help="How many studies.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same bytes.")] = 0,
    kind: Annotated[str, typer.Option("--kind", help="chest-ct, kidney-ct or chest-xray.")] = "chest-ct",
    volume: Annotated[bool, typer.Option("--volume", help="Whole volumes as NIfTI (kidney-ct).")] = False,
    priors: Annotated[
        bool, typer.Option("--priors", help="An earlier study of every patient, with a change (kidney-ct, chest-xray).")
    ] = False,
) -> None:
    """Writes phantom studies: DICOM files or volumes, and studies.jsonl with exact boxes, findings and reports."""
    from rich.console import Console

    from vlm.data.parallel import cores
    from vlm.data.phantoms.writing import write_kind

    studies = write_kind(kind, out, n, seed, volume, priors, show=True, workers=cores())
    boxes = sum(len(s.boxes or ()) for s in studies)
    Console().print(f"{len(studies)} studies with {boxes} lesions: {out / 'studies.jsonl'}", markup=False)
