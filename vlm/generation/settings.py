"""How to search, and what a search returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vlm.types import InputError


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """How to search.

    Args:
        num_beams: width, 1 or more.
        max_new_tokens: longest answer, the end token counted.
        min_new_tokens: no end token before this many.
        length_penalty: exponent of the length by which a finished log probability is divided; above 0 favours long
            answers.
        early_stopping: True stops at `num_beams` finished answers, False by transformers' estimate, "never" by the
            exact bound.
        no_repeat_ngram_size: n-grams of tokens of this size occur once; 0 for no such rule.
        no_repeat_in_sentence: n-grams of tokens of this size come twice in a sentence only where nothing else may be
            written ("25 mm in diameter, 25 mm in diameter, ..."); 0 for no such rule.
        sentence_end_ids: tokens that end a sentence, for the rule above; none: the text is one sentence.
        eos_token_ids: any of them ends an answer.
        pad_token_id: fills up; None for the first end token.
        suppress_token_ids: never written (the de-identifier's mark, say).

    Raises:
        InputError: a value out of its range.
    """

    num_beams: int = 4
    max_new_tokens: int = 120
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: int = 0
    no_repeat_in_sentence: int = 0
    sentence_end_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    suppress_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise InputError(f"num_beams is {self.num_beams}: it must be 1 or more")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}: it must be 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(
                f"min_new_tokens is {self.min_new_tokens}: it must lie in 0..{self.max_new_tokens} (max_new_tokens)"
            )
        if not math.isfinite(self.length_penalty):
            raise InputError(f"length_penalty is {self.length_penalty}: it must be a finite number")
        for name in ("no_repeat_ngram_size", "no_repeat_in_sentence"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 (off) or more")
        if self.early_stopping not in (True, False, "never"):
            raise InputError(f"early_stopping is {self.early_stopping!r}: it must be true, false or 'never'")
        if not self.eos_token_ids:
            raise InputError(
                "eos_token_ids is empty: the search needs a token that ends an answer; give the tokenizer one"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer.

    Args:
        tokens: new tokens, the end token included when there is one (`decode(..., skip_special_tokens=True)` drops it).
        score: what answers are ordered by, (logprob + soft weights) / length ** length_penalty.
        logprob: sum of the tokens' log probabilities.
        unmet: names of the constraints that it does not hold.
    """

    tokens: tuple[int, ...]
    score: float
    logprob: float
    unmet: tuple[str, ...] = ()
