"""Expert review: a page on which a reader rates reports without knowing who wrote them, and the summary of the ratings.

`vlm evaluate review DIR`: DIR holds one file of reports a system, and may hold `references.jsonl` (shown on demand) and
images that the records name. The page saves a `ratings-<reader>.json`; put into DIR, the same command summarises it.
Which system wrote what is only in `review_key.json`, which readers don't get.

Agreement: Cohen's kappa with quadratic weights (Cohen, 1968) for each pair of readers, the rated reports resampled.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vlm.evaluation.inputs import SUFFIXES, Reports, read_reports
from vlm.evaluation.output import write
from vlm.evaluation.resampling import Interval, interval_of, mean_score, ratio, resample
from vlm.evaluation.resampling import intervals as score_intervals
from vlm.evaluation.tables import show
from vlm.types import InputError

ASPECTS = ("accuracy", "completeness", "style")
LEVELS = 5
KEY = "review_key.json"
PAGE = "review.html"
_REFERENCES = "references"


def review_folder(folder: Path, console: Console, json_file: Path | None = None, seed: int = 0) -> None:
    """Writes the page and its key when they are absent, and summarises the ratings that are there.

    Args:
        folder: of the systems' reports and the ratings.
        console: where to print.
        json_file: where to write the summary.
        seed: of the order of reports, the same for every reader.

    Raises:
        InputError: no such folder, no reports in it, or ratings that do not fit.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; make one with a file of reports for each system")
    ratings = sorted(folder.glob("ratings-*.json"))
    if not (folder / KEY).is_file():
        items = make_items(folder, seed)
        key = {code: [system, study] for code, system, study, _ in items}
        write(folder / KEY, json.dumps(key, indent=1) + "\n")
        write(folder / PAGE, review_page(folder, items))
        console.print(
            f"wrote {folder / PAGE} with {len(items)} reports to rate; keep {KEY} from the readers", markup=False
        )
    if not ratings:
        console.print(
            f"no ratings yet: put the readers' ratings-<name>.json into {folder} and run this again", markup=False
        )
        return
    summary = summarise(folder, ratings)
    print_summary(summary, console)
    if json_file is not None:
        write(json_file, json.dumps(summary.flat(), indent=1, allow_nan=False) + "\n")


def make_items(folder: Path, seed: int = 0) -> list[tuple[str, str, str, str]]:
    """Returns (code, system, study, text) of every report in a seeded order; the code tells nothing of the system.

    Raises:
        InputError: no file of reports.
    """
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.stem != _REFERENCES]
    files = [path for path in files if path.name != KEY and not path.name.startswith("ratings-")]
    if not files:
        raise InputError(f"{folder} holds no file of reports ({', '.join(SUFFIXES)}); put one for each system there")
    items = []
    for path in files:
        for study, text in read_reports(path).texts.items():
            code = hashlib.sha256(f"{seed}\0{path.stem}\0{study}".encode()).hexdigest()[:12]
            items.append((code, path.stem, study, text))
    return sorted(items)  # by hash: neither by system nor by study


def review_page(folder: Path, items: Sequence[tuple[str, str, str, str]]) -> str:
    """Returns the page: one card a report, its study's images and reference, three scales."""
    references = _optional(folder)
    names = {system for _, system, _, _ in items}
    paths = [path for path in sorted(folder.iterdir()) if path.stem in names and path.suffix.lower() in SUFFIXES]
    files = {path.stem: read_reports(path).records for path in paths}
    cards = []
    for number, (code, system, study, text) in enumerate(items, 1):
        found = _images(folder, files.get(system, {}).get(study, {}))
        pictures = "".join(f'<img loading=lazy alt="" src="{html.escape(name)}">' for name in found)
        reference = references.texts.get(study, "") if references is not None else ""
        shown = f"<details><summary>Reference</summary><p>{html.escape(reference)}</p></details>" if reference else ""
        scales = "".join(_scale(code, aspect) for aspect in ASPECTS)
        cards.append(
            f'<article id="{code}"><h2>Report {number} of {len(items)}</h2><div class=images>{pictures}</div>'
            f"<p class=report>{html.escape(text) or '<i>(empty)</i>'}</p>{shown}<div class=scales>{scales}</div>"
            "</article>"
        )
    template = resources.files("vlm.evaluation").joinpath("modules", "review.html").read_text(encoding="utf-8")
    return template.replace("{{cards}}", "\n".join(cards)).replace("{{total}}", str(len(items)))


def _optional(folder: Path) -> Reports | None:
    for suffix in SUFFIXES:
        path = folder / f"{_REFERENCES}{suffix}"
        if path.is_file():
            return read_reports(path)
    return None


