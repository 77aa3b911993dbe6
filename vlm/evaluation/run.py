"""Scores systems and floors together, compares them in pairs, and returns one `Evaluation`.

Floors are scored by the same code as systems: "constant" is a system that writes one report for everybody. Only the
shuffled floor is special, being the mean over several shuffles of a system's own reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm.evaluation import floors, structured
from vlm.evaluation.baselines import Settings, Work, add_constant, add_neighbours, floor_name
from vlm.evaluation.detection_table import detection_table
from vlm.evaluation.inputs import Joined, Reports
from vlm.evaluation.masks import has_masks, mask_table
from vlm.evaluation.ranking import mean_auc
from vlm.evaluation.resampling import Score, bootstrap, compare, holm, intervals, subset
from vlm.evaluation.result import Comparison, Evaluation, SystemResult
from vlm.evaluation.text import TextIndex, index_texts, text_scores
from vlm.evaluation.tokens import make_profile, signature, without_tokens
from vlm.types import InputError

if TYPE_CHECKING:
    from vlm.evaluation.clinical import Readings


_FOURTEEN = "chexpert14"  # always scored beside the chosen view, as the field reports it


def evaluate_reports(
    joined: Joined,
    settings: Settings | None = None,
    train: Reports | None = None,
    train_predictions: Reports | None = None,
    labels: Path | None = None,
) -> Evaluation:
    """Scores systems against references, floors beside them.

    Args:
        joined: systems and references in one order.
        settings: how to score.
        train: training references: the constant is chosen on them, the neighbour taken from them, and studies whose
            reference is not among them are scored on their own.
        train_predictions: a system's records of training studies (`features`, or `findings` with probabilities): the
            neighbour is then the nearest in these; without it, the training report most like the prediction.
        labels: JSON of id -> labels that people coded.

    Returns:
        Everything found.

    Raises:
        InputError: a text without a token of the profile, labels that do not fit.
    """
    settings = settings or Settings()
    profile = make_profile(settings.profile, train.texts.values() if train is not None else None)
    work = Work(joined, settings, profile, train)
    _tokenise(work)
    if settings.clinical:
        _prepare_clinical(work, labels)
    elif labels is not None:
        raise InputError("--labels needs the clinical metrics; leave out --no-clinical")
    add_constant(work)
    add_neighbours(work, train_predictions)
    result = Evaluation(joined.ids, [], notes=list(joined.notes), is_new=_new_studies(work))
    result.settings = {
        "profile": settings.profile,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "level": settings.level,
    }
    _score(work, result)
    drawn = _intervals(work, result)
    if settings.resamples:
        _compare_all(work, result, drawn)
    _score_structured(work, result)
    return result


def _score_structured(work: Work, result: Evaluation) -> None:
    """Scores boxes, masks and finding probabilities where the files hold them."""
    settings, records = work.settings, work.joined.records
    truths = structured.boxes_of(records["reference"])
    for name in work.joined.systems:
        boxes = structured.boxes_of(records[name])
        if truths is not None and boxes is not None:
            images = sum(structured.image_count(record) for record in records["reference"])
            result.detection[name] = detection_table(
                boxes, truths, images, resamples=max(settings.resamples, 2), seed=settings.seed
            )
        if has_masks(records["reference"]) and has_masks(records[name]):
            folders = work.joined.folders[name], work.joined.folders["reference"]
            table = mask_table(records[name], records["reference"], folders, max(settings.resamples, 2), settings.seed)
            result.masks[name] = table
        probabilities = structured.probabilities_of(records[name])
        if not probabilities or work.reader is None:
            continue
        if work.coded is not None:
            truth = structured.truth_by_label(work.coded, work.reader.labels(settings.coded_view))
            scores = structured.map_labels(probabilities, work.reader.concepts(settings.coded_view))
        else:
            known = structured.findings_of(records["reference"])
            if known is None:
                continue
            truth, scores = known, probabilities
        result.probabilities[name] = (truth, scores)
        result.aucs[name] = mean_auc(truth, scores, resamples=max(settings.resamples, 2), seed=settings.seed)


def _tokenise(work: Work) -> None:
    joined, profile = work.joined, work.profile
    work.references = [profile.reference(text) for text in joined.references]
    bare = without_tokens(joined.ids, work.references)
    if bare:
        raise InputError(
            f"{len(bare)} references hold no token of profile {work.settings.profile!r} (not English?): "
            f"{', '.join(bare[:10])}; score other languages with --profile unicode"
        )
    for name, texts in joined.systems.items():
        work.texts[name] = texts
        work.tokens[name] = [profile.prediction(text) for text in texts]
        rows = zip(joined.ids, texts, work.tokens[name], strict=True)
        bare = [key for key, text, tokens in rows if text and not tokens]
        if bare:
            joined.notes.append(f"{name}: {len(bare)} reports hold no token (not English?): {', '.join(bare[:10])}")
    letters = "".join(joined.references)[:200_000]
    foreign = sum(character.isalpha() and not character.isascii() for character in letters)
    if foreign > 0.05 * max(1, len(letters)) and work.settings.profile != "unicode":
        joined.notes.append(
            "many letters of the references are not English: [a-z0-9]+ breaks such words; use --profile unicode"
        )


def _prepare_clinical(work: Work, labels: Path | None) -> None:
    from vlm.evaluation.clinical import FindingReader, read_labels

    work.reader = FindingReader()
    if labels is not None:
        work.coded = read_labels(labels, work.joined.ids, work.reader.labels(work.settings.coded_view))
        work.labels = labels


def _new_studies(work: Work) -> np.ndarray | None:
    if work.train is None:
        return None
    seen = {work.profile.reference(text) for text in work.train.texts.values()}
    return np.array([tokens not in seen for tokens in work.references])


def _score(work: Work, result: Evaluation) -> None:
    index, hypotheses = index_texts(work.references, work.tokens)
    readings = _read_all(work)
    shuffles = floors.permutations(len(work.joined.ids), work.settings.seed)
    if work.settings.meteor == "java":
        _ask_java(work, shuffles)
    for name in work.texts:
        scores = _all_scores(work, index, hypotheses[name], name, readings)
        floor = name not in work.joined.systems
        spread = floors.diversity(work.tokens[name], work.references)
        result.systems.append(SystemResult(name, floor, scores, {}, diversity=spread, note=work.notes.get(name, "")))
    for name in work.joined.systems:
        if len(work.joined.ids) < 2:
            break
        drawn = [_all_scores(work, index, hypotheses[name][order], name, readings, order) for order in shuffles]
        note = f"mean of {len(shuffles)} seeded shuffles of the predictions across patients"
        result.systems.append(
            SystemResult(floor_name("shuffled", name, work.joined), True, floors.average(drawn), {}, note=note)
        )
    for score in result.systems[0].scores:
        textual = not score.name.startswith(("finding", "coded", "false", "contra", "omis", "lateral", _FOURTEEN))
        result.signatures[score.name] = (
            signature(score.signature, work.profile, 1, len(work.joined.ids))
            if textual
            else f"{score.signature}|graph:{_graph_hash(work)}|studies:{len(work.joined.ids)}"
        )
    _clinical_tables(work, result, readings)


def _ask_java(work: Work, shuffles: Sequence[np.ndarray]) -> None:
    """Has Java score every pair of systems, floors and shuffles in one run: most of its time is starting."""
    from vlm.evaluation.meteor_java import JavaMeteor

    work.java = JavaMeteor()
    predictions = [text for tokens in work.tokens.values() for text in tokens]
    if len(work.joined.ids) > 1:
        predictions += [
            work.tokens[name][i] for name in work.joined.systems for order in shuffles for i in order.tolist()
        ]
    work.java.ask(predictions, work.references * (len(predictions) // len(work.references)))


def _graph_hash(work: Work) -> str:
    return work.reader.graph.hash[:12] if work.reader is not None else "none"


def _read_all(work: Work) -> dict[str, dict[str, Readings]]:
    """Returns view -> name -> readings, the references under "reference"."""
    if work.reader is None:
        return {}
    views = [work.settings.view, *(_FOURTEEN,) * (_FOURTEEN in work.reader.graph.views)]
    views += [work.settings.coded_view] if work.coded is not None else []
    texts = {"reference": work.joined.references, **work.texts}
    return {
        view: {name: work.reader.read(lines, view) for name, lines in texts.items()} for view in dict.fromkeys(views)
    }


def _all_scores(
    work: Work,
    index: TextIndex,
    hypothesis: np.ndarray,
    name: str,
    readings: Mapping[str, Mapping[str, Readings]],
    order: np.ndarray | None = None,
) -> list[Score]:
    """Returns every score of one system, or of a shuffle of it."""
    scores = text_scores(index, hypothesis, work.settings.rouge_beta)
    if work.settings.meteor == "stem":
        from vlm.evaluation.meteor import meteor

        scores.insert(5, meteor(index, hypothesis))
    elif work.java is not None:
        from vlm.evaluation.meteor_java import meteor_java

        tokens = work.tokens[name] if order is None else [work.tokens[name][i] for i in order.tolist()]
        scores.insert(5, meteor_java(tokens, work.references, work.java))
    if work.reader is None:
        return scores
    from vlm.evaluation.clinical import agreement_scores, coded_scores, finding_scores

    def reading(view: str) -> Readings:
        found = readings[view][name]
        return found if order is None else found.take(order)

    view = work.settings.view
    scores += finding_scores(reading(view), readings[view]["reference"], view)
    if view != _FOURTEEN and _FOURTEEN in readings:
        mine, theirs = reading(_FOURTEEN).positive, readings[_FOURTEEN]["reference"].positive
        scores += agreement_scores(_FOURTEEN, mine, theirs, f"read:both|view:{_FOURTEEN}")
    if work.coded is not None:
        scores += coded_scores(reading(work.settings.coded_view), work.coded, work.settings.coded_view)
    return scores


def _clinical_tables(work: Work, result: Evaluation, readings: Mapping[str, Mapping[str, Readings]]) -> None:
    if work.reader is None:
        return
    from vlm.evaluation.clinical import coded_scores, label_table

    view, coded_view = work.settings.view, work.settings.coded_view
    for name in work.joined.systems:
        reference, mine = readings[view]["reference"], readings[view][name]
        result.tables[name] = {"finding": label_table(mine.labels, mine.positive, reference.positive)}
        if view != _FOURTEEN and _FOURTEEN in readings:
            mine, theirs = readings[_FOURTEEN][name], readings[_FOURTEEN]["reference"]
            result.tables[name][_FOURTEEN] = label_table(mine.labels, mine.positive, theirs.positive)
        if work.coded is not None:
            mine = readings[coded_view][name]
            result.tables[name]["coded"] = label_table(mine.labels, mine.positive, work.coded)
    if work.coded is not None:
        ceiling: dict[str, Any] = {
            s.name: s.value for s in coded_scores(readings[coded_view]["reference"], work.coded, coded_view)
        }
        result.ceiling = {name: ceiling[name] for name in ("coded_f1_micro", "coded_f1_macro")}


def _intervals(work: Work, result: Evaluation) -> dict[tuple[str, bool], np.ndarray]:
    """Adds intervals and the scores on new studies; returns what was drawn, for the comparisons."""
    settings = work.settings
    drawn: dict[tuple[str, bool], np.ndarray] = {}
    for system in result.systems:
        if result.is_new is not None and result.is_new.any():
            system.new = subset(system.scores, result.is_new)
    if not settings.resamples:
        return drawn
    for new in (False, True):
        scored = [(system, system.new or [] if new else system.scores) for system in result.systems]
        together = bootstrap([s for _, scores in scored for s in scores], settings.resamples, settings.seed)
        start = 0
        for system, scores in scored:
            if not scores:
                continue
            values = drawn[system.name, new] = together[:, start : start + len(scores)]
            start += len(scores)
            found = intervals(scores, settings.resamples, settings.seed, settings.level, values)
            if new:
                system.new_intervals = found
            else:
                system.intervals = found
    return drawn


def _compare_all(work: Work, result: Evaluation, drawn: Mapping[tuple[str, bool], np.ndarray]) -> None:
    """Compares systems in pairs and with their floors; p-values are corrected over the pairs of a metric."""
    settings, names = work.settings, list(work.joined.systems)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    for name in names:
        mine = [s.name for s in result.systems if s.floor and ("[" not in s.name or s.name.endswith(f"[{name}]"))]
        pairs += [(name, floor) for floor in mine]
    for new in (False, True):
        found = []
        for first, second in pairs:
            a, b = result.system(first), result.system(second)
            left, right = (a.new, b.new) if new else (a.scores, b.scores)
            if left is not None and right is not None:
                both = drawn[first, new], drawn[second, new]
                gaps = compare(left, right, settings.resamples, settings.seed, settings.level, both)
                found.append(Comparison(first, second, gaps, new))
        result.comparisons.extend(_corrected(found))


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    metrics = dict.fromkeys(metric for comparison in comparisons for metric in comparison.differences)
    for metric in metrics:
        holders = [c for c in comparisons if metric in c.differences]
        for holder, p in zip(holders, holm([c.differences[metric].p for c in holders]), strict=True):
            holder.differences[metric] = replace(holder.differences[metric], p_holm=p)
    return list(comparisons)
