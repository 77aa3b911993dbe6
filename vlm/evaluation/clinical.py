"""What reports say of findings: precision, recall and F1 by finding, false statements, omissions, sides.

Both texts are read by the same `knowledge.extraction`, so the reader's mistakes are shared; where people have coded the
studies (`coded_scores`), only the generated text is read. A finding counts as positive when it is said to be present or
uncertain, as in the labelers that the field uses (CheXbert's F1 for report generation); the signature says so.

Legend: N studies, L labels of a view.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowledge.extraction import ReportReader, label_mentions
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from vlm.evaluation.inputs import uid_of
from vlm.evaluation.resampling import Score, mean_score, ratio
from vlm.types import InputError

UNSAID, ABSENT, UNCERTAIN, PRESENT = 0, 1, 2, 3
_CODES = {Certainty.ABSENT: ABSENT, Certainty.UNCERTAIN: UNCERTAIN, Certainty.PRESENT: PRESENT}
_SIDES = {"left": 1, "right": 2, "bilateral": 3}  # as bits: left and right together are both
NORMAL = ("normal", "normal / no indexing", "No Finding")
"""Labels that say that nothing is wrong: no finding, so neither a false statement nor an omission."""


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What N reports say of L labels.

    Args:
        labels: the view's labels, in its order.
        states: (N, L) int8, one of UNSAID, ABSENT, UNCERTAIN, PRESENT.
        sides: (N, L) int8, 0 no side said, 1 left, 2 right, 3 both.
    """

    labels: tuple[str, ...]
    states: np.ndarray
    sides: np.ndarray

    @property
    def positive(self) -> np.ndarray:
        """(N, L) bool, said to be present or uncertain."""
        return self.states >= UNCERTAIN

    def take(self, rows: np.ndarray) -> Readings:
        """Returns the readings of some of the reports, in the given order."""
        return Readings(self.labels, self.states[rows], self.sides[rows])


