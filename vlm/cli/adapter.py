"""`vlm adapter`: look at an adapter, take it out of a checkpoint, or merge it into the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Adapters: info, export, merge.")

Out = Annotated[Path, typer.Option("--out", help="New folder.")]
CheckpointFolder = Annotated[Path, typer.Argument(help="Checkpoint folder with an adapter.")]


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Checkpoint, exported adapter, or any PEFT folder.")],
) -> None:
    """Prints what an adapter is made of and what it belongs to."""
    from rich.console import Console
    from rich.table import Table

    from vlm.cli.progress import calm_libraries

    calm_libraries()
    from vlm.adapter_folder import describe_adapter

    table = Table(show_header=False)
    for name, value in describe_adapter(folder).items():
        shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(name, shown)
    Console().print(table)


@app.command()
def export(
    checkpoint: CheckpointFolder,
    out: Out,
    base: Annotated[
        Path | None, typer.Option(help="Checkpoint that it started from: what is equal in both is left out.")
    ] = None,
) -> None:
    """Writes the adapter in PEFT's format, with whatever else was trained beside it."""
    from rich.console import Console

    from vlm.cli.progress import calm_libraries

    calm_libraries()
    from vlm.adapter_folder import export_adapter
    from vlm.checkpoint import load_checkpoint

    count = export_adapter(load_checkpoint(checkpoint), out, load_checkpoint(base) if base is not None else None)
    size = sum(p.stat().st_size for p in out.iterdir()) / 1e6
    Console(soft_wrap=True).print(f"{out}: {size:.1f} MB, {count} tensors beside the adapter's", markup=False)


@app.command()
def merge(
    checkpoint: CheckpointFolder,
    out: Out,
    adapter: Annotated[Path | None, typer.Option(help="Merge this adapter in place of the checkpoint's own.")] = None,
) -> None:
    """Adds the adapter into the language model's weights and writes a checkpoint without one; a base held in 4 or 8
    bits is merged in full precision."""
    from rich.console import Console

    from vlm.cli.progress import calm_libraries

    calm_libraries()
    from vlm.adapter_folder import apply_adapter, merge_adapter
    from vlm.checkpoint import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(checkpoint, quantize="none")
    if adapter is not None:
        loaded = apply_adapter(loaded, adapter)
    save_checkpoint(out, merge_adapter(loaded))
    Console(soft_wrap=True).print(f"{out}: a checkpoint without an adapter", markup=False)
