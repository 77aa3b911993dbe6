"""The progress line of the verbs that go through studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watching(total: int, shown: bool = True) -> Iterator[Callable[[Any, Any], None]]:
    """Shows how many of `total` studies are done; what it yields is called once a study.

    Written to stderr, so that the output of a command can be piped; nothing is unless `shown`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        task = progress.add_task("studies", total=total)
        yield lambda study, result: progress.advance(task)


def calm_libraries() -> None:
    """Keeps the notes of the libraries underneath (weights loaded, optional kernels absent) off the terminal."""
    import logging
    import warnings

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
