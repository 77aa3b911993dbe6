"""`evaluate.load("<folder>/cider_plain")`: Plain CIDEr of radiology reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate

from vlm.evaluation.hugging import compute, information
from vlm.evaluation.text import cider_plain

_DESCRIPTION = """
Plain CIDEr of radiology reports: neither clipped nor penalised for length, without stemming. Undefined (None)
for one report.
"""
_CITATION = """
@inproceedings{vedantam2015cider, title={CIDEr: consensus-based image description evaluation},
author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi}, booktitle={CVPR}, year={2015}}
"""
_EXAMPLE = """
Examples:
    >>> metric = evaluate.load("vlm/evaluation/modules/cider_plain")
    >>> texts = ["The heart is normal in size.", "The lungs are clear of disease."]
    >>> round(metric.compute(predictions=texts, references=texts)["cider_plain"], 3)
    10.0
"""


class CiderPlain(evaluate.Metric):
    """The metric as `evaluate` loads it."""

    def _info(self) -> evaluate.MetricInfo:
        return information(_DESCRIPTION, _CITATION, _EXAMPLE)

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Any], profile: str = "canonical"
    ) -> dict[str, Any]:
        return compute(lambda index, hypothesis: [cider_plain(index, hypothesis)], predictions, references, profile)
