"""Does it look at the image? A checkpoint's reports on true images beside those on blank, swapped, mirrored ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from vlm.evaluation.clinical import FindingReader, finding_scores
from vlm.evaluation.tables import show
from vlm.evaluation.text import index_texts, rouge_l
from vlm.evaluation.tokens import make_profile
from vlm.types import InputError, Report

Seen = tuple[str, Mapping[str, float], int]
"""A report's text, finding -> probability, number of boxes."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """What changed when a checkpoint saw other images; NaN where undefined.

    Args:
        name: what was done to the images; "true" for nothing.
        studies: number of studies.
        changed: share of the studies whose report differs from that on the true images.
        overlap: mean ROUGE-L between the two reports.
        same: micro-F1 between what the two reports say of findings.
        sides: share of the findings with a side in both reports whose side is the same.
        probabilities: mean absolute change of the finding probabilities.
        boxes: mean number of boxes.
        reference: micro-F1 of the new report against the reference, where studies have one.
    """

    name: str
    studies: int
    changed: float
    overlap: float
    same: float
    sides: float
    probabilities: float
    boxes: float
    reference: float


def summary_of(report: Report) -> Seen:
    """Returns what reruns are compared by."""
    text = " ".join(report.sections.values())
    return text, {f.label: f.probability for f in report.findings if f.probability is not None}, len(report.boxes)


def compare_reruns(
    before: Mapping[str, Seen], after: Mapping[str, Seen], name: str, references: Mapping[str, str] | None = None
) -> Rerun:
    """Compares a checkpoint's reports on the true images with those on perturbed ones.

    Args:
        before, after: study id -> what was said; studies in both are compared.
        name: what was done to the images.
        references: study id -> reference report.

    Raises:
        InputError: no study is in both.
    """
    ids = [key for key in before if key in after]
    if not ids:
        raise InputError(f"no study has a report on both the true and the {name} images")
    profile, reader = make_profile("canonical"), FindingReader()
    old, new = [before[key][0] for key in ids], [after[key][0] for key in ids]
    tokens = [profile.prediction(text) for text in new]
    index, systems = index_texts([profile.prediction(text) for text in old], {"new": tokens})
    against = {score.name: score.value for score in finding_scores(reader.read(new), reader.read(old))}
    gaps = [
        abs(after[key][1][label] - p) for key in ids for label, p in before[key][1].items() if label in after[key][1]
    ]
    known = [key for key in ids if (references or {}).get(key)]
    true = finding_scores(
        reader.read([after[key][0] for key in known]), reader.read([(references or {})[key] for key in known])
    )
    return Rerun(
        name,
        len(ids),
        sum(a != b for a, b in zip(old, new, strict=True)) / len(ids),
        rouge_l(index, systems["new"]).value,
        against["finding_f1_micro"],
        against["laterality"],
        sum(gaps) / len(gaps) if gaps else float("nan"),
        sum(after[key][2] for key in ids) / len(ids),
        next(score.value for score in true if score.name == "finding_f1_micro") if known else float("nan"),
    )


def rerun_numbers(rows: Sequence[Rerun]) -> dict[str, float]:
    """Returns the numbers of reruns by name: `changed_blank`, `overlap_blank`, `findings_blank`, ..."""
    out: dict[str, float] = {}
    for row in rows:
        out |= {f"boxes_{row.name}": row.boxes, f"reference_f1_{row.name}": row.reference}
        if row.name != "true":
            out |= {
                f"changed_{row.name}": row.changed,
                f"overlap_{row.name}": row.overlap,
                f"same_findings_{row.name}": row.same,
                f"same_sides_{row.name}": row.sides,
                f"findings_{row.name}": row.probabilities,
            }
    return out


def print_reruns(rows: Sequence[Rerun], console: Console) -> None:
    """Prints what changed, one line a perturbation."""
    table = Table(box=None, padding=(0, 1))
    header = ("images", "changed", "ROUGE-L", "findings F1", "side", "probabilities", "boxes", "F1 to reference")
    for column in header:
        table.add_column(column, justify="left" if column == "images" else "right", no_wrap=True)
    for row in rows:
        cells = [f"{row.changed:.1%}", *map(show, (row.overlap, row.same, row.sides)), f"{show(row.probabilities)}"]
        if row.name == "true":
            cells = [""] * len(cells)
        table.add_row(row.name, *cells, f"{row.boxes:.2f}", show(row.reference))
    console.print(
        f"Does it look at the image? The checkpoint rerun on {rows[0].studies} studies (beam search without consensus)",
        style="bold",
        markup=False,
        highlight=False,
    )
    console.print(table)
    console.print(
        "changed: share of reports. ROUGE-L, findings F1, side: agreement with the report on the true images.\n"
        "probabilities: mean change of the findings'. boxes: mean number a study.\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
