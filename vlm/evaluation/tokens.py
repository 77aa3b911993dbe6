"""How a report becomes tokens: the profiles that fix it, and the signature that names all that changes a score.

The same predictions score BLEU-4 from 0.08 to 0.43 under scorers in use, so a score without its tokenisation can't be
compared. `canonical` is ours to report. `r2gen-compat` follows https://github.com/cuhksz-nlp/R2Gen
(modules/tokenizers.py and modules/datasets.py): its cleaning, a full stop as a token, references cut to the model's
length. R2Gen cuts a reference to `max_seq_length` ids of which the first is the start mark, so 59 words of a reference
remain of 60, and with a training vocabulary it writes `<unk>` for a rare word in references as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

from vlm.types import InputError

R2GEN_LIMITS = {"openi": (60, 3), "mimic": (100, 10)}
"""Data set -> (max_seq_length, least count of a word in the vocabulary), R2Gen's own settings."""

_CANONICAL = re.compile(r"[a-z0-9]+")
_UNICODE = re.compile(r"[^\W_]+")
_R2GEN_MARKS = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")  # the range ':' to '[' is R2Gen's own


@dataclass(frozen=True, slots=True)
class Profile:
    """A way of turning reports into tokens.

    Args:
        name: "canonical", "unicode" or "r2gen-compat".
        dataset: "openi" or "mimic" for `r2gen-compat`; None otherwise.
        vocabulary: words that R2Gen would know; others become `<unk>` in references. None: no word is replaced.
    """

    name: str = "canonical"
    dataset: str | None = None
    vocabulary: frozenset[str] | None = None

    def prediction(self, text: str) -> str:
        """Returns the tokens of a generated report, joined by single spaces."""
        if self.dataset is None:
            return " ".join(self._words(text))
        return " ".join(r2gen_clean(text, self.dataset).split()[: R2GEN_LIMITS[self.dataset][0]])

    def reference(self, text: str) -> str:
        """Returns the tokens of a reference, joined by single spaces; only `r2gen-compat` cuts or replaces anything."""
        if self.dataset is None:
            return " ".join(self._words(text))
        words = r2gen_clean(text, self.dataset).split()[: R2GEN_LIMITS[self.dataset][0] - 1]
        if self.vocabulary is not None:
            words = [word if word in self.vocabulary else "<unk>" for word in words]
        return " ".join(words)

    def _words(self, text: str) -> list[str]:
        return (_CANONICAL if self.name == "canonical" else _UNICODE).findall(text.lower())

    @property
    def signature(self) -> str:
        """The parts of a signature that this profile fixes."""
        if self.dataset is None:
            pattern = "[a-z0-9]+" if self.name == "canonical" else "[^\\W_]+"
            return f"profile:{self.name}|case:lower|tok:{pattern}|cut:none|unk:none"
        limit, least = R2GEN_LIMITS[self.dataset]
        unknown = f"count<{least} in train" if self.vocabulary is not None else "none"
        return (
            f"profile:{self.name}-{self.dataset}|case:lower|tok:r2gen|cut:pred {limit}, ref {limit - 1}|unk:{unknown}"
        )


PROFILES = ("canonical", "r2gen-compat", "r2gen-compat-mimic", "unicode")


def make_profile(name: str, train: Iterable[str] | None = None) -> Profile:
    """Returns the profile of a name.

    Args:
        name: one of `PROFILES`.
        train: training reports; with them `r2gen-compat` replaces rare words as R2Gen does.

    Raises:
        InputError: the name is not in `PROFILES`.
    """
    if name in ("canonical", "unicode"):
        return Profile(name)
    if name not in PROFILES:
        raise InputError(f"--profile {name!r} is unknown; choose one of {', '.join(PROFILES)}")
    dataset = "mimic" if name.endswith("mimic") else "openi"
    if train is None:
        return Profile("r2gen-compat", dataset)
    counts = Counter(word for text in train for word in r2gen_clean(text, dataset).split())
    least = R2GEN_LIMITS[dataset][1]
    return Profile("r2gen-compat", dataset, frozenset(word for word, n in counts.items() if n >= least))


def r2gen_clean(text: str, dataset: str = "openi") -> str:
    """Returns a report as R2Gen cleans it: lower case, enumeration marks and punctuation removed, ` . ` between
    sentences.

    Args:
        text: a report.
        dataset: "openi" or "mimic"; the latter also squeezes underscores, line breaks and blanks.
    """
    if dataset == "mimic":
        text = text.replace("\n", " ")
        text = _repeat(text, "__", "_", 7)
        text = _repeat(text, "  ", " ", 6)
        text = _repeat(text, "..", ".", 8)
    else:
        text = _repeat(text, "..", ".", 3)
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in range(2, 6):
            text = text.replace(f"{before}{number}. ", ". ")
    return " . ".join(_r2gen_sentence(part) for part in text.strip().lower().split(". ")) + " ."


def signature(metric: str, profile: Profile, references: int, studies: int, extra: str = "") -> str:
    """Returns the line that fixes all that changes a score, in sacreBLEU's manner.

    Args:
        metric: name and parameters of the metric ("bleu|n:4|...").
        references: references a study.
        studies: studies scored.
        extra: further `key:value` parts, joined by "|".
    """
    tail = f"|{extra}" if extra else ""
    return f"{metric}|{profile.signature}|refs:{references}|studies:{studies}{tail}|radscribe:{version()}"


def version() -> str:
    """Returns the installed version of radscribe, or "source" when it runs from a checkout."""
    try:
        return metadata.version("radscribe")
    except metadata.PackageNotFoundError:
        return "source"


def without_tokens(ids: Sequence[str], tokens: Sequence[str]) -> list[str]:
    """Returns the ids of the reports that have no token at all."""
    return [key for key, text in zip(ids, tokens, strict=True) if not text]


def _repeat(text: str, old: str, new: str, times: int) -> str:
    for _ in range(times):
        text = text.replace(old, new)
    return text


def _r2gen_sentence(text: str) -> str:
    for mark in ('"', "/", "\\", "'"):
        text = text.replace(mark, "")
    return _R2GEN_MARKS.sub("", text.strip().lower())
