"""Which studies of a pool to annotate next: what was seen of them, ranked by a strategy (formulas: `scores`).

A list of the highest scores alone may hold one kind of study fifty times. So uncertainty and disagreement keep
`BREADTH` times as many as are asked for, and choose among these by k-centre greedy, from the highest score on (a
cheap form of Zhdanov 2019, arXiv:1901.05954, who clusters them). On Open-i, where hardly two films are alike, this
step makes no measured difference (scripts/measure_selection.py); it is there for pools that hold copies and series.

What was seen is kept beside the list until it is written: a call that was interrupted is taken up by the next one.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vlm.selecting.looking import Committee, Look, Unread
from vlm.selecting.scores import disagreement, k_centre, over_labels, uncertainty
from vlm.types import InputError, Study

STRATEGIES = ("uncertainty", "diversity", "disagreement")
BREADTH = 3
"""How many times n studies with the highest scores the final choice is made among."""
NAMED = 2
"""Findings that are named as the reason."""
Watch = Callable[[Study, Look | Unread], None]


@dataclass(frozen=True, slots=True)
class Pick:
    """A chosen study.

    Args:
        study: of the pool. rank: from 1. score: of the strategy, see `scores`; for diversity the distance to the
            nearest centre, None for the first when there was none. why: a few words. finding: that says most; None for
            diversity.
    """

    study: Study
    rank: int
    score: float | None
    why: str
    finding: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen: the picks in order, how many studies were free to choose from, how many labelled ones were left
    out, and those that could not be looked at."""

    picks: list[Pick]
    free: int
    left_out: int
    failed: list[Unread]


@dataclass(frozen=True, slots=True)
class Pool:
    """Studies to choose from.

    Args:
        free: not labelled yet. labelled: the centres that are there already. left_out: how many studies of the pool are
            labelled.
    """

    free: list[Study]
    labelled: list[Study]
    left_out: int


def check_strategy(strategy: str) -> None:
    """Refuses a strategy that there is none of.

    Raises:
        InputError: naming the nearest.
    """
    if strategy not in STRATEGIES:
        near = difflib.get_close_matches(strategy, STRATEGIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(STRATEGIES)}"
        raise InputError(f"--strategy {strategy!r} is not known; {hint}")


def make_pool(studies: Sequence[Study], labelled: Sequence[Study], n: int) -> Pool:
    """Takes the labelled studies, told by their ids, out of a pool.

    Args:
        studies: of the pool. labelled: may name studies of the pool or others. n: how many are wanted.

    Raises:
        InputError: fewer are left than wanted.
    """
    ids = {study.id for study in labelled}
    free = [study for study in studies if study.id not in ids]
    left_out = len(studies) - len(free)
    if n > len(free):
        part = f"{len(studies)} studies, {left_out} of them labelled already" if left_out else f"{len(free)} studies"
        raise InputError(f"--n {n}: the pool has {part}; ask for at most {len(free)}")
    return Pool(free, list(labelled), left_out)


def select(
    committee: Committee, pool: Pool, n: int, strategy: str, kept: Path | None = None, watch: Watch | None = None
) -> Selection:
    """Looks at every study and chooses.

    Args:
        committee: several members, or passes, for disagreement. pool: from `make_pool`. n: how many.
        strategy: of `STRATEGIES`. kept: file for what was seen so far; None keeps nothing. watch: called after each
            study.

    Raises:
        InputError: no study could be looked at.
    """
    wanted = [*pool.free, *labelled_to_see(pool, strategy)]
    found: list[Look | Unread] = []
    with Kept(kept, committee.key) as earlier:
        todo = committee.looks(study for study in wanted if not earlier.has(study))
        for study in wanted:
            look: Look | Unread | None = earlier.take(study)
            if look is None:
                _, look = next(todo)
                earlier.add(study, look)
            found.append(look)
            if watch is not None:
                watch(study, look)
    own, centres = found[: len(pool.free)], [x for x in found[len(pool.free) :] if isinstance(x, Look)]
    failed = [x for x in own if isinstance(x, Unread)]
    seen = [(study, x) for study, x in zip(pool.free, own, strict=True) if isinstance(x, Look)]
    if not seen:
        raise InputError(f"no study of the pool could be looked at; the first: {failed[0].message}")
    picks = choose(committee, [s for s, _ in seen], [x for _, x in seen], centres, n, strategy)
    return Selection(picks, len(pool.free), pool.left_out, failed)


def kept_beside(out: Path) -> Path:
    """Where what was seen is kept until the list is written."""
    return out.with_name(f".{out.name}.seen.jsonl")


def summary(selection: Selection, strategy: str) -> str:
    """One line: how many were chosen of how many, and what most of them were chosen for."""
    labelled = f" ({selection.left_out} labelled ones left out)" if selection.left_out else ""
    named = Counter(p.finding for p in selection.picks if p.finding is not None).most_common(3)
    about = ", ".join(f"{name} {count}" for name, count in named)
    most = f", mostly for {about}" if about else ""
    return f"{len(selection.picks)} of {selection.free} studies{labelled} by {strategy}{most}"


def labelled_to_see(pool: Pool, strategy: str) -> list[Study]:
    """The labelled studies that have to be looked at too."""
    return pool.labelled if strategy == "diversity" else []


