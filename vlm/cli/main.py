"""The command `vlm`: joins the verbs, and turns every error into one line and an exit code.

Exit codes: 0 done, 1 checks found errors in the data, 2 wrong input, 3 a gate of `vlm evaluate` failed,
130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from knowledge.errors import KnowledgeError
from vlm.types import InputError

app = typer.Typer(
    name="vlm",
    help="Radiology studies in; findings, boxes and reports with their evidence out. Research software, not a medical "
    "device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)


def _register() -> None:
    """Adds the verbs. Each verb's module imports torch and its kin inside the function: `vlm --help` is quick."""
    from vlm.cli import adapter, data, demo, doctor, evaluate, generate, knowledge, train

    app.command("generate")(generate.generate)
    app.command("train")(train.train)
    app.command("evaluate")(evaluate.evaluate)
    app.command("demo")(demo.demo)
    app.command("doctor")(doctor.doctor)
    app.add_typer(data.app, name="data")
    app.add_typer(adapter.app, name="adapter")
    app.add_typer(knowledge.app, name="knowledge")


def main(arguments: list[str] | None = None) -> None:
    """Runs one command line; never lets a traceback reach the user unless `--debug` stands anywhere in it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("RADSCRIBE_DEBUG") == "1"
    arguments = [a for a in arguments if a != "--debug"]
    # On cores that others use too, OpenMP's threads would burn the time in which they wait for one another.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What is said of data-parallel internals is for their developers.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _register()
    try:
        app(args=arguments)
    except (InputError, KnowledgeError, OSError, MemoryError) as error:
        _stop(str(error) or type(error).__name__, debug)
    except KeyboardInterrupt:
        console.print("interrupted; what was written is whole", style="yellow")
        sys.exit(130)
    except Exception as error:
        line = " ".join(str(error).split())[:500]
        _stop(f"{type(error).__name__}: {line} (a bug in radscribe; --debug shows where)", debug)


def _stop(message: str, debug: bool) -> None:
    """One line and exit code 2; with `--debug` the error as it was raised."""
    if debug:
        raise
    console.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)
