"""BLEU-1 to 4, ROUGE-L and CIDEr over all studies at once, equal to pycocoevalcap's to 1e-9 on the same tokens.

Each metric takes a `TextIndex` (tokenised references, counted once) and the prediction of each study, and returns
`Score`s with the corpus value, the per-study values and the statistics that a bootstrap resamples.

Sources. BLEU: Papineni et al., ACL 2002, with the closest reference length and pycocoevalcap's constants (1e-15, 1e-9).
ROUGE-L: Lin, 2004, with beta 1.2. CIDEr: Vedantam et al., CVPR 2015: what pycocoevalcap calls CIDEr clips counts and
penalises a difference of length with a Gaussian of sigma 6, which the paper calls CIDEr-D; here `cider` is that, and
`cider_plain` is the cosine alone. Departure: CIDEr of a single study is NaN, since every document frequency is then 1
of 1 and all weights are zero; pycocoevalcap returns 0.

Legend: N studies, P (study, reference) pairs, U documents, G n-grams of an order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.evaluation.ngrams import ORDERS, Documents, expand, index_documents, shared
from vlm.evaluation.resampling import Score, mean_score, ratio

TINY, SMALL = 1e-15, 1e-9
SIGMA = 6.0
TEXT_METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider", "cider_plain")


@dataclass(frozen=True, slots=True, eq=False)
class TextIndex:
    """The references of N studies, counted, with the documents of every system that is scored on them.

    Args:
        documents: all distinct texts.
        reference: (P,) document of each reference.
        study: (P,) its study, ascending, each study at least once.
        studies: N.
        weights: for each order (G,) the inverse document frequency, log(N / max(1, studies that hold the n-gram)).
        norms: for each order (U,) length of each document's weighted vector.
    """

    documents: Documents
    reference: np.ndarray
    study: np.ndarray
    studies: int
    weights: tuple[np.ndarray, ...]
    norms: tuple[np.ndarray, ...]


def index_texts(
    references: Sequence[str | Sequence[str]], systems: Mapping[str, Sequence[str]]
) -> tuple[TextIndex, dict[str, np.ndarray]]:
    """Counts references and systems together.

    Args:
        references: tokens of each study's reference, joined by blanks, or a list of such for several references.
        systems: name -> tokens of each study's prediction (any number of texts; those of a system need N).

    Returns:
        The index, and system -> document of each text.
    """
    lists = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
    study = np.repeat(np.arange(len(lists)), [len(entry) for entry in lists])
    texts = [text for entry in lists for text in entry]
    count = len(texts)
    for predictions in systems.values():
        texts.extend(predictions)
    documents, which = index_documents(texts)
    index = _weigh(documents, which[:count], study, len(lists))
    hypotheses, start = {}, count
    for name, predictions in systems.items():
        hypotheses[name] = which[start : start + len(predictions)]
        start += len(predictions)
    return index, hypotheses


def _weigh(documents: Documents, reference: np.ndarray, study: np.ndarray, studies: int) -> TextIndex:
    weights, norms = [], []
    for grams in documents.grams:
        owners, entries = expand(grams, reference)
        keys = study[owners] * max(grams.size, 1) + grams.ids[entries]
        if len(reference) != studies:
            keys = np.unique(keys)  # several references of a study count once
        frequency = np.bincount(keys % max(grams.size, 1), minlength=grams.size)
        weight = np.log(float(max(studies, 1))) - np.log(np.maximum(1.0, frequency))
        weights.append(weight)
        squares = (grams.counts * weight[grams.ids]) ** 2
        norms.append(np.sqrt(np.bincount(grams.rows, squares, minlength=len(documents.lengths))))
    return TextIndex(documents, reference, study, studies, tuple(weights), tuple(norms))


def bleu(index: TextIndex, hypothesis: np.ndarray) -> tuple[Score, ...]:
    """Scores BLEU-1 to BLEU-4.

    Args:
        index: references.
        hypothesis: (N,) document of each study's prediction.

    Returns:
        Four scores that share one (N, 10) array: matches and n-grams of order 1 to 4, length, closest reference length.
    """
    lengths = index.documents.lengths
    length = lengths[hypothesis]  # (N,)
    columns = [_clipped(index, hypothesis, order) for order in range(ORDERS)]
    columns += [np.maximum(0, length - order) for order in range(ORDERS)]
    columns += [length, _closest(lengths[index.reference], index.study, length, index.studies)]
    sums = np.stack(columns, axis=1).astype(np.float64)  # (N, 10)
    per_study = bleu_of_sums(sums)  # (N, 4)
    corpus = bleu_of_sums(sums.sum(axis=0))
    scores = []
    for order in range(ORDERS):
        name = f"bleu{order + 1}"
        signature = f"bleu|n:{order + 1}|smooth:none|length:closest|level:corpus"
        scores.append(Score(name, float(corpus[order]), per_study[:, order], sums, _take_bleu(order), signature))
    return tuple(scores)


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """Turns (..., 10) summed statistics into (..., 4) BLEU-1 to BLEU-4."""
    precision = (sums[..., :4] + TINY) / (sums[..., 4:8] + SMALL)
    order = np.arange(1, ORDERS + 1)
    geometric = np.cumprod(precision, axis=-1) ** (1.0 / order)
    balance = (sums[..., 8] + TINY) / (sums[..., 9] + SMALL)
    penalty = np.where(balance < 1, np.exp(1 - 1 / balance), 1.0)
    return geometric * penalty[..., None]


def _take_bleu(order: int):  # type: ignore[no-untyped-def]
    return lambda sums: bleu_of_sums(sums)[..., order]


def _clipped(index: TextIndex, hypothesis: np.ndarray, order: int) -> np.ndarray:
    """Returns (N,) n-grams of the prediction that a reference has, each at most as often as in the best reference."""
    grams = index.documents.grams[order]
    pairs, first, second = shared(grams, hypothesis[index.study], index.reference)
    matches = np.minimum(grams.counts[first], grams.counts[second])
    studies = index.study[pairs]
    if len(index.reference) == index.studies or len(matches) == 0:
        return np.bincount(studies, matches, minlength=index.studies)
    keys = studies * grams.size + grams.ids[first]
    sort = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[sort], prepend=-1))
    return np.bincount(studies[sort[starts]], np.maximum.reduceat(matches[sort], starts), minlength=index.studies)


def _closest(reference: np.ndarray, study: np.ndarray, length: np.ndarray, studies: int) -> np.ndarray:
    """Returns (N,) the reference length closest to the prediction's, the shorter of two that are equally close."""
    if len(reference) == studies:
        return reference
    sort = np.lexsort((reference, np.abs(reference - length[study]), study))
    return reference[sort[np.flatnonzero(np.diff(study[sort], prepend=-1))]]


