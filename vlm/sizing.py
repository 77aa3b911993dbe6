"""How large a run's studies and batches are, from the data's own texts and without decoding an image.

Shapes: n studies looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from vlm.config import Config, Data, DataSet
from vlm.data.examples import HEADINGS
from vlm.data.prepared import PreparedSet, is_prepared, is_url
from vlm.data.streaming import choose
from vlm.data.views import choose_views
from vlm.training_data import open_set
from vlm.types import InputError, Study

LOOKED_AT = 400
"""Studies of a set whose texts are measured; an even sample of larger ones."""
SEEN_TOKENS = 12
"""Tokens that the line of findings adds to a prompt, typically."""
CHARACTERS = 4
"""Of a token, where no tokenizer is at hand."""


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What is known of a data set.

    Args:
        count: studies. streamed: read when needed, not kept.
        size, views, prompt, report: (n,) pixels of the square, images, tokens of the prompt, tokens of the report (0:
            none) of the studies that were looked at.
        note: why nothing could be looked at, and what was taken instead; empty otherwise.
    """

    count: int
    streamed: bool
    size: np.ndarray
    views: np.ndarray
    prompt: np.ndarray
    report: np.ndarray
    note: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch.

    Args:
        studies: of it. images: over all studies. views: the most of one study. size: pixels of the squares. channels:
            of the images. prompt, report: tokens of the longest. labelled: report tokens over all studies.
    """

    studies: int
    images: int
    views: int
    size: int
    channels: int
    prompt: int
    report: int
    labelled: int


def look_at(source: DataSet, data: Data, tokenizer: PreTrainedTokenizerBase | None) -> SetFacts:
    """Measures a data set; one that cannot be read is taken at the longest texts that the configuration allows."""
    try:
        where = source.location()
        if source.path is not None and source.format in ("auto", "prepared") and (is_url(where) or is_prepared(where)):
            held = PreparedSet(where)
            chosen = choose(held, source.split, source.limit)
            some = [held.study(int(chosen[i]), pixels=False) for i in _even(len(chosen), LOOKED_AT // 4)]
            return _measured(some, len(chosen), True, data, tokenizer)
        _, count, study_at = open_set(source)
        # Made studies are drawn, which takes longer than reading a text.
        most = LOOKED_AT if source.path is not None else LOOKED_AT // 8
        return _measured([study_at(i) for i in _even(count, most)], count, False, data, tokenizer)
    except InputError as error:
        count = source.limit or source.count or 0
        size = max(data.image_size.values())
        full = np.array([[size, data.max_views, data.max_prompt_tokens, data.max_report_tokens]])
        note = f"{error}: counted with the longest texts and most views that the configuration allows"
        size, views, prompt, report = full.T
        return SetFacts(count, False, size, views, prompt, report, note)


def _even(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def _measured(
    studies: Sequence[Study], count: int, streamed: bool, data: Data, tokenizer: PreTrainedTokenizerBase | None
) -> SetFacts:
    def tokens(text: str) -> int:
        if tokenizer is None:
            return math.ceil(len(text) / CHARACTERS)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    rows = []
    for study in studies:
        modality = next((i.modality for i in study.images if i.modality), None)
        name = modality.value if modality else data.default_modality
        report = [f"{HEADINGS.get(k, k)} {v}" for k, v in (study.report or {}).items() if k in data.report_sections]
        clinical = [f"{k}: {v}" for k, v in study.clinical.items() if k in data.clinical_sections]
        lines = [f"Modality: {name}.", *clinical, HEADINGS.get(data.report_sections[0], "Findings:")]
        prompt = tokens("\n".join(lines)) + 1 + (SEEN_TOKENS if data.seen_line else 0)
        rows.append(
            (
                data.image_size.get(name, data.image_size.get("default", 256)),
                len(choose_views(study.images, data.max_views)),
                min(prompt, data.max_prompt_tokens),
                min(tokens("\n".join(report)) + 1, data.max_report_tokens) if report else 0,
            )
        )
    return SetFacts(count, streamed, *np.array(rows, int).reshape(-1, 4).T)


def heaviest(sets: Sequence[SetFacts], batch: int, config: Config, reports: bool) -> list[Shape]:
    """The heaviest batch of each image size, as bucketing by length makes it.

    Args:
        sets: that batches are drawn from. batch: studies of one. reports: whether reports are read.
    """
    size, views, prompt, report = (
        np.concatenate([getattr(s, name) for s in sets]) for name in ("size", "views", "prompt", "report")
    )
    # A sample stands for all: each of its studies for so many.
    times = np.concatenate([np.full(len(s.size), max(1, s.count) / max(1, len(s.size))) for s in sets])
    shapes = []
    for pixels in np.unique(size):
        own = np.flatnonzero(size == pixels)
        own = own[np.argsort(-report[own], kind="stable")]
        studies = int(min(batch, math.ceil(times[own].sum())))
        longest = own[: max(1, math.ceil(studies / times[own].mean()))]
        mean, spread = views[own].mean(), views[own].std()
        images = min(studies * int(views[own].max()), math.ceil(studies * mean + 2 * spread * studies**0.5))
        shapes.append(
            Shape(
                studies, images, int(views[own].max()), int(pixels), config.data.channels, int(prompt[own].max()),
                int(report[own].max()) if reports else 0,
                math.ceil(report[longest].mean() * studies) if reports else 0,
            )
        )  # fmt: skip
    return shapes
