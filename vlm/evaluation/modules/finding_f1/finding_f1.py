"""`evaluate.load("<folder>/finding_f1")`: F1 of the findings that both texts state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np

from vlm.evaluation.clinical import FindingReader, finding_scores
from vlm.evaluation.hugging import ARGUMENTS, information

_DESCRIPTION = """
Precision, recall and F1 of the findings read from generated and reference reports, false statements, omissions
and agreement of sides. The reader is rule-based and shares its mistakes between both texts.
"""
_CITATION = ""
_EXAMPLE = """
Examples:
    >>> metric = evaluate.load("vlm/evaluation/modules/finding_f1")
    >>> texts = ["There is a left pleural effusion.", "The lungs are clear."]
    >>> metric.compute(predictions=texts, references=texts)["finding_f1_micro"]
    1.0
"""


class FindingF1(evaluate.Metric):
    """The metric as `evaluate` loads it."""

    def _info(self) -> evaluate.MetricInfo:
        card = information(_DESCRIPTION, _CITATION, _EXAMPLE)
        card.features = card.features[0]
        card.inputs_description = ARGUMENTS.split("    profile")[0] + (
            '    view (`str`): label list, "radscribe", "chexpert14" or "openi20". Defaults to "radscribe".\n'
            "Returns:\n    a `dict`: each score under its name, and `<score>_per_study` (None where undefined).\n"
            + _EXAMPLE
        )
        return card

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], view: str = "radscribe"
    ) -> dict[str, Any]:
        reader = FindingReader()
        result: dict[str, Any] = {}
        for score in finding_scores(reader.read(predictions, view), reader.read(references, view), view):
            result[score.name] = None if np.isnan(score.value) else score.value
            result[f"{score.name}_per_study"] = [None if np.isnan(value) else float(value) for value in score.per_study]
        return result
