"""`evaluate.load("<folder>/bleu")`: BLEU-1 to BLEU-4 of radiology reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate

from vlm.evaluation.hugging import compute, information
from vlm.evaluation.text import bleu

_DESCRIPTION = """
BLEU-1 to BLEU-4 of radiology reports, corpus level, closest reference length, equal to pycocoevalcap on the
same tokens.
"""
_CITATION = """
@inproceedings{papineni2002bleu, title={BLEU: a method for automatic evaluation of machine translation},
author={Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing}, booktitle={ACL}, year={2002}}
"""
_EXAMPLE = """
Examples:
    >>> metric = evaluate.load("vlm/evaluation/modules/bleu")
    >>> texts = ["The heart is normal in size.", "The lungs are clear of disease."]
    >>> round(metric.compute(predictions=texts, references=texts)["bleu4"], 3)
    1.0
"""


class Bleu(evaluate.Metric):
    """The metric as `evaluate` loads it."""

    def _info(self) -> evaluate.MetricInfo:
        return information(_DESCRIPTION, _CITATION, _EXAMPLE)

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Any], profile: str = "canonical"
    ) -> dict[str, Any]:
        return compute(bleu, predictions, references, profile)
