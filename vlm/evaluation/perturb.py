"""What the metrics notice when reports are made wrong, and what a model's reports notice when its images are.

A report whose every negation is flipped says the opposite, and one whose sides are swapped names the wrong lung; n-gram
scores hardly move. Each row is scored beside the text as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from vlm.evaluation.floors import permutations
from vlm.evaluation.inputs import Joined
from vlm.evaluation.meteor import meteor
from vlm.evaluation.resampling import Score
from vlm.evaluation.text import index_texts, text_scores
from vlm.evaluation.tokens import make_profile
from vlm.types import Report

SHOWN = ("bleu4", "rougeL", "meteor", "cider", "finding_f1_micro", "contradicted", "omissions", "laterality")
_HEADERS = ("BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "F1", "opposite", "omitted", "side")
_SWAP = {"left": "right", "right": "left"}
_SIDES = re.compile(r"\b(left|right)(?=\b|sided)", re.IGNORECASE)
# One pass, longest first, so that no flip is flipped back.
_FLIPS = {
    "there is no evidence of": "there is evidence of",
    "no evidence of": "evidence of",
    "there is no": "there is a",
    "there are no": "there are",
    "there is": "there is no",
    "there are": "there are no",
    "is not": "is",
    "are not": "are",
    "negative for": "positive for",
    "free of": "full of",
    "without": "with",
    "with": "without",
    "no": "a",
    "are clear": "are not clear",
    "is clear": "is not clear",
    "unremarkable": "abnormal",
    "abnormal": "normal",
    "normal": "abnormal",
    "is seen": "is not seen",
    "are seen": "are not seen",
    "is present": "is not present",
    "is noted": "is not noted",
    "are noted": "are not noted",
}
_NEGATIONS = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, _FLIPS), key=len, reverse=True)) + r")\b", re.IGNORECASE
)
# "within normal limits" is a statement of its own.
_LIMITS = re.compile(r"\bwithin (normal|abnormal) limits\b", re.IGNORECASE)


def flip_negations(text: str) -> str:
    """Returns a report that says the opposite: findings denied become present and present ones denied."""
    text = _LIMITS.sub("normal", text)
    return _NEGATIONS.sub(lambda match: _like(match.group(), _FLIPS[match.group().lower()]), text)


def swap_sides(text: str) -> str:
    """Returns a report with left and right exchanged."""
    return _SIDES.sub(lambda match: _like(match.group(), _SWAP[match.group().lower()]), text)


def _like(old: str, new: str) -> str:
    return new.capitalize() if old[:1].isupper() else new


@dataclass(frozen=True, slots=True)
class Perturbed:
    """Scores of one variant of the texts.

    Args:
        name: what was done.
        changed: share of the reports that differ from the original.
        scores: metric -> value.
    """

    name: str
    changed: float
    scores: dict[str, float]


def perturb_texts(
    texts: Sequence[str], references: Sequence[str], clinical: bool = True, seed: int = 0
) -> list[Perturbed]:
    """Scores reports as they are, negations flipped, sides swapped, and shuffled across patients.

    Args:
        texts: N reports.
        references: N references.
        clinical: read findings as well.
        seed: of the shuffle.
    """
    variants = {
        "as written": list(texts),
        "negations flipped": [flip_negations(text) for text in texts],
        "sides swapped": [swap_sides(text) for text in texts],
    }
    if len(texts) > 1:
        variants["shuffled"] = [texts[i] for i in permutations(len(texts), seed)[0].tolist()]
    profile = make_profile("canonical")
    tokens = {name: [profile.prediction(text) for text in lines] for name, lines in variants.items()}
    index, systems = index_texts([profile.reference(text) for text in references], tokens)
    rows = []
    for name, lines in variants.items():
        scores: list[Score] = [*text_scores(index, systems[name]), meteor(index, systems[name])]
        if clinical:
            scores += _finding_scores(lines, references)
        changed = sum(a != b for a, b in zip(lines, texts, strict=True)) / len(texts)
        rows.append(Perturbed(name, changed, {score.name: score.value for score in scores}))
    return rows


def _finding_scores(texts: Sequence[str], references: Sequence[str]) -> list[Score]:
    from vlm.evaluation.clinical import FindingReader, finding_scores

    reader = FindingReader()
    return finding_scores(reader.read(texts), reader.read(references))


def print_perturbations(joined: Joined, clinical: bool, seed: int, console: Console) -> None:
    """Prints what the metrics notice: on the references themselves as perfect reports, and on each system's reports."""
    for name, texts in {"perfect reports": joined.references, **joined.systems}.items():
        rows = perturb_texts(texts, joined.references, clinical, seed)
        kept = [(key, header) for key, header in zip(SHOWN, _HEADERS, strict=True) if key in rows[0].scores]
        table = Table(box=None, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for header in ("changed", *(header for _, header in kept)):
            table.add_column(header, justify="right", no_wrap=True)
        for row in rows:
            values = [row.scores[key] for key, _ in kept]
            table.add_row(
                row.name, f"{row.changed:.0%}", *("-" if value != value else f"{value:.3f}" for value in values)
            )
        console.print(f"What the metrics notice: {name}", style="bold", markup=False)
        console.print(table)
        console.print()


@dataclass(frozen=True, slots=True)
class Rerun:
    """What changed when a checkpoint saw other images.

    Args:
        name: what was done to the images.
        studies: number of studies.
        changed: share of the studies whose report differs.
        overlap: mean ROUGE-L between the new report and the old one.
        findings: mean absolute change of the finding probabilities.
        boxes: mean number of boxes, before and after.
    """

    name: str
    studies: int
    changed: float
    overlap: float
    findings: float
    boxes: tuple[float, float]


def compare_reruns(
    before: Mapping[str, tuple[str, Mapping[str, float], int]],
    after: Mapping[str, tuple[str, Mapping[str, float], int]],
    name: str,
) -> Rerun:
    """Compares a checkpoint's reports on the true images with those on perturbed ones.

    Args:
        before, after: study id -> report, finding -> probability, number of boxes; studies in both are compared.
        name: what was done to the images.

    Raises:
        ValueError: no study is in both.
    """
    ids = [key for key in before if key in after]
    if not ids:
        raise ValueError("no study has a report on both the true and the perturbed images")
    profile = make_profile("canonical")
    old = [profile.prediction(before[key][0]) for key in ids]
    new = [profile.prediction(after[key][0]) for key in ids]
    index, systems = index_texts(old, {"new": new})
    overlap = next(s.value for s in text_scores(index, systems["new"]) if s.name == "rougeL")
    gaps = [
        abs(after[key][1][label] - p) for key in ids for label, p in before[key][1].items() if label in after[key][1]
    ]
    return Rerun(
        name,
        len(ids),
        sum(a != b for a, b in zip(old, new, strict=True)) / len(ids),
        overlap,
        sum(gaps) / len(gaps) if gaps else float("nan"),
        (sum(before[key][2] for key in ids) / len(ids), sum(after[key][2] for key in ids) / len(ids)),
    )


def summary_of(report: Report) -> tuple[str, dict[str, float], int]:
    """Returns a report's text, finding -> probability, and number of boxes: what reruns are compared by."""
    text = " ".join(report.sections.values())
    return text, {f.label: f.probability for f in report.findings if f.probability is not None}, len(report.boxes)


def rerun_numbers(rows: Sequence[Rerun]) -> dict[str, float]:
    """Returns the numbers of reruns by name: `changed_blank`, `overlap_blank`, `findings_blank`, ..."""
    out: dict[str, float] = {}
    for row in rows:
        out |= {
            f"changed_{row.name}": row.changed,
            f"overlap_{row.name}": row.overlap,
            f"findings_{row.name}": row.findings,
        }
    return out


def print_reruns(rows: Sequence[Rerun], console: Console) -> None:
    """Prints what changed, one line a perturbation."""
    table = Table(box=None, padding=(0, 1))
    for column in (
        "images",
        "studies",
        "reports changed",
        "ROUGE-L to before",
        "change of findings",
        "boxes before, after",
    ):
        table.add_column(column, justify="left" if column == "images" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            str(row.studies),
            f"{row.changed:.1%}",
            f"{row.overlap:.3f}",
            f"{row.findings:.3f}",
            f"{row.boxes[0]:.2f}, {row.boxes[1]:.2f}",
        )
    console.print("Does it look at the image? The checkpoint rerun on perturbed images", style="bold", markup=False)
    console.print(table)