def rouge_l(index: TextIndex, hypothesis: np.ndarray, beta: float = 1.2) -> Score:
    """Scores ROUGE-L, the mean of the studies' F-measures.

    Args:
        index: references.
        hypothesis: (N,) document of each study's prediction.
        beta: weight of recall; 1.2 is the field's, 1 is the F1 of rouge_score.
    """
    documents = index.documents
    mine = hypothesis[index.study]  # (P,)
    distinct, inverse = np.unique(mine * len(documents.lengths) + index.reference, return_inverse=True)
    first, second = np.divmod(distinct, len(documents.lengths))
    common = np.array(
        [lcs_length(documents.tokens[a], documents.tokens[b]) for a, b in zip(first, second, strict=True)]
    )
    common = common[inverse].astype(np.float64) if len(common) else np.zeros(len(mine))
    precision = np.nan_to_num(ratio(common, documents.lengths[mine]))
    recall = np.nan_to_num(ratio(common, documents.lengths[index.reference]))
    starts = np.searchsorted(index.study, np.arange(index.studies))
    precision, recall = np.maximum.reduceat(precision, starts), np.maximum.reduceat(recall, starts)
    per_study = np.nan_to_num(ratio((1 + beta**2) * precision * recall, recall + beta**2 * precision))
    return mean_score("rougeL", per_study, f"rougeL|beta:{beta:g}|stem:no|level:report mean")


