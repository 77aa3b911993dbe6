"""Documents as integer n-grams, so that BLEU and CIDEr are a few numpy calls over all studies at once.

An n-gram's number is exact, not a hash: (number of its first n - 1 words, number of its last word) is made dense by
`np.unique`. Each distinct text is counted once, however often it is a prediction or a reference.

Legend: U distinct documents, P pairs of documents, G distinct n-grams of one order, E entries (document, n-gram).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = 4
_CHUNK = 50_000  # pairs matched at once: bounds the memory at some 100 MB


@dataclass(frozen=True, slots=True, eq=False)
class Grams:
    """Counts of the n-grams of one order, document by document (compressed sparse rows, n-grams ascending in a row).

    Args:
        indptr: (U + 1,) where each document's entries start.
        ids: (E,) numbers of n-grams.
        counts: (E,) how often each is in its document.
        size: G.
    """

    indptr: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    size: int

    @property
    def rows(self) -> np.ndarray:
        """(E,) the document of each entry."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """Distinct tokenised texts.

    Args:
        words: the vocabulary, by number.
        tokens: the words' numbers of each document.
        lengths: (U,) words a document.
        grams: `Grams` of order 1 to 4.
    """

    words: list[str]
    tokens: list[list[int]]
    lengths: np.ndarray
    grams: tuple[Grams, ...]


def index_documents(texts: Sequence[str]) -> tuple[Documents, np.ndarray]:
    """Counts the n-grams of texts, each distinct text once.

    Args:
        texts: tokens joined by white space.

    Returns:
        The documents, and (len(texts),) each text's document.
    """
    numbers: dict[str, int] = {}
    which = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), dtype=np.int64, count=len(texts))
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    tokens = [[vocabulary[word] for word in text.split()] for text in numbers]
    lengths = np.array([len(words) for words in tokens], dtype=np.int64)
    flat = np.fromiter((word for words in tokens for word in words), dtype=np.int64, count=int(lengths.sum()))
    documents = np.repeat(np.arange(len(tokens)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))  # words from here to the document's end
    grams, prefix, words = [], np.zeros(len(flat), dtype=np.int64), len(vocabulary) or 1
    for order in range(1, ORDERS + 1):
        here = np.flatnonzero(left >= order)
        distinct, inverse = np.unique(prefix[here] * words + flat[here + order - 1], return_inverse=True)
        grams.append(_count(documents[here], inverse, len(tokens), len(distinct)))
        prefix = np.zeros(len(flat), dtype=np.int64)
        prefix[here] = inverse
    return Documents(list(vocabulary), tokens, lengths, tuple(grams)), which


def _count(rows: np.ndarray, ids: np.ndarray, documents: int, size: int) -> Grams:
    keys, counts = np.unique(rows * max(size, 1) + ids, return_counts=True)
    owners = keys // max(size, 1)
    indptr = np.searchsorted(owners, np.arange(documents + 1))
    return Grams(indptr, keys - owners * max(size, 1), counts.astype(np.float64), size)


def expand(grams: Grams, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all entries of (P,) documents: (T,) position in `documents`, (T,) index of the entry."""
    starts = grams.indptr[documents]
    lengths = grams.indptr[documents + 1] - starts
    owners = np.repeat(np.arange(len(documents)), lengths)
    offsets = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owners, np.repeat(starts, lengths) + offsets


def shared(grams: Grams, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the n-grams that the documents of each pair share.

    Args:
        first, second: (P,) documents.

    Returns:
        (S,) the pair, (S,) the entry in the first document, (S,) the entry in the second.
    """
    parts = []
    for start in range(0, len(first), _CHUNK):
        owners_a, entries_a = expand(grams, first[start : start + _CHUNK])
        owners_b, entries_b = expand(grams, second[start : start + _CHUNK])
        keys_a = owners_a * grams.size + grams.ids[entries_a]  # ascending: rows are sorted within a pair
        keys_b = owners_b * grams.size + grams.ids[entries_b]
        if len(keys_a) == 0:
            continue
        place = np.minimum(np.searchsorted(keys_a, keys_b), len(keys_a) - 1)
        hit = keys_a[place] == keys_b
        parts.append((owners_b[hit] + start, entries_a[place[hit]], entries_b[hit]))
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty
    pairs, entries_first, entries_second = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pairs, entries_first, entries_second