def _images(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Returns the images of a record that lie in the folder; a path that leaves it is not shown."""
    names = []
    entries = record.get("images") or []
    for entry in entries if isinstance(entries, list) else []:
        name = entry.get("file") if isinstance(entry, Mapping) else entry
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            continue
        if (folder / name).is_file():
            names.append(name)
    return names


def _scale(code: str, aspect: str) -> str:
    data = f'type=radio name="{code}-{aspect}" data-code="{code}" data-aspect="{aspect}"'
    choices = "".join(f"<label><input {data} value={level}>{level}</label>" for level in range(1, LEVELS + 1))
    return f"<fieldset><legend>{aspect}</legend>{choices}</fieldset>"


@dataclass(frozen=True, slots=True)
class ReviewSummary:
    """What readers said.

    Args:
        readers: names, from the files.
        means: (system, aspect) -> mean rating, interval, number of ratings.
        kappas: (reader, reader, aspect) -> weighted kappa, interval, reports that both rated.
    """

    readers: tuple[str, ...]
    means: dict[tuple[str, str], tuple[float, Interval, int]]
    kappas: dict[tuple[str, str, str], tuple[float, Interval, int]]

    def flat(self) -> dict[str, float | int | None]:
        """Returns one flat object."""
        found = {f"{system}.{aspect}": entry for (system, aspect), entry in self.means.items()}
        found |= {f"kappa.{first}.{second}.{aspect}": entry for (first, second, aspect), entry in self.kappas.items()}
        out: dict[str, float | int | None] = {"readers": len(self.readers)}
        for key, (value, interval, number) in found.items():
            out |= {
                key: _known(value),
                f"{key}.low": _known(interval.low),
                f"{key}.high": _known(interval.high),
                f"{key}.n": number,
            }
        return out


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def summarise(folder: Path, paths: Sequence[Path]) -> ReviewSummary:
    """Reads ratings and computes means by system and agreement between readers.

    Raises:
        InputError: a file that is not ratings, names a report that is not in the key, or a level outside 1 to 5.
    """
    key = _load(folder / KEY)
    readers = {path.stem.removeprefix("ratings-"): _ratings(path, key) for path in paths}
    means = {}
    for system in sorted({system for system, _ in key.values()}):
        codes = [code for code, (owner, _) in key.items() if owner == system]
        for aspect in ASPECTS:
            values = [[r[code, aspect] for r in readers.values() if (code, aspect) in r] for code in codes]
            rated = np.array([np.mean(v) for v in values if v], dtype=float)
            score = mean_score(aspect, rated, aspect)
            found = score_intervals([score])[aspect] if len(rated) else Interval(float("nan"), float("nan"))
            means[system, aspect] = (score.value, found, sum(map(len, values)))
    kappas = {}
    for first, second in combinations(sorted(readers), 2):
        for aspect in ASPECTS:
            shared = [c for c in key if (c, aspect) in readers[first] and (c, aspect) in readers[second]]
            a = np.array([readers[first][c, aspect] for c in shared], dtype=int)
            b = np.array([readers[second][c, aspect] for c in shared], dtype=int)
            kappas[first, second, aspect] = (*weighted_kappa(a, b), len(shared))
    return ReviewSummary(tuple(sorted(readers)), means, kappas)


def weighted_kappa(
    first: np.ndarray, second: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, Interval]:
    """Returns Cohen's kappa with quadratic weights and its interval; NaN where both always say one and the same level.

    Args:
        first, second: (N,) levels from 1 to `LEVELS`.
    """
    nothing = Interval(float("nan"), float("nan"))
    if len(first) == 0:
        return float("nan"), nothing
    cell = (first - 1) * LEVELS + (second - 1)
    table = np.zeros((len(first), LEVELS**2))
    table[np.arange(len(first)), cell] = 1.0
    value = float(_kappa(table.sum(axis=0)))
    if len(first) < 2:
        return value, nothing
    drawn = np.concatenate([_kappa(weights @ table) for weights in resample(len(first), resamples, seed)])
    return value, interval_of(drawn)


def _kappa(counts: np.ndarray) -> np.ndarray:
    """Turns (..., 25) counts of level pairs into kappa."""
    level = np.arange(LEVELS)
    cost = ((level[:, None] - level[None]) ** 2).astype(float)
    joint = counts.reshape(*counts.shape[:-1], LEVELS, LEVELS)
    total = joint.sum(axis=(-2, -1))
    chance = joint.sum(axis=-1)[..., :, None] * joint.sum(axis=-2)[..., None, :]
    expected = ratio((chance * cost).sum(axis=(-2, -1)), total)
    return 1 - ratio((joint * cost).sum(axis=(-2, -1)), expected)


def _load(path: Path) -> dict[str, tuple[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {code: (str(system), str(study)) for code, (system, study) in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: not the key that `vlm evaluate review` writes; remove it to make a new page"
        ) from error


def _ratings(path: Path, key: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); save it from the review page again") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise InputError(
            f"{path}: expected code -> {{accuracy, completeness, style}}; save it from the review page again"
        )
    ratings = {}
    for code, entry in content.items():
        if code not in key:
            raise InputError(f"{path}: report {code!r} is not in {KEY}; the ratings are of another page")
        for aspect, level in entry.items():
            if aspect not in ASPECTS or isinstance(level, bool) or level not in range(1, LEVELS + 1):
                raise InputError(f"{path}: {aspect} {level!r} of {code} is not a rating from 1 to {LEVELS}")
            ratings[code, aspect] = int(level)
    return ratings


def print_summary(summary: ReviewSummary, console: Console) -> None:
    """Prints mean ratings by system and agreement between readers."""
    console.print(
        f"Ratings of {len(summary.readers)} readers, 1 to {LEVELS}", style="bold", markup=False, highlight=False
    )
    table = Table(box=None, padding=(0, 1))
    for column in ("system", *ASPECTS):
        table.add_column(column, no_wrap=True)
    for system in dict.fromkeys(name for name, _ in summary.means):
        cells = []
        for aspect in ASPECTS:
            value, found, number = summary.means[system, aspect]
            cells.append(
                f"{show(value, 2)} ({show(found.low, 2)} to {show(found.high, 2)}; {number})" if number else "none"
            )
        table.add_row(system.replace("[", "\\["), *cells)
    console.print(table)
    if not summary.kappas:
        return
    console.print("\nAgreement, kappa with quadratic weights", style="bold", markup=False, highlight=False)
    table = Table(box=None, padding=(0, 1))
    for column in ("readers", "aspect", "kappa", "interval", "reports"):
        table.add_column(column, no_wrap=True)
    for (first, second, aspect), (value, found, number) in summary.kappas.items():
        table.add_row(
            f"{first}, {second}", aspect, show(value), f"{show(found.low)} to {show(found.high)}", str(number)
        )
    console.print(table)
