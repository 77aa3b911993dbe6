"""`evaluate.load("<folder>/rouge_l")`: ROUGE-L of radiology reports as the field computes it (beta 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate

from vlm.evaluation.hugging import compute, information
from vlm.evaluation.text import rouge_l

_DESCRIPTION = """
ROUGE-L of radiology reports as the field computes it (beta 1.2), equal to pycocoevalcap on the same tokens.
"""
_CITATION = """
@inproceedings{lin2004rouge, title={ROUGE: a package for automatic evaluation of summaries}, author={Lin,
Chin-Yew}, year={2004}}
"""
_EXAMPLE = """
Examples:
    >>> metric = evaluate.load("vlm/evaluation/modules/rouge_l")
    >>> texts = ["The heart is normal in size.", "The lungs are clear of disease."]
    >>> round(metric.compute(predictions=texts, references=texts)["rougeL"], 3)
    1.0
"""


class RougeL(evaluate.Metric):
    """The metric as `evaluate` loads it."""

    def _info(self) -> evaluate.MetricInfo:
        return information(_DESCRIPTION, _CITATION, _EXAMPLE)

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Any], profile: str = "canonical"
    ) -> dict[str, Any]:
        return compute(lambda index, hypothesis: [rouge_l(index, hypothesis)], predictions, references, profile)
