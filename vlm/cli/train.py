"""`vlm train`: fine-tune or train from a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run, e.g. configs/openi.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/<name of the configuration>.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: --set training.seed=3 (repeatable).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Your list or folder, in place of the paths of data.train and data.validation."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from; default: the configuration's own parts.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last state in --out when there is one.")] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved configuration, what each stage trains, its steps and the memory it needs; stop.",
        ),
    ] = False,
) -> None:
    """Train in stages; the best model by validation is left in OUT/best."""
    from rich.console import Console

    from vlm.cli.progress import calm_libraries
    from vlm.config import load_config

    console = Console()
    resolved = load_config(config, set_ or [], data)  # before the models' libraries, which take seconds to load
    calm_libraries()
    from vlm.assembly import starting_point
    from vlm.training import Interrupted
    from vlm.training import train as run

    out = out or Path("runs") / config.stem
    if dry_run:
        from vlm.cli.doctor import dry_run as shown

        shown(console, resolved, start)
        return
    checkpoint = starting_point(resolved, start)
    try:
        metrics = run(checkpoint, out, resume)
    except Interrupted as stopped:
        Console(stderr=True, soft_wrap=True).print(str(stopped), style="yellow", markup=False, highlight=False)
        raise typer.Exit(128 + stopped.number) from None
    if int(os.environ.get("RANK", "0")):
        return  # the first process speaks for all
    for stage, values in metrics.items():
        console.print(f"{stage}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()), markup=False)
    console.print(f"best checkpoint: {out / 'best'}", markup=False)
