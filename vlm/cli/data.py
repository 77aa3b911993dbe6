"""`vlm data`: which layouts are read, the phantom, and checks of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.cli.prepare import prepare

if TYPE_CHECKING:
    from rich.console import Console

    from vlm.data.validate import Validation

app = typer.Typer(no_args_is_help=True, help="Data sets: layouts, checks, preparation, the phantom.")
app.command()(prepare)

FormatOption = Annotated[str, typer.Option("--format", help="Layout by name (vlm data formats); auto tells it.")]


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
) -> None:
    """Writes phantom chest CT: DICOM files, and studies.jsonl with exact boxes, findings and reports."""
    from rich.console import Console

    from vlm.data.phantoms.chest_ct import write_phantom

    studies = write_phantom(out, n, seed, show=True)
    boxes = sum(len(s.boxes or ()) for s in studies)
    Console().print(f"{len(studies)} studies with {boxes} lesions: {out / 'studies.jsonl'}", markup=False)


@app.command()
def validate(
    source: Annotated[Path, typer.Argument(help="Data set, folder or file.")],
    format: FormatOption = "auto",
    split: Annotated[str | None, typer.Option(help="Check this split only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Check the first N studies.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="How many of each kind of issue to show.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every issue to this file.")] = None,
) -> None:
    """Checks every study of a data set; exit code 1 when there are errors."""
    from rich.console import Console
    from rich.progress import track

    from knowledge.graph import KnowledgeGraph
    from vlm.data.sources import layout_of, read_studies
    from vlm.data.validate import validate as check

    console, progress = Console(), Console(stderr=True)
    studies = read_studies(source, format, split)[:limit]
    result = check(
        studies,
        KnowledgeGraph.load(),
        lambda items: track(items, description="reading", console=progress, transient=True),
    )
    _print(result, console, f"{source} ({layout_of(source, format).name})", examples)
    if json_file is not None:
        _write(result, json_file)
    if result.errors:
        raise typer.Exit(1)


def _print(result: Validation, console: Console, title: str, examples: int) -> None:
    from collections import defaultdict

    from rich.markup import escape
    from rich.table import Table

    console.print(f"{title}: " + ", ".join(f"{n:,} {name}" for name, n in result.counts.items()), markup=False)
    table = Table("split", "studies", "images", "patients", "ids (sha256)")
    for name, split in result.splits.items():
        table.add_row(name or "-", f"{split.studies:,}", f"{split.images:,}", f"{split.patients:,}", split.ids)
    console.print(table)
    kinds = defaultdict(list)
    for issue in result.issues:
        kinds[issue.level, issue.kind].append(issue)
    for (level, kind), issues in sorted(kinds.items(), key=lambda item: (item[0][0], -len(item[1]))):
        style = "red" if level == "error" else "yellow"
        console.print(f"[{style}]{level}[/{style}] {escape(kind)}: {len(issues):,}", highlight=False)
        for issue in issues[:examples]:
            where = f"{issue.study}: " if issue.study else ""
            console.print(f"    {where}{issue.message}", markup=False, highlight=False, soft_wrap=True)
    errors = len(result.errors)
    console.print(f"{errors:,} errors, {len(result.issues) - errors:,} warnings", highlight=False)


def _write(result: Validation, path: Path) -> None:
    import json
    from dataclasses import asdict

    from vlm.data.files import write_atomic

    content = {
        "counts": result.counts,
        "splits": {name or "-": asdict(split) for name, split in result.splits.items()},
        "labels": dict(result.labels.most_common()),
        "issues": [asdict(issue) for issue in result.issues],
    }
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
