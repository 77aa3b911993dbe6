"""`vlm data deidentify`: a copy of a data set that names no one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlm.data.deidentify.job import Entry


def deidentify(
    source: Annotated[Path, typer.Argument(help="File or folder; only read.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; a run that was stopped goes on.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="Secret of the pseudonyms, made when absent. [OUT.key]")
    ] = None,
    mask_text: Annotated[bool, typer.Option("--mask-text", help="Blacken text that is burnt into pictures.")] = False,
    shift_dates: Annotated[
        bool, typer.Option("--shift-dates", help="Move a patient's dates by one number of days; else they go.")
    ] = False,
    mark: Annotated[str, typer.Option(help="What takes the place of an identifier in a text.")] = "XXXX",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
) -> None:
    """Copies DICOM, NIfTI, pictures, lists and reports without identifiers; exit code 1 when a file failed.

    DICOM by the basic profile of PS3.15; texts by rules. deidentify_report.json counts what went and names nothing. It
    is no guarantee: let a person look before data leaves the house.
    """
    from rich.console import Console
    from rich.progress import track

    from vlm.data.deidentify.job import REPORT, Options
    from vlm.data.deidentify.job import deidentify as run

    console, progress = Console(), Console(stderr=True)

    def watch(entries: Iterable[Entry], total: int) -> Iterable[Entry]:
        return track(entries, total=total, description="de-identifying", console=progress, transient=True)

    key = key or out.with_name(out.name + ".key")
    report = run(source, out, key, Options(mask_text, shift_dates, mark), workers, watch)
    for name, count in sorted(report["files"].items()):
        console.print(f"{name}: {count:,}", highlight=False, markup=False)
    total = sum(sum(counts.values()) for counts in report["removed"].values())
    console.print(
        f"{total:,} identifiers or fields taken out, {report['rectangles masked']:,} rectangles masked", highlight=False
    )
    for failed in report["failed"][:5]:
        console.print(f"failed: {failed['file']}: {failed['reason']}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{out / REPORT}; the key is {key}: keep it secret, or delete it", highlight=False, markup=False, soft_wrap=True
    )
    if report["failed"]:
        raise typer.Exit(1)
