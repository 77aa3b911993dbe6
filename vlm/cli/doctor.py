"""`vlm doctor`: what this machine can do, and what a run needs before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vlm.config import Config
    from vlm.fitting import Room
    from vlm.memory import Need
    from vlm.sizing import Shape


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
    from vlm.cli.progress import calm_libraries
    from vlm.config import load_config

    resolved = load_config(config, overrides)  # before the models' libraries, which take seconds to load
    calm_libraries()
    from vlm.fitting import estimate_run, propose, room_at_hand

    room = room_at_hand(limit)
    need = estimate_run(resolved, start, room.gpu)
    show_need(console, need, room)
    if room.holds(need):
        return 0
    console.print("\nIt would need less with", highlight=False)
    for proposal in propose(resolved, start, need, room):
        sets = " ".join(f"--set {o}" for o in proposal.overrides)
        total = _amount(proposal.need.peak(room.gpu) + room.program)
        verdict = "[green]fits[/]" if proposal.fits else "not enough"
        console.print(f"  {total:>9}  {verdict}: {sets}", highlight=False, soft_wrap=True)
    return 1


def dry_run(console: Console, config: Config, start: Path | None) -> None:
    """Prints the resolved configuration, what each stage trains in how many steps, and the memory that it needs; no
    weights are read."""
    import yaml
    from rich.table import Table

    from vlm.fitting import estimate, room_at_hand
    from vlm.watching import check_choice, check_trackers
    from vlm.weightless import without_weights

    built = without_weights(config, start)
    check_trackers(config.training.trackers)
    for stage in config.training.stages:
        check_choice(stage)
    room = room_at_hand(None)
    need = estimate(built, room.gpu)
    resolved = yaml.safe_dump(built.config.model_dump(mode="json"), sort_keys=False)
    console.print(resolved, markup=False, highlight=False, soft_wrap=True)
    table = Table("stage", "steps", "part", "parameters that learn", title="Stages")
    for own in need.stages:
        for number, (part, count) in enumerate(own.parameters.items()):
            first = number == 0
            table.add_row(own.name if first else "", f"{own.steps:,}" if first else "", part, f"{count:,}")
    console.print(table)
    show_need(console, need, room)


def show_need(console: Console, need: Need, room: Room) -> None:
    """Prints what a run needs, stage by stage, and whether it fits."""
    from rich.table import Table

    for note in need.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    names = list(dict.fromkeys(k for s in need.stages for k in s.held))
    phases = list(dict.fromkeys(k for s in need.stages for k in s.phases))
    table = Table("memory", *(s.name for s in need.stages), title=f"On {'the GPU' if room.gpu else 'the CPU'}")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("[bold]held[/]")
    for name in names:
        table.add_row(f"  {name}", *(_amount(s.held[name]) if name in s.held else "" for s in need.stages))
    table.add_row("[bold]while it runs, the largest of[/]")
    for name in phases:
        table.add_row(f"  {name}", *(_amount(s.phases[name]) if name in s.phases else "" for s in need.stages))
    table.add_section()
    table.add_row("[bold]stage[/]", *(_amount(s.peak) for s in need.stages))
    table.add_row("heaviest batch", *(_shape(s.shape) for s in need.stages))
    console.print(table)
    for name, taken in need.around.items():
        console.print(f"{name}: {_amount(taken)}", highlight=False)
    if room.gpu:
        host = max(s.host for s in need.stages)
        console.print(f"beside the GPU, in the machine's memory: {_amount(host)}", highlight=False)
    parts = ", ".join(f"{name} {_amount(taken)}" for name, taken in need.generation.items())
    console.print(f"a batch of reports afterwards: {parts}", highlight=False)
    total = need.peak(room.gpu) + room.program
    fits = room.holds(need)
    console.print(
        f"\nneeds {_amount(total)} ({_amount(need.peak(room.gpu))} and {_amount(room.program)} for the program); "
        f"{room.name} has {_amount(room.size)}: {'fits' if fits else 'does not fit'}",
        style="green" if fits else "red", highlight=False, soft_wrap=True,
    )  # fmt: skip


def _shape(shape: Shape) -> str:
    texts = f", {shape.prompt}+{shape.report} tokens" if shape.report else ""
    return f"{shape.studies} studies, {shape.images} images of {shape.size}{texts}"


def _amount(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
