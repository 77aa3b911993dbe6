"""Pictures and texts that are nearly the same.

Pictures: the signs of the low frequencies of a 32x32 thumbnail (255 bits; Zauner 2010's pHash with its threshold at
zero, so that the hash of the mirrored picture is a fixed change of bits). Candidates share one of 16 interleaved parts
of the hash; a pair is kept when few bits differ and the thumbnails correlate. Chest radiographs look alike: both are
needed.

Texts: MinHash of runs of three words (Broder 1997), 64 minima in 16 bands; a pair is kept when the runs that both hold
are at least `ALIKE` of those that either holds.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

THUMB = 32
_LOW = 16
BANDS = 16
MAX_BITS = 20
"""Of 255: more different bits are another picture."""
CORRELATED = 0.99
ALIKE = 0.8
_MINIMA, _ROWS = 64, 4
_PRIME = (1 << 61) - 1
_COMPARED = 64  # of a bucket, each is compared with so many after it: buckets of thousands stay quick
_ODD = (np.arange(_LOW) % 2 == 1)[None, :] & np.ones((_LOW, 1), bool)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(H, W) float32 -> (32, 32) uint8, stretched to the range of its values."""
    small = cv2.resize(pixels, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    low, high = float(small.min()), float(small.max())
    return np.round((small - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def picture_hash(thumb: np.ndarray) -> np.ndarray:
    """(256,) bool of a thumbnail; the first bit is always False."""
    waves = cv2.dct(thumb.astype(np.float32) - float(thumb.mean()))[:_LOW, :_LOW]
    bits = (waves > 0).ravel()
    bits[0] = False
    return bits


def mirrored(bits: np.ndarray) -> np.ndarray:
    """The hashes (..., 256) of the pictures turned left to right: waves that are odd across change their sign."""
    turned = bits ^ _ODD.ravel()
    turned[..., 0] = False
    return turned


def like_pictures(bits: np.ndarray, thumbs: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Pairs that show nearly the same.

    Args:
        bits: (n, 256) bool. thumbs: (n, 32, 32) uint8.

    Yields:
        (first, second, whether the second is the first mirrored); first < second.
    """
    whole = [int.from_bytes(row.tobytes()) for row in np.packbits(bits, axis=1)]
    seen: set[tuple[int, int]] = set()
    for turn in (False, True):
        turned = mirrored(bits) if turn else bits
        other = [int.from_bytes(row.tobytes()) for row in np.packbits(turned, axis=1)] if turn else whole
        for first, second in _candidates(bits, turned):
            pair = (min(first, second), max(first, second))
            if first == second or pair in seen:
                continue
            if (whole[first] ^ other[second]).bit_count() > MAX_BITS:
                continue
            picture = thumbs[second][:, ::-1] if turn else thumbs[second]
            if _correlation(thumbs[first], picture) >= CORRELATED:
                seen.add(pair)
                yield (*pair, turn)


def _candidates(bits: np.ndarray, other: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (of bits, of other) that agree in one interleaved part."""
    same = other is bits
    for band in range(BANDS):
        mine, theirs = (np.packbits(b[:, band::BANDS], axis=1).view(np.uint16).ravel() for b in (bits, other))
        buckets: dict[int, list[int]] = defaultdict(list)
        for number, key in enumerate(theirs.tolist()):
            buckets[key].append(number)
        for number, key in enumerate(mine.tolist()):
            group = buckets.get(key, ())
            after = [j for j in group if j > number] if same else group
            yield from ((number, j) for j in after[:_COMPARED])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype(np.float32) - one.mean(), other.astype(np.float32) - other.mean()
    return float((a * b).sum() / (np.sqrt((a * a).sum() * (b * b).sum()) + 1e-6))


def plain(text: str) -> str:
    """Lower case words and numbers, nothing else."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def like_texts(texts: Sequence[str]) -> list[list[int]]:
    """Groups of texts that are nearly the same.

    Args:
        texts: plain and distinct.

    Returns:
        Indices of each group of two or more, the largest group first. Each member is like one other of its group.
    """
    rng = np.random.default_rng(0)
    factor, offset = (rng.integers(1, _PRIME, _MINIMA, dtype=np.uint64) for _ in range(2))
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(_MINIMA // _ROWS)]
    for number, text in enumerate(texts):
        runs = runs_of(text)
        keys = np.fromiter(runs, np.uint64, len(runs))
        minima = (keys[:, None] * factor + offset).min(axis=0)  # multiply-shift modulo 2^64: good enough to sort by
        for band, bucket in enumerate(buckets):
            group = bucket.setdefault(minima[band * _ROWS : (band + 1) * _ROWS].tobytes(), [])
            for other in group:
                if root(other) != root(number) and _jaccard(runs, runs_of(texts[other])) >= ALIKE:
                    parent[root(number)] = root(other)
            if len(group) < 8:
                group.append(number)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(texts)):
        groups[root(number)].append(number)
    return sorted((g for g in groups.values() if len(g) > 1), key=len, reverse=True)


def runs_of(text: str) -> set[int]:
    """Hashes of the runs of three words."""
    words = text.split()
    return {zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(max(1, len(words) - 2))}


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)
