"""`vlm doctor`: what this machine can do, and what a run needs before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML file of a run: says what memory it needs; nothing: looks at the machine."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: --set training.seed=3 (repeatable).")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint that the run starts from; default: the configuration's own parts.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory to fit into, such as 24GB; default: the GPU's, or this machine's.")
    ] = None,
) -> None:
    """Versions, devices, optional parts; or, with a configuration, the memory that its run needs and what would fit.

    Exits with 1 when something that is needed is missing or broken, or when the run does not fit.
    """
    from rich.console import Console

    console = Console()
    if config is None:
        raise typer.Exit(_machine(console))
    raise typer.Exit(_run(console, config, set_ or [], start, memory))


def _machine(console: Console) -> int:
    from rich.markup import escape

    from vlm.doctor import examine

    colours = {"ok": "green", "missing": "red", "broken": "red", "off": "yellow"}
    group, wrong = "", 0
    for line in examine():
        if line.group != group:
            group = line.group
            console.print(f"\n[bold]{group}[/bold]")
        wrong += line.state in ("missing", "broken")
        state = f"[{colours[line.state]}]{line.state:8}[/]"
        console.print(f"{state}{line.name:24} {escape(line.note)}", highlight=False, soft_wrap=True)
    console.print(f"\n{wrong} parts are missing or broken" if wrong else "\nall that is needed works", highlight=False)
    return 1 if wrong else 0


def _run(console: Console, config: Path, overrides: list[str], start: Path | None, limit: str | None) -> int:
    raise NotImplementedError
