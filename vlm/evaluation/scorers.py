"""The same predictions under six scorers in use: why a BLEU-4 without its signature means nothing.

Each row is an exact convention that published code follows, computed by our own counts on that convention's tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from vlm.evaluation.inputs import Joined
from vlm.evaluation.text import bleu, cider, index_texts, rouge_l
from vlm.evaluation.tokens import make_profile

_13A = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


@dataclass(frozen=True, slots=True)
class ScorerRow:
    """Scores of one system under one convention.

    Args:
        name: of the convention.
        bleu1, bleu4, rouge_l, cider: corpus values; None where the convention has no such score.
    """

    name: str
    bleu1: float
    bleu4: float
    rouge_l: float | None
    cider: float | None


def six_scorers(predictions: Sequence[str], references: Sequence[str]) -> list[ScorerRow]:
    """Scores N reports, as written, under six conventions.

    Args:
        predictions, references: N texts.
    """
    canonical, compatible = make_profile("canonical"), make_profile("r2gen-compat")
    rows = [
        _row(
            "canonical: lower case, [a-z0-9]+, corpus",
            predictions,
            references,
            canonical.prediction,
            canonical.reference,
        ),
        _row(
            "r2gen-compat: full stops, cut to 60", predictions, references, compatible.prediction, compatible.reference
        ),
        _row("sacreBLEU tokens (13a), case kept, corpus", predictions, references, tokens_13a, tokens_13a),
        _row("split at blanks, case and marks kept, corpus", predictions, references, _blanks, _blanks),
    ]
    index, systems = index_texts(
        list(map(canonical.reference, references)), {"p": list(map(canonical.prediction, predictions))}
    )
    sums = bleu(index, systems["p"])[3].sums
    smoothed = nltk_sentence_bleu(sums).mean(axis=0)
    rows.append(ScorerRow("NLTK, mean of sentences, smoothing 1", float(smoothed[0]), float(smoothed[3]), None, None))
    letters = _row("NLTK given strings: letters, not words", predictions, references, _letters, _letters)
    rows.append(ScorerRow(letters.name, letters.bleu1, letters.bleu4, None, None))
    return rows


def nltk_sentence_bleu(sums: np.ndarray) -> np.ndarray:
    """Returns (N, 4) BLEU-1 to 4 of each report as NLTK's `sentence_bleu` with smoothing `method1` gives them.

    Args:
        sums: (N, 10) statistics of `text.bleu`.
    """
    matches, guesses = sums[:, :4], np.maximum(1.0, sums[:, 4:8])
    precision = np.where(matches == 0, 0.1, matches) / guesses
    geometric = np.exp(np.cumsum(np.log(precision), axis=1) / np.arange(1, 5))
    length, reference = sums[:, 8], sums[:, 9]
    with np.errstate(divide="ignore"):
        penalty = np.where(length > reference, 1.0, np.exp(1 - reference / length))
    return np.where(matches[:, :1] == 0, 0.0, geometric * penalty[:, None])


def tokens_13a(text: str) -> str:
    """Returns the tokens of mteval-v13a, sacreBLEU's default, case kept."""
    text = f" {text} "
    for pattern, put in _13A:
        text = pattern.sub(put, text)
    return " ".join(text.split())


def print_scorers(joined: Joined, console: Console) -> None:
    """Prints the table of six scorers for each system."""
    for name, texts in joined.systems.items():
        table = Table(box=None, padding=(0, 1))
        for column in ("scorer", "BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr"):
            table.add_column(column, justify="left" if column == "scorer" else "right", no_wrap=True)
        for row in six_scorers(texts, joined.references):
            numbers = (row.bleu1, row.bleu4, row.rouge_l, row.cider)
            cells = ["-" if value is None else "undefined" if np.isnan(value) else f"{value:.3f}" for value in numbers]
            table.add_row(row.name.replace("[", "\\["), *cells)
        console.print(f"The same predictions under six scorers in use: {name}", style="bold", markup=False)
        console.print(table)
        console.print()


def _row(
    name: str,
    predictions: Sequence[str],
    references: Sequence[str],
    cut: Callable[[str], str],
    cut_reference: Callable[[str], str],
) -> ScorerRow:
    index, systems = index_texts(
        [cut_reference(text) for text in references], {"p": [cut(text) for text in predictions]}
    )
    scores = bleu(index, systems["p"])
    return ScorerRow(
        name, scores[0].value, scores[3].value, rouge_l(index, systems["p"]).value, cider(index, systems["p"]).value
    )


def _blanks(text: str) -> str:
    return " ".join(text.split())


def _letters(text: str) -> str:
    return " ".join("_" if letter.isspace() else letter for letter in text)