def lcs_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the length of the longest common subsequence, by bit-parallel rows (Hyyro, 2004).

    Args:
        first, second: words' numbers. The shorter one is held in the bits of an integer, so cost is linear in the
            longer one.
    """
    if len(first) > len(second):
        first, second = second, first
    masks: dict[int, int] = {}
    for place, word in enumerate(first):
        masks[word] = masks.get(word, 0) | (1 << place)
    full = (1 << len(first)) - 1
    row = full  # a zero bit is a step of the DP row
    for word in second:
        mask = masks.get(word)
        if mask is not None:
            hits = row & mask
            row = ((row + hits) | (row - hits)) & full
    return len(first) - row.bit_count()


def cider(index: TextIndex, hypothesis: np.ndarray) -> Score:
    """Scores what the field reports as CIDEr, which is CIDEr-D: clipped counts, Gaussian length penalty.

    Args:
        index: references; document frequencies are those of all of them, also when studies are resampled.
        hypothesis: (N,) document of each study's prediction.
    """
    signature = f"cider|variant:D|n:{ORDERS}|sigma:{SIGMA:g}|clip:yes|df:references|scale:10|level:report mean"
    return _undefined_alone(index, mean_score("cider", _cider(index, hypothesis, clip=True), signature))


def cider_plain(index: TextIndex, hypothesis: np.ndarray) -> Score:
    """Scores plain CIDEr: the cosine of weighted n-gram counts, without clipping, length penalty or stemming."""
    signature = f"cider_plain|variant:plain|n:{ORDERS}|clip:no|stem:no|df:references|scale:10|level:report mean"
    return _undefined_alone(index, mean_score("cider_plain", _cider(index, hypothesis, clip=False), signature))


def _cider(index: TextIndex, hypothesis: np.ndarray, clip: bool) -> np.ndarray:
    documents, mine = index.documents, hypothesis[index.study]
    total = np.zeros(len(mine))  # (P,)
    for order, grams in enumerate(documents.grams):
        pairs, first, second = shared(grams, mine, index.reference)
        theirs = grams.counts[second]
        counts = np.minimum(grams.counts[first], theirs) if clip else grams.counts[first]
        dot = np.bincount(pairs, counts * theirs * index.weights[order][grams.ids[first]] ** 2, minlength=len(mine))
        norms = index.norms[order]
        total += np.nan_to_num(ratio(dot, norms[mine] * norms[index.reference]))
    if clip:
        # pycocoevalcap measures length in bigrams
        bigrams = np.maximum(0, documents.lengths - 1)
        gap = (bigrams[mine] - bigrams[index.reference]).astype(np.float64)
        total *= np.exp(-(gap**2) / (2 * SIGMA**2))
    references = np.bincount(index.study, minlength=index.studies)
    return 10.0 / ORDERS * np.bincount(index.study, total, minlength=index.studies) / references


def _undefined_alone(index: TextIndex, score: Score) -> Score:
    if index.studies > 1:
        return score
    return mean_score(score.name, np.full(index.studies, np.nan), score.signature)


def text_scores(index: TextIndex, hypothesis: np.ndarray, rouge_beta: float = 1.2) -> list[Score]:
    """Returns every score of `TEXT_METRICS`.

    Args:
        index: references.
        hypothesis: (N,) document of each study's prediction.
        rouge_beta: see `rouge_l`.
    """
    return [
        *bleu(index, hypothesis),
        rouge_l(index, hypothesis, rouge_beta),
        cider(index, hypothesis),
        cider_plain(index, hypothesis),
    ]
