"""Words and sentences of radiology text: spans, one spelling for every form of a word, and slips of the pen.

Every form of a word maps to one key, the same for the lexicon and the text: lower case, plural folded, British spelling
turned American, and, for long words, one wrong, missing, doubled or swapped letter corrected to a word of the lexicon.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

TOKEN = re.compile(r"\d+(?:\.\d+)?|[A-Za-z]+|[,;:/()]")
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"')\]]|$|[A-Z])|\n+")
_ENUMERATOR = re.compile(r"[\s.\-*•#]*(?:\(?\d{1,2}[.):](?!\d)\s*)?[\s.\-*•]*")
_NOT_AN_END = re.compile(
    r"(?:\b(?:dr|mr|mrs|ms|vs|approx|no|st|fig|e\.g|i\.e|a\.p|p\.a|a\.m|p\.m)|(?:^|[\s(])[A-Za-z]|\n\s*\d{1,2})$", re.I
)

_IRREGULAR = {
    "apices": "apex", "apexes": "apex", "atelectases": "atelectasis", "pneumothoraces": "pneumothorax",
    "pneumothoracies": "pneumothorax", "pneumothoraxes": "pneumothorax", "hila": "hilum", "hilus": "hilum",
    "hili": "hilum", "bronchi": "bronchus", "bullae": "bulla", "vertebrae": "vertebra", "metastases": "metastasis",
    "emboli": "embolus", "calculi": "calculus", "granulomata": "granuloma", "granulomas": "granuloma",
    "foci": "focus", "axillae": "axilla", "scapulae": "scapula", "pleurae": "pleura", "cavities": "cavity",
    "diaphragmatic": "diaphragmatic", "sulci": "sulcus", "septa": "septum", "stenoses": "stenosis",
    "diagnoses": "diagnosis", "bases": "base", "abscesses": "abscess", "masses": "mass", "vs": "versus",
    "disks": "disc", "disk": "disc", "xrays": "xray", "calices": "calyx", "calyces": "calyx", "dilatation": "dilation",
    "infarcts": "infarct", "aneurysmal": "aneurysmal", "atria": "atrium", "media": "media", "kerley": "kerley",
    "hematomata": "hematoma", "thoraces": "thorax", "fibroses": "fibrosis", "ilia": "ilium", "dilated": "dilated",
}  # fmt: skip
_BRITISH = (
    ("oedema", "edema"), ("oesoph", "esoph"), ("haem", "hem"), ("tumour", "tumor"), ("anaem", "anem"),
    ("ischaem", "ischem"), ("leucaem", "leukem"), ("paed", "ped"), ("fibre", "fiber"), ("centre", "center"),
    ("colour", "color"), ("grey", "gray"), ("calibre", "caliber"), ("isation", "ization"), ("ised", "ized"),
)  # fmt: skip
_KEEP_S = ("ss", "us", "is")
_LONG = 8


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences of a report, without enumerators ("1.") and surrounding space.

    Args:
        text: any text; a line break ends a sentence, a decimal point does not.

    Returns:
        (start, end) spans in order, end exclusive; empty for text without a letter.
    """
    return list(_sentence_spans(text))


@lru_cache(maxsize=4096)
def _sentence_spans(text: str) -> tuple[tuple[int, int], ...]:
    """The same; remembered, for a text that grows while it is decoded is read again and again."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        dot = match.start()
        if match.group() == "." and match.end() < len(text) and _NOT_AN_END.search(text, max(start, dot - 8), dot):
            continue
        _keep(text, start, match.end(), spans)
        start = match.end()
    _keep(text, start, len(text), spans)
    return tuple(spans)


def _keep(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> None:
    head = _ENUMERATOR.match(text, start, end)
    start = head.end() if head else start
    while end > start and text[end - 1].isspace():
        end -= 1
    if any(map(str.isalpha, text[start:end])):
        spans.append((start, end))


def fold(word: str) -> str:
    """The key of one word, spelling apart: "Opacities" -> "opacity", "oedema" -> "edema"."""
    w = word.lower()
    if w in _IRREGULAR:
        return _IRREGULAR[w]
    for british, american in _BRITISH:
        if british in w:
            w = w.replace(british, american)
    if len(w) > 3 and w[-1] == "s" and not w.endswith(_KEEP_S):
        if w.endswith("ies") and len(w) > 4:
            return w[:-3] + "y"
        if w.endswith(("sses", "xes", "ches", "shes", "zes")):
            return w[:-2]
        return w[:-1]
    return w


def phrase_key(phrase: str) -> str:
    """One key for every spelling of a phrase: "Normal limits" -> "normal limit"."""
    return " ".join(fold(w) for w in TOKEN.findall(phrase))


class Speller:
    """Maps words to keys, correcting one slip in long words.

    A word of at least eight letters that is not in the vocabulary, and that becomes a word of it (as long, of the same
    first letter) by one insertion, deletion, substitution or swap, is read as that word if only one fits.
    The index holds every vocabulary word with one letter removed, as in SymSpell.

    Args:
        vocabulary: keys of the lexicon.
    """

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self.vocabulary = set(vocabulary)
        self._deletes: dict[str, set[str]] = {}
        for word in self.vocabulary:
            if len(word) >= _LONG:
                for i in range(len(word)):
                    self._deletes.setdefault(word[:i] + word[i + 1 :], set()).add(word)
        self._cache: dict[str, str] = {}

    def key(self, word: str) -> str:
        """The key of a word as written in the text."""
        found = self._cache.get(word)
        if found is None:
            found = self._correct(fold(word))
            if len(self._cache) > 200_000:  # text of unbounded variety must not grow memory without bound
                self._cache.clear()
            self._cache[word] = found
        return found

    def _correct(self, word: str) -> str:
        if len(word) < _LONG or len(word) > 40 or word in self.vocabulary or not word.isalpha():
            return word
        near = set(self._deletes.get(word, ()))
        for i in range(len(word)):
            shorter = word[:i] + word[i + 1 :]
            if shorter in self.vocabulary and len(shorter) >= _LONG:
                near.add(shorter)
            near |= self._deletes.get(shorter, set())
        near = {n for n in near if n[0] == word[0] and within_one_edit(word, n)}
        return near.pop() if len(near) == 1 else word


def within_one_edit(a: str, b: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbours turns a into b."""
    if a == b:
        return True
    if abs(len(a) - len(b)) > 1:
        return False
    i = 0
    while i < min(len(a), len(b)) and a[i] == b[i]:
        i += 1
    if len(a) == len(b):
        return a[i + 1 :] == b[i + 1 :] or (a[i : i + 2] == b[i : i + 2][::-1] and a[i + 2 :] == b[i + 2 :])
    return a[i + 1 :] == b[i:] if len(a) > len(b) else a[i:] == b[i + 1 :]
