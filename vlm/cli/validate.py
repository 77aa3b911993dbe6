"""`vlm data validate`: checks of a data set, printed, and on a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vlm.data.validate import Split, Validation


def validate(
    source: Annotated[Path, typer.Argument(help="Data set, folder or file.")],
    format: Annotated[str, typer.Option("--format", help="Layout by name (vlm data formats); auto tells it.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Check this split only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Check the first N studies.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="How many of each kind of issue to show.")] = 3,
    page: Annotated[Path | None, typer.Option("--html", help="Page to write; default: validation-SRC.html.")] = None,
    no_page: Annotated[bool, typer.Option("--no-html", help="Write no page.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every issue to this file.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes; default: one a core.")] = None,
) -> None:
    """Checks every study of a data set, and writes a page with pictures; exit code 1 when there are errors."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from knowledge.graph import KnowledgeGraph
    from vlm.data.files import write_atomic
    from vlm.data.parallel import cores
    from vlm.data.sources import layout_of, read_studies
    from vlm.data.validate import validate as check
    from vlm.data.validation_page import validation_page

    console = Console()
    studies = read_studies(source, format, split)[:limit]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("reading images", total=len(studies))

        def watch(count: int) -> None:
            last = count == len(studies)
            progress.update(task, completed=count, description="comparing" if last else "reading images")

        result = check(studies, KnowledgeGraph.load(), watch, workers or cores())
    title = f"{source} ({layout_of(source, format).name})"
    _print(result, console, title, examples)
    if not no_page:
        page = page or Path(f"validation-{source.resolve().name}.html")
        write_atomic(page, validation_page(title, studies, result))
        console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        _write(result, json_file)
    if result.errors:
        raise typer.Exit(1)


def _print(result: Validation, console: Console, title: str, examples: int) -> None:
    from collections import defaultdict

    from rich.markup import escape
    from rich.table import Table

    console.print(f"{title}: " + ", ".join(f"{n:,} {name}" for name, n in result.counts.items()), markup=False)
    table = Table("split", "studies", "images", "patients", "findings also in train", "ids (sha256)")
    for name, split in result.splits.items():
        cells = (f"{split.studies:,}", f"{split.images:,}", f"{split.patients:,}", _seen(split), split.ids)
        table.add_row(name or "-", *cells)
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


def _seen(split: Split) -> str:
    return "" if split.seen is None else f"{split.seen:,} of {split.texts:,}"


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
