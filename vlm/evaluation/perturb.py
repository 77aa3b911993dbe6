"""What the metrics notice when reports are made wrong (`reruns.py`: what a model's reports notice when its images are).

A report whose every negation is flipped says the opposite, and one whose sides are swapped names the wrong lung; n-gram
scores hardly move. Each row is scored beside the text as it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from vlm.evaluation.floors import permutations
from vlm.evaluation.inputs import Joined
from vlm.evaluation.meteor import meteor
from vlm.evaluation.resampling import Score
from vlm.evaluation.text import index_texts, text_scores
from vlm.evaluation.tokens import make_profile

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
    console.print(
        "Every negation flipped, every side swapped, or the reports given to other patients. BLEU-4 to CIDEr\n"
        "are the text metrics; F1, opposite (findings that the reference denies, a report), omitted and side\n"
        "are read from the texts.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
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
