"""CIDEr of single reports against a fixed corpus: what `text.cider` gives, one pair at a time.

Training by reward scores a few reports a step, whose document frequencies are those of all training references.

Source: Vedantam et al. 2015, arXiv:1411.5726; the variant D of pycocoevalcap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vlm.evaluation.tokens import Profile

ORDERS = 4
SIGMA = 6.0

Grams = Counter[tuple[str, ...]]


class PairCider:
    """CIDEr-D with the document frequencies of a corpus.

    Args:
        references: one report a study, as written.
    """

    def __init__(self, references: Sequence[str]) -> None:
        self.profile = Profile()
        self.frequency: Grams = Counter()
        for text in references:
            self.frequency.update(set(self._grams(text)))
        self.studies = math.log(max(1, len(references)))

    def __call__(self, report: str, reference: str) -> float:
        """CIDEr-D of a report, 0 to 10 for a text that is its reference, more for none."""
        mine, theirs = self._weighted(report), self._weighted(reference)
        total = 0.0
        for own, other in zip(mine, theirs, strict=True):
            norm = math.sqrt(sum(v * v for v in own.values()) * sum(v * v for v in other.values()))
            if norm > 0:
                total += (
                    sum(min(value, other[gram]) * other[gram] for gram, value in own.items() if gram in other) / norm
                )
        lengths = [max(0, len(self._words(text)) - 1) for text in (report, reference)]
        return 10.0 / ORDERS * total * math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * SIGMA**2))

    def _words(self, text: str) -> list[str]:
        return self.profile.reference(text).split()

    def _grams(self, text: str) -> Grams:
        words = self._words(text)
        return Counter(tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))

    def _weighted(self, text: str) -> list[dict[tuple[str, ...], float]]:
        out: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        for gram, count in self._grams(text).items():
            weight = self.studies - math.log(max(1.0, self.frequency[gram]))
            out[len(gram) - 1][gram] = count * weight
        return out