class FindingReader:
    """Reads reports into states of a view's labels, each distinct text once.

    Args:
        graph: the knowledge graph; None for the one that ships.
    """

    def __init__(self, graph: KnowledgeGraph | None = None) -> None:
        self.graph = graph if graph is not None else KnowledgeGraph.load()
        self._reader = ReportReader(self.graph)
        self._mentions: dict[str, list[Any]] = {}
        self._concepts: dict[str, dict[str, frozenset[str]]] = {}

    def labels(self, view: str) -> tuple[str, ...]:
        """Returns the labels of a view.

        Raises:
            InputError: the graph has no such view.
        """
        if view not in self.graph.views:
            raise InputError(f"view {view!r} is not in the graph; it has {', '.join(sorted(self.graph.views))}")
        return tuple(self.graph.views[view])

    def concepts(self, view: str) -> dict[str, frozenset[str]]:
        """Returns label -> the concepts that it covers, descendants included."""
        if view not in self._concepts:
            self._concepts[view] = {
                label: frozenset().union(
                    *(self.graph.descendants(concept) for concept in self.graph.views[view][label])
                )
                for label in self.labels(view)
            }
        return self._concepts[view]

    def read(self, texts: Sequence[str], view: str = "radscribe") -> Readings:
        """Reads N reports as they are written (not their tokens)."""
        labels = self.labels(view)
        column = {label: i for i, label in enumerate(labels)}
        rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for text in texts:
            if text not in rows:
                rows[text] = self._row(text, view, column)
        shape = (len(texts), len(labels))
        states = np.array([rows[text][0] for text in texts], dtype=np.int8).reshape(shape)
        return Readings(labels, states, np.array([rows[text][1] for text in texts], dtype=np.int8).reshape(shape))

    def _row(self, text: str, view: str, column: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        if text not in self._mentions:
            self._mentions[text] = self._reader.read(text)
        mentions = self._mentions[text]
        states, sides = np.zeros(len(column), np.int8), np.zeros(len(column), np.int8)
        for label, certainty in label_mentions(mentions, self.graph, view=view).items():
            states[column[label]] = _CODES[certainty]
        labels_of = self.graph.label_of(view)
        for m in mentions:
            if m.side and m.certainty != Certainty.ABSENT and m.change != "past":
                for label in labels_of.get(m.concept, ()):
                    sides[column[label]] |= _SIDES[m.side]
        return states, sides


def finding_scores(prediction: Readings, reference: Readings, view: str = "radscribe") -> list[Score]:
    """Scores what the predictions say against what the references say.

    Returns:
        `finding_{precision,recall,f1}_{micro,macro}`, `false_statements`, `contradicted`, `omissions` (a report; lower
        is better) and `laterality` (agreement of sides where both texts name one).
    """
    scores = agreement_scores("finding", prediction.positive, reference.positive, f"read:both|view:{view}")
    finding = np.array([label not in NORMAL for label in reference.labels])
    false = prediction.positive & ~reference.positive & finding
    missed = reference.positive & ~prediction.positive & finding
    against = false & (reference.states == ABSENT)
    for name, cells in (("false_statements", false), ("contradicted", against), ("omissions", missed)):
        scores.append(
            mean_score(name, cells.sum(axis=1).astype(float), f"{name}|view:{view}|level:report mean", low=True)
        )
    sided = prediction.positive & reference.positive & (prediction.sides > 0) & (reference.sides > 0) & finding
    agree = sided & (prediction.sides == reference.sides)
    sums = np.stack([agree.sum(axis=1), sided.sum(axis=1)], axis=1).astype(float)  # (N, 2)
    value = float(_share(sums.sum(axis=0)))
    scores.append(Score("laterality", value, _share(sums), sums, _share, f"laterality|view:{view}|both sided"))
    return scores


def coded_scores(prediction: Readings, coded: np.ndarray, view: str = "openi20") -> list[Score]:
    """Scores what the predictions say against labels that people coded.

    Args:
        prediction: readings in the view of the labels.
        coded: (N, L) bool.
    """
    return agreement_scores("coded", prediction.positive, coded, f"read:prediction|view:{view}")


def agreement_scores(prefix: str, predicted: np.ndarray, truth: np.ndarray, note: str) -> list[Score]:
    """Scores binary labels: `<prefix>_{precision,recall,f1}_{micro,macro}`.

    A macro value is the mean over the labels with a positive in `truth`; a label without any prediction counts 0, as in
    scikit-learn's `zero_division=0`.

    Args:
        predicted, truth: (N, L) bool.
    """
    sums = counts_of(predicted, truth)  # (N, 3 L)
    supported = int(truth.any(axis=0).sum())
    total = sums.sum(axis=0)
    scores = []
    for kind in ("micro", "macro"):
        for position, name in enumerate(("precision", "recall", "f1")):
            finish = _finish(position, kind)
            signature = (
                f"{prefix}_{name}_{kind}|{note}|positive:present or uncertain|labels:{supported} of {truth.shape[1]}"
            )
            scores.append(Score(f"{prefix}_{name}_{kind}", float(finish(total)), finish(sums), sums, finish, signature))
    return scores


def counts_of(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns (N, 3 L) true positives, false positives and false negatives of each study and label."""
    return np.concatenate([predicted & truth, predicted & ~truth, ~predicted & truth], axis=1).astype(float)


def rates(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns (..., 3 L) counts into (..., L) precision, recall and F1, 0 where nothing was counted."""
    hit, false, missed = np.split(sums, 3, axis=-1)
    precision = np.nan_to_num(ratio(hit, hit + false))
    recall = np.nan_to_num(ratio(hit, hit + missed))
    return precision, recall, np.nan_to_num(ratio(2 * hit, 2 * hit + false + missed))


def _finish(position: int, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    def macro(sums: np.ndarray) -> np.ndarray:
        hit, _, missed = np.split(sums, 3, axis=-1)
        supported = hit + missed > 0  # a resample may hold no positive of a rare label: it then has no say
        return ratio(np.where(supported, rates(sums)[position], 0.0).sum(axis=-1), supported.sum(axis=-1))

    def micro(sums: np.ndarray) -> np.ndarray:
        pooled = np.stack([part.sum(axis=-1) for part in np.split(sums, 3, axis=-1)], axis=-1)  # (..., 3)
        return rates(pooled)[position][..., 0]

    return macro if kind == "macro" else micro


def _share(sums: np.ndarray) -> np.ndarray:
    return ratio(sums[..., 0], sums[..., 1])


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One label's line of a table.

    Args:
        label: name in the view.
        precision, recall, f1: in [0, 1].
        support: positives in the truth.
        predicted: positives in the predictions.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


def label_table(labels: Sequence[str], predicted: np.ndarray, truth: np.ndarray) -> list[LabelRow]:
    """Returns precision, recall and F1 of each label with its support.

    Args:
        labels: L names.
        predicted, truth: (N, L) bool.
    """
    precision, recall, f1 = rates(counts_of(predicted, truth).sum(axis=0))
    return [
        LabelRow(
            label,
            float(precision[i]),
            float(recall[i]),
            float(f1[i]),
            int(truth[:, i].sum()),
            int(predicted[:, i].sum()),
        )
        for i, label in enumerate(labels)
    ]


def best_constant_findings(predicted: np.ndarray, truth: np.ndarray) -> int:
    """Returns the row of `predicted` that, said of every study, has the highest macro-F1 (the first of equals).

    A label that is always said has precision p (its prevalence) and recall 1, so its F1 is 2 p / (1 + p).

    Args:
        predicted: (M, L) bool, what candidate reports say.
        truth: (N, L) bool, of the training studies.
    """
    prevalence = truth.mean(axis=0)
    worth = np.where(truth.any(axis=0), 2 * prevalence / (1 + prevalence), 0.0)
    return int(np.argmax(predicted.astype(float) @ worth))


def read_labels(path: Path, ids: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Reads labels that people coded: a JSON object of id -> list of label names.

    Args:
        path: for example Open-i's labels20.json, whose ids are uids.
        ids: N study ids; `CXR2384_IM-0942` is found under `2384` as well.
        labels: L label names of the view.

    Returns:
        (N, L) bool.

    Raises:
        InputError: not such a file; studies without labels; a label that the view does not have.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); expected an object of id -> list of labels") from error
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise InputError(f"{path}: expected an object of id -> list of labels")
    column = {label: i for i, label in enumerate(labels)}
    coded = np.zeros((len(ids), len(labels)), dtype=bool)
    absent = [key for key in ids if key not in content and uid_of(key) not in content]
    if absent:
        shown = ", ".join(absent[:10])
        raise InputError(
            f"{path}: {len(absent)} studies have no labels: {shown}; the ids are the uids or the references' ids"
        )
    for row, key in enumerate(ids):
        for label in content[key] if key in content else content[uid_of(key)]:
            if label not in column:
                raise InputError(f"{path}: label {label!r} of {key} is not one of the view: {', '.join(labels)}")
            coded[row, column[label]] = True
    return coded
