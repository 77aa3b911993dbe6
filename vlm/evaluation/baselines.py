"""The settings and texts of one evaluation, and the floors that are added to its systems as texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm.evaluation import floors
from vlm.evaluation.inputs import Joined, Reports, uid_of
from vlm.evaluation.tokens import Profile
from vlm.types import InputError

if TYPE_CHECKING:
    from vlm.evaluation.clinical import FindingReader
    from vlm.evaluation.meteor_java import JavaMeteor


@dataclass(frozen=True, slots=True)
class Settings:
    """How to score.

    Args:
        profile: a name of `tokens.PROFILES`.
        resamples: of bootstraps and randomisation; 0 leaves out intervals and tests.
        seed: of everything random.
        level: of intervals.
        rouge_beta: 1.2 for the field's ROUGE-L, 1 for the F1 form.
        meteor: "stem", "java" or "off".
        clinical: read findings from the texts.
        view: labels that findings are scored by.
        coded_view: labels of the file of coded labels.
    """

    profile: str = "canonical"
    resamples: int = 1000
    seed: int = 0
    level: float = 0.95
    rouge_beta: float = 1.2
    meteor: str = "stem"
    clinical: bool = True
    view: str = "radscribe"
    coded_view: str = "openi20"


@dataclass(slots=True)
class Work:
    """The texts of one run, systems and floors, as written and as tokens, and how floors were made."""

    joined: Joined
    settings: Settings
    profile: Profile
    train: Reports | None
    texts: dict[str, list[str]] = field(default_factory=dict)  # systems and floors, as written
    tokens: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # how each floor was made
    references: list[str] = field(default_factory=list)  # tokens
    labels: Path | None = None
    coded: np.ndarray | None = None  # (N, L) bool
    reader: FindingReader | None = None
    java: JavaMeteor | None = None

    def floor(self, name: str, texts: list[str], note: str) -> None:
        """Adds a floor: N texts, and how they were made."""
        self.texts[name] = texts
        distinct = {text: self.profile.prediction(text) for text in set(texts)}
        self.tokens[name] = [distinct[text] for text in texts]
        self.notes[name] = note


def _train_texts(work: Work) -> tuple[list[str], str]:
    if work.train is not None:
        texts = [text for text in work.train.texts.values() if text]
        return texts, f"chosen on {len(texts)} training references"
    return work.joined.references, "chosen on the references themselves, which favours it; give --train"


def add_constant(work: Work) -> None:
    """Adds the best constant report by CIDEr, and with clinical metrics the best one by macro-F1."""
    texts, where = _train_texts(work)
    n = len(work.joined.ids)
    tokens = [work.profile.reference(text) for text in texts]
    best = texts[floors.best_constant(tokens, work.settings.seed)]
    work.floor("constant", [best] * n, f"best constant by CIDEr, {where}")
    if work.reader is None:
        return
    from vlm.evaluation.clinical import best_constant_findings

    view = work.settings.view if work.coded is None else work.settings.coded_view
    candidates, truth = texts, None
    if len(texts) > 5000:
        rows = np.random.default_rng(work.settings.seed).choice(len(texts), 5000, replace=False)
        candidates = [texts[i] for i in np.sort(rows)]
    said = work.reader.read(candidates, view).positive
    by = "finding macro-F1"
    if work.coded is not None:
        by, truth = "coded macro-F1", _train_coded(work, candidates)
    text = candidates[best_constant_findings(said, said if truth is None else truth)]
    work.floor("constant_f1", [text] * n, f"best constant by {by}, {where}")


def _train_coded(work: Work, candidates: Sequence[str]) -> np.ndarray | None:
    """Returns the training studies' coded labels (the scored studies' without --train); None when a study has none."""
    from vlm.evaluation.clinical import read_labels

    if work.train is None or work.reader is None or work.labels is None:
        return work.coded
    ids = [key for key, text in work.train.texts.items() if text]
    try:
        return read_labels(work.labels, ids, work.reader.labels(work.settings.coded_view))
    except InputError:
        work.joined.notes.append(
            "the training studies have no coded labels: constant_f1 was chosen by what their texts say"
        )
        return None


def add_neighbours(work: Work, train_predictions: Reports | None) -> None:
    """Adds each system's nearest neighbours' reports, where there are training references."""
    if work.train is None:
        return
    keys = [key for key, text in work.train.texts.items() if text]
    for name in list(work.joined.systems):
        floor = floor_name("neighbour", name, work.joined)
        by_vector = _vector_neighbours(work, name, train_predictions) if train_predictions is not None else None
        if by_vector is not None:
            work.floor(
                floor,
                by_vector,
                "report of the training study nearest in the system's features or finding probabilities",
            )
            continue
        tokens = [work.profile.reference(work.train.texts[key]) for key in keys]
        nearest = floors.nearest_by_text(work.tokens[name], tokens, work.settings.seed)
        work.floor(
            floor, [work.train.texts[keys[i]] for i in nearest], "training report most like the prediction (tf-idf)"
        )


def _vector_neighbours(work: Work, name: str, train_predictions: Reports) -> list[str] | None:
    assert work.train is not None
    by_uid = {uid_of(key): text for key, text in work.train.texts.items() if text}
    known = [key for key in train_predictions.records if uid_of(key) in by_uid]
    query = floors.vectors_of(work.joined.records[name])
    train = floors.vectors_of([train_predictions.records[key] for key in known]) if known else None
    if query is None or train is None or query.shape[1] != train.shape[1]:
        work.joined.notes.append(
            f"{name}: no features or finding probabilities in both files; the neighbour is by text"
        )
        return None
    return [by_uid[uid_of(known[i])] for i in floors.nearest_by_vector(query, train)]


def floor_name(kind: str, system: str, joined: Joined) -> str:
    """Returns a floor's name: its kind, and of several systems which one it belongs to."""
    return kind if len(joined.systems) == 1 else f"{kind}[{system}]"
