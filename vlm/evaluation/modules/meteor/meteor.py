"""`evaluate.load("<folder>/meteor")`: METEOR of radiology reports with exact and stem matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate

from vlm.evaluation.hugging import compute, information
from vlm.evaluation.meteor import meteor

_DESCRIPTION = """
METEOR of radiology reports with exact and stem matching and the parameters of METEOR 1.5, without Java.
"""
_CITATION = """
@inproceedings{denkowski2014meteor, title={Meteor Universal: language specific translation evaluation for any
target language}, author={Denkowski, Michael and Lavie, Alon}, booktitle={WMT}, year={2014}}
"""
_EXAMPLE = """
Examples:
    >>> metric = evaluate.load("vlm/evaluation/modules/meteor")
    >>> texts = ["The heart is normal in size.", "The lungs are clear of disease."]
    >>> round(metric.compute(predictions=texts, references=texts)["meteor"], 3)
    1.0
"""


class Meteor(evaluate.Metric):
    """The metric as `evaluate` loads it."""

    def _info(self) -> evaluate.MetricInfo:
        return information(_DESCRIPTION, _CITATION, _EXAMPLE)

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Any], profile: str = "canonical"
    ) -> dict[str, Any]:
        return compute(lambda index, hypothesis: [meteor(index, hypothesis)], predictions, references, profile)