def choose(
    committee: Committee, studies: Sequence[Study], looks: Sequence[Look], centres: Sequence[Look], n: int,
    strategy: str, breadth: int = BREADTH,
) -> list[Pick]:  # fmt: skip
    """Ranks what was looked at.

    Args:
        committee: whose labels and cuts count. studies, looks: N of each. centres: of labelled studies, for diversity.
        n: how many; fewer when there are fewer. strategy: of `STRATEGIES`. breadth: 1 takes the highest scores.
    """
    n = min(n, len(looks))
    features = np.stack([look.features for look in looks])
    if strategy == "diversity":
        there = np.stack([look.features for look in centres]) if centres else None
        rows, apart, of = k_centre(features, n, there)
        names = [studies[i].id if i >= 0 else centres[-1 - i].study_id for i in of.tolist()]
        found = zip(rows.tolist(), apart.tolist(), names, strict=True)
        return [_far(studies[row], rank, gap, name) for rank, (row, gap, name) in enumerate(found, 1)]
    probability = np.stack([look.probability for look in looks], axis=1)  # (M, N, F)
    if strategy == "uncertainty":
        values = uncertainty(probability, committee.cuts, np.stack([look.boxes for look in looks]))
    else:
        values = disagreement(probability)
    score = over_labels(values)
    best = np.argsort(-score, kind="stable")[: n * breadth]
    rows = best[:n] if breadth == 1 else best[k_centre(features[best], n, first=0)[0]]
    picks = []
    for rank, row in enumerate(rows.tolist(), 1):
        finding, why = _reason(strategy, committee.labels, values[row], probability[:, row], looks[row].boxes)
        picks.append(Pick(studies[row], rank, round(float(score[row]), 5), why, finding))
    return picks


def _far(study: Study, rank: int, gap: float, name: str) -> Pick:
    """A pick of diversity, by the centre that was nearest."""
    if np.isinf(gap):
        return Pick(study, rank, None, "nearest to the mean of the pool")
    return Pick(study, rank, round(gap, 5), f"nearest chosen or labelled: {name}")


def _reason(
    strategy: str, labels: Sequence[str], values: np.ndarray, members: np.ndarray, boxes: np.ndarray
) -> tuple[str, str]:
    """The finding that says most, and words for the first few: values and boxes (F,), members (M, F)."""
    told = np.argsort(-np.where(np.isnan(values), -1.0, values), kind="stable")[:NAMED].tolist()
    words = []
    for at in told:
        p = members[:, at]
        if strategy == "disagreement":
            words.append(f"{labels[at]} {p.min():.2f} to {p.max():.2f}")
        else:
            words.append(f"{labels[at]} {p.mean():.2f}" + (" (its box)" if 0 < values[at] <= boxes[at] else ""))
    return labels[told[0]], ", ".join(words)


class Kept:
    """What was seen so far, a line a study, so that an interruption loses none of it; removed when all is done.

    Args:
        path: JSONL file; None keeps nothing. key: of the committee: what another one saw is begun anew.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self.stream: TextIO | None = None
        self.found: dict[str, Look] = {}

    def __enter__(self) -> Kept:
        if self.path is None:
            return self
        if self.path.is_file():
            self.found = _read_kept(self.path, self.key)
        # Written anew: a line that was cut off by a crash must not be gone on with.
        lines = [json.dumps({"key": self.key}), *(_line(stamp, look) for stamp, look in self.found.items())]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(self.path.name + ".tmp")
        fresh.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        fresh.replace(self.path)
        self.stream = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.stream is not None:
            self.stream.close()

    def has(self, study: Study) -> bool:
        """Whether an earlier call saw this study, in these files."""
        return bool(self.found) and _stamp(study) in self.found

    def take(self, study: Study) -> Look | None:
        """What an earlier call saw."""
        if not self.found:
            return None
        look = self.found.get(_stamp(study))
        return None if look is None else replace(look, study_id=study.id)

    def add(self, study: Study, look: Look | Unread) -> None:
        """Keeps what was seen; a study that could not be read is tried again by the next call."""
        if self.stream is not None and isinstance(look, Look):
            self.stream.write(_line(_stamp(study), look) + "\n")
            self.stream.flush()


def _stamp(study: Study) -> str:
    """What tells a study as it lies on disk: its id, and its images with size and time of change."""
    facts: list[object] = [study.id]
    for image in study.images:
        status = image.path.stat() if image.path is not None and image.path.exists() else None
        facts += [image.path, status and (status.st_size, status.st_mtime_ns)]
        facts += [image.frame, image.window, image.masked, image.slab, image.view, image.modality]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _line(stamp: str, look: Look) -> str:
    arrays = {name: _packed(getattr(look, name)) for name in ("probability", "boxes", "features")}
    return json.dumps({"stamp": stamp, **arrays})


def _packed(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array, np.float64).tobytes()).decode()
    return {"shape": array.shape, "data": data}


def _unpacked(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), np.float64).reshape(packed["shape"])


def _read_kept(path: Path, key: str) -> dict[str, Look]:
    """The whole lines of an earlier call's file; nothing of another committee's."""
    found: dict[str, Look] = {}
    with path.open(encoding="utf-8") as stream:
        try:
            if json.loads(stream.readline())["key"] != key:
                return {}
            for line in stream:
                record = json.loads(line)
                arrays = [_unpacked(record[name]) for name in ("probability", "boxes", "features")]
                found[record["stamp"]] = Look("", *arrays)
        except (ValueError, KeyError, TypeError):  # the last line of a call that was killed
            pass
    return found
