"""`vlm data split`: a list of one's own, cut into train, val and test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def split(
    source: Annotated[Path, typer.Argument(metavar="LIST", help="CSV or JSONL list of studies, or its folder.")],
    out: Annotated[Path | None, typer.Option(help="List to write, beside the first; default: LIST-split.csv.")] = None,
    val: Annotated[float, typer.Option(help="Share of patients for validation.")] = 0.15,
    test: Annotated[float, typer.Option(help="Share of patients for the test that is run once; 0 for none.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
) -> None:
    """Writes a list again with a split for every study, by patient; splits that it states already are kept."""
    from rich.console import Console

    from vlm.data.layouts.tabular import list_in
    from vlm.data.splitting import split_list

    source = list_in(source)
    out = out or source.with_name(f"{source.stem}-split{source.suffix}")
    shares = {"val": val} | ({"test": test} if test else {})
    counts = split_list(source, out, shares, seed)
    parts = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    Console().print(f"{out}: {parts}", markup=False, highlight=False, soft_wrap=True)
