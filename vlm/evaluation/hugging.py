"""What the local `evaluate` modules in `modules/` share: normalising, scoring, corpus and per-study values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from vlm.evaluation.resampling import Score
from vlm.evaluation.text import TextIndex, index_texts
from vlm.evaluation.tokens import make_profile, signature

ARGUMENTS = """
Args:
    predictions (`list` of `str`): generated reports, as written.
    references (`list` of `str`, or of `list` of `str`): reference reports, as written.
    profile (`str`): how text becomes tokens: "canonical", "r2gen-compat", "r2gen-compat-mimic", "unicode",
        or "tokens" when the texts are tokens joined by blanks already. Defaults to "canonical".
Returns:
    a `dict`: each score under its name, `<score>_per_study` with one value a report (None where undefined), and
    `<score>_signature`, the line that fixes all that changes the number.
"""


def information(description: str, citation: str, example: str) -> evaluate.MetricInfo:
    """Returns a module's card: description, citation, arguments with an example, and the two shapes of input."""
    text = datasets.Value("string")
    shapes = [
        datasets.Features({"predictions": text, "references": text}),
        datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
    ]
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=ARGUMENTS + example,
        features=shapes,
        reference_urls=[],
        codebase_urls=[],
    )


def compute(
    score: Callable[[TextIndex, np.ndarray], Sequence[Score]],
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    profile: str = "canonical",
) -> dict[str, Any]:
    """Scores reports for a module.

    Args:
        score: index and hypotheses -> scores.
        predictions: N reports; references: N reports or lists of reports.
        profile: see `ARGUMENTS`.
    """
    lists = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
    several = max((len(entry) for entry in lists), default=0)
    if profile == "tokens":
        index, systems = index_texts(lists, {"p": predictions})
        chosen = None
    else:
        chosen = make_profile(profile)
        tokens = [[chosen.reference(text) for text in entry] for entry in lists]
        index, systems = index_texts(tokens, {"p": [chosen.prediction(text) for text in predictions]})
    result: dict[str, Any] = {}
    for one in score(index, systems["p"]):
        result[one.name] = None if np.isnan(one.value) else one.value
        result[f"{one.name}_per_study"] = [None if np.isnan(value) else float(value) for value in one.per_study]
        given = f"{one.signature}|profile:tokens as given|refs:{several}|studies:{len(lists)}"
        result[f"{one.name}_signature"] = (
            given if chosen is None else signature(one.signature, chosen, several, len(lists))
        )
    return result
