"""`vlm data prepare`: data sets -> shards that training streams, or an index of a list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vlm.data.prepare import Outcome


def prepare(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Data sets, folders or lists.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; the same call again goes on.")],
    format: Annotated[str, typer.Option("--format", help="Layout by name (vlm data formats); auto tells it.")] = "auto",
    size: Annotated[int, typer.Option(min=32, max=4096, help="Longest side of the images; none is enlarged.")] = 512,
    bits: Annotated[int, typer.Option(help="8 or 16 bits a pixel, after the window.")] = 8,
    hu: Annotated[bool, typer.Option("--hu", help="Keep CT in Hounsfield units, in 16 bit.")] = False,
    window: Annotated[str | None, typer.Option(help="Window of CT: a name or CENTRE/WIDTH.")] = None,
    views: Annotated[int, typer.Option(min=1, max=512, help="Most images of a study.")] = 16,
    slices: Annotated[str | None, typer.Option(help="Slices of volumes that are kept, such as boxes:8.")] = None,
    shard: Annotated[int, typer.Option(min=1, max=65536, help="Studies a shard.")] = 256,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes; default: one a core.")] = None,
    index_only: Annotated[bool, typer.Option("--index-only", help="Images stay where they are.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another set in DIR.")] = False,
) -> None:
    """Decodes data sets once, into shards that training streams; exit code 1 when studies had to be left out."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vlm.data.packing import Packing
    from vlm.data.parallel import cores
    from vlm.data.prepare import index_only as write_index
    from vlm.data.prepare import prepare as write_set
    from vlm.data.windows import window_of
    from vlm.types import InputError

    if bits not in (8, 16):
        raise InputError(f"--bits {bits}: choose 8 or 16")
    if hu and window is not None:
        raise InputError("--hu keeps all values and --window applies one: give one of them")
    if window is not None:
        window_of(window)
    pairs = [(path, format) for path in dict.fromkeys(sources)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("indexing" if index_only else "preparing", total=None)
        if index_only:
            done = write_index(pairs, out, overwrite, lambda count: progress.update(task, completed=count))
        else:
            done = write_set(
                pairs,
                out,
                Packing(size, bits, hu, views, window),
                shard,
                workers or cores(),
                overwrite,
                lambda count, total: progress.update(task, completed=count, total=total),
                slices,
            )
    _say(done, out, Console())
    if done.failed:
        raise typer.Exit(1)


def _say(done: Outcome, out: Path, console: Console) -> None:
    size = f", {done.shards} shards ({done.earlier} from before), {done.bytes / 1e6:,.1f} MB" if done.shards else ""
    line = f"{out}: {done.studies:,} studies, {done.images:,} images{size}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if done.failed:
        name, why = done.failed[0]
        text = f"{len(done.failed):,} studies were left out (failures.jsonl); the first: {name}: {why}"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
