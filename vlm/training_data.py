"""The examples of a run: read, decoded once, kept; and image features computed once where the image half is frozen."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from vlm.config import Data, DataSet, Replay, Stage
from vlm.data.batches import Collator, bucketed, move
from vlm.data.blank import blank_study
from vlm.data.examples import Example, ExampleBuilder
from vlm.data.mirror import can_be_mirrored, mirrored
from vlm.data.phantoms.chest_ct import phantom_study
from vlm.data.phantoms.chest_xray import chest_xray_study
from vlm.data.phantoms.kidney_ct import kidney_study
from vlm.data.prepared import PreparedSet, is_prepared, is_url
from vlm.data.sources import read_studies
from vlm.data.streaming import StreamedExamples, choose
from vlm.models.report_generator import ReportGenerator
from vlm.types import CachedFeatures, InputError, Modality, Study, StudyBatch

console = Console(stderr=True)

MADE: dict[str, Callable[[int, int], Study]] = {
    "phantom": phantom_study, "phantom-kidney": kidney_study, "phantom-xray": chest_xray_study, "blank": blank_study,
}  # fmt: skip
"""Data sets that are made and not read: format -> (seed, index) -> study."""


def open_set(source: DataSet) -> tuple[str, int, Callable[[int], Study]]:
    """A data set's name, its number of studies, and what gives one of them.

    Raises:
        InputError: the set cannot be read.
    """
    make = MADE.get(source.format) if source.path is None else None
    if make is not None:
        return source.format, source.count or 100, partial(make, source.seed)
    found = read_studies(source.location(), source.format, slices=source.slices)
    kept = [s for s in found if source.split is None or s.split in source.split][: source.limit]
    if found and not kept:
        there = ", ".join(f"{name or 'without'} ({n})" for name, n in Counter(s.split for s in found).items())
        raise InputError(f"{source.location()}: has no study in split {', '.join(source.split or ())}; it has {there}")
    return source.location().name, len(kept), kept.__getitem__


def load_examples(source: DataSet, builder: ExampleBuilder, show: bool) -> Sequence[Example]:
    """Reads a data set; a study that cannot be read is left out and counted. A prepared set is streamed.

    Raises:
        InputError: the set cannot be read, or no study of it can.
    """
    where = source.location()
    if source.path is not None and source.format in ("auto", "prepared") and (is_url(where) or is_prepared(where)):
        if source.mirrored:
            raise InputError(f"{where}: a prepared set is streamed, and `mirrored` is of sets in memory; leave it out")
        studies = PreparedSet(where)
        return StreamedExamples(studies, builder, choose(studies, source.split, source.limit))
    name, count, study_at = open_set(source)
    examples: list[Example] = []
    failures: list[str] = []
    for index in track(range(count), description=f"reading {name}", console=console, disable=not show, transient=True):
        try:
            study = study_at(index)
            examples.append(builder.build(study))
            if source.mirrored and can_be_mirrored(study):
                examples.append(builder.build(mirrored(study)))
        except InputError as error:
            failures.append(str(error))
    if failures and show:
        console.print(
            f"{name}: {len(failures)} of {count} studies were left out; the first: {failures[0]}", markup=False
        )
    if not examples:
        raise InputError(
            f"{source.location()}: no study could be read"
            + (f"; the first: {failures[0]}" if failures else " in this split")
        )
    return examples


def tell_apart(sets: Sequence[tuple[DataSet, Sequence[Example]]]) -> list[tuple[DataSet, Sequence[Example]]]:
    """Gives studies of other sets that share an id names of their own: what is kept by id must not be mixed up.

    Two parts of one data set (its splits) share studies and keep their names.
    """
    owner: dict[str, str] = {}
    out: list[tuple[DataSet, Sequence[Example]]] = []
    for source, examples in sets:
        home = f"{source.format} {source.seed}" if source.path is None else str(source.path)
        names = examples.ids() if isinstance(examples, StreamedExamples) else [e.id for e in examples]
        if any(owner.get(name, home) != home for name in names):
            prefix = f"{source.location().name if source.path else home}:"
            if isinstance(examples, StreamedExamples):
                examples = examples.renamed(prefix.__add__)
            else:
                examples = [replace(e, id=prefix + e.id) for e in examples]
            names = [prefix + name for name in names]
        owner.update(dict.fromkeys(names, home))
        out.append((source, examples))
    return out


def usable(examples: Sequence[Example], losses: Sequence[str]) -> Sequence[Example]:
    """The examples that a stage with these losses learns from."""
    if not set(losses) <= {"report", "reward"}:
        return examples
    return (
        examples.with_reports()
        if isinstance(examples, StreamedExamples)
        else [e for e in examples if len(e.report_ids)]
    )


def chosen_sets(
    stage: Stage, sets: Sequence[tuple[DataSet, Sequence[Example]]]
) -> list[tuple[DataSet, Sequence[Example]]]:
    """What a stage learns from."""
    return [
        (source, usable(examples, stage.losses))
        for index, (source, examples) in enumerate(sets)
        if stage.sets is None or index in stage.sets
    ]


@dataclass(slots=True)
class RunSets:
    """The examples of a run, with ids that are not mixed up.

    Args:
        train: sets to learn from. validation: studies to choose by.
        replay: old sets, of which every batch holds a share. old: old studies to measure forgetting on.
    """

    train: list[tuple[DataSet, Sequence[Example]]]
    validation: list[Example]
    replay: list[tuple[DataSet, Sequence[Example]]]
    old: list[Example]

    @classmethod
    def of(cls, data: Data, load: Callable[[DataSet], Sequence[Example]]) -> RunSets:
        """Loads what a configuration names.

        Raises:
            InputError: no training set is named, or one cannot be read.
        """
        replay = data.replay.sets if data.replay is not None else ()
        old = data.replay.validation if data.replay is not None else ()
        named = (data.train, data.validation, replay, old)
        sets = tell_apart([(source, load(source)) for part in named for source in part])
        parts, start = [], 0
        for part in named:
            parts.append(sets[start : start + len(part)])
            start += len(part)
        if not parts[0]:
            raise InputError("data.train: names no data set")
        flat = [[e for _, examples in part for e in examples] for part in (parts[1], parts[3])]
        return cls(parts[0], flat[0], parts[2], flat[1])

    def replayed(self, stage: Stage, replay: Replay | None) -> list[tuple[DataSet, Sequence[Example]]]:
        """Old sets of which a stage's batches hold a share; none where it replays nothing.

        Raises:
            InputError: it should, and no old study has what its losses need.
        """
        if replay is None or not replay.concerns(stage.name):
            return []
        kept = [(source, usable(examples, stage.losses)) for source, examples in self.replay]
        if not any(len(examples) for _, examples in kept):
            raise InputError(
                f"data.replay.sets: no study has what the losses of stage {stage.name!r} ({', '.join(stage.losses)}) "
                "need; name other sets, or the stages that replay in data.replay.stages"
            )
        return [(source, examples) for source, examples in kept if len(examples)]


def check_losses(
    number: int,
    stage: Stage,
    sets: Sequence[tuple[DataSet, Sequence[Example]]],
    detects: bool,
    replay: Replay | None = None,
) -> None:
    """Every loss that a stage names must have something to learn from, and a batch must be possible.

    Args:
        number: of the stage, from 0. sets: of the run. detects: whether the model has a detection head.
        replay: of which its batches hold a share; None for none.

    Raises:
        InputError: naming the loss or the key.
    """
    key, sets = f"training.stages.{stage.name}", chosen_sets(stage, sets)
    studies = [examples for _, examples in sets if len(examples)]
    if not studies:
        raise InputError(f"{key}: no study has what its losses ({', '.join(stage.losses)}) need")
    named = set(stage.losses)
    if named & {"report", "reward"} and not any(len(usable(e, ("report",))) for e in studies):
        lost = "report" if "report" in named else "reward"
        raise InputError(f"{key}.losses: {lost!r} has nothing to learn from: no study has a report; leave it out")
    if "findings" in named and not any((~np.isnan(t)).any() for e in studies for _, t in known_of(e)):
        raise InputError(
            f"{key}.losses: 'findings' has nothing to learn from: every label of every study is unknown; "
            "give findings or reports, or leave it out"
        )
    if "detection" in named and not detects:
        raise InputError(f"{key}.losses: 'detection' needs the model's detection head, which it is built without")
    looked = (isinstance(e, StreamedExamples) or any(x.box_known.any() for x in e) for e in studies)
    if "detection" in named and not any(looked):
        raise InputError(
            f"{key}.losses: 'detection' has nothing to learn from: in no study did anybody look for what it detects; "
            "give boxes, or leave it out"
        )
    count = round(sum(source.weight * len(examples) for source, examples in sets))
    most = max(1, count)
    if replay is not None:
        most = max(
            size for size in range(2, 2 * stage.batch_size + 3) if size == 2 or size - replay.of_batch(size) <= count
        )
    if stage.batch_size > most:
        beside = "" if replay is None else f" beside the {replay.of_batch(stage.batch_size)} old ones of a batch"
        raise InputError(
            f"{key}.batch_size: {stage.batch_size}, but an epoch has only {count} studies to learn from{beside}; "
            f"--set training.stages.{number}.batch_size={most}"
        )


def known_of(examples: Sequence[Example]) -> Iterator[tuple[Modality, np.ndarray]]:
    """Modality and finding targets (F,) of the examples."""
    if isinstance(examples, StreamedExamples):
        yield from examples.known()
    else:
        yield from ((e.modality, e.finding_targets) for e in examples)


def labels_kept(
    now: Mapping[str, list[str]], before: Mapping[str, list[str]], labels: Sequence[str]
) -> dict[str, list[str]]:
    """The labels of each modality that a continued run speaks of: what its data taught, and what the checkpoint that it
    started from had learnt.

    Args:
        now, before: modality -> labels. labels: the label list, which gives the order.
    """
    joined = {name: {*now.get(name, ()), *before.get(name, ())} for name in {**before, **now}}
    return {name: [label for label in labels if label in own] for name, own in joined.items()}


def labels_by_modality(
    known: Iterable[tuple[Modality, np.ndarray]], labels: Sequence[str], least: int = 5
) -> dict[str, list[str]]:
    """The labels that a model can have learnt in each modality: those with present and with absent examples.

    Args:
        known: modality and targets (F,) of each training study. labels: the label list. least: examples of either kind.
    """
    counts: dict[str, np.ndarray] = {}
    for modality, targets in known:
        own = counts.setdefault(modality.value, np.zeros((2, len(labels)), int))
        own += np.stack([targets == 1, targets == 0])
    return {
        name: [label for label, enough in zip(labels, np.all(own >= least, axis=0).tolist(), strict=True) if enough]
        for name, own in counts.items()
    }


class FrozenMaps:
    """The vision model's maps by study, computed once while nothing of it learns and no image is varied.

    Maps are kept in the type that autocast gave them, so a step with kept maps equals one that computes them, but for
    how sums over a batch of another size round. Several runs may share one: another vision model empties it.

    Args:
        dtype: of autocast, or None. most_bytes: maps beyond this are computed each time.
    """

    def __init__(self, dtype: torch.dtype | None, most_bytes: int = 6 * 2**30) -> None:
        self.dtype, self.most_bytes = dtype, most_bytes
        self.store: dict[str, tuple[Tensor, ...]] = {}
        self.bytes = 0
        self.seconds = 0.0  # spent on computing maps, on all cores
        self.owner = ""

    def serve(self, vision: nn.Module) -> None:
        """Empties the store when it was filled by a vision model with other weights."""
        digest = hashlib.sha256(str(vision).encode())
        for value in vision.state_dict().values():
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        if digest.hexdigest() != self.owner:
            self.owner, self.store, self.bytes = digest.hexdigest(), {}, 0

    @torch.no_grad()
    def attach(self, model: ReportGenerator, batch: StudyBatch) -> StudyBatch:
        """The batch with the maps of its images, in their order; what is missing is computed and kept."""
        assert batch.pixel_values is not None
        if any(study not in self.store for study in batch.ids):
            begun = time.process_time()
            kind = batch.pixel_values.device.type
            with torch.autocast(kind, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                maps = tuple(model.vision(batch.pixel_values))
            for row, study in enumerate(batch.ids):
                own = tuple(m[batch.image_study == row].cpu().clone() for m in maps)
                size = sum(m.numel() * m.element_size() for m in own)
                if study not in self.store and self.bytes + size <= self.most_bytes:
                    self.store[study] = own
                    self.bytes += size
            self.seconds += time.process_time() - begun
            return replace(batch, maps=maps)
        rows = [self.store[study] for study in batch.ids]
        device = batch.pixel_values.device
        return replace(batch, maps=tuple(torch.cat(m).to(device) for m in zip(*rows, strict=True)))


class Shared:
    """What runs in one process may share: examples that were read, and maps of a frozen vision model.

    `seconds` of all cores went into both; they are no part of a run's own time.
    """

    def __init__(self) -> None:
        self.examples: dict[str, Sequence[Example]] = {}
        self.maps: dict[torch.dtype | None, FrozenMaps] = {}
        self.reading = 0.0

    @property
    def seconds(self) -> float:
        """Spent so far, on all cores."""
        return self.reading + sum(m.seconds for m in self.maps.values())

    def load(self, source: DataSet, builder: ExampleBuilder, show: bool) -> Sequence[Example]:
        """A data set's examples, read once for builders that make the same of it (raises as `load_examples`)."""
        begun = time.process_time()
        facts = [
            source.model_dump_json(), builder.config.model_dump_json(exclude={"train", "validation", "replay"}),
            builder.labels, builder.box_labels, builder.graph.hash, builder.view, builder.concept_weight, builder.begin,
            sorted(builder.tokenizer.get_vocab().items()),
        ]  # fmt: skip
        key = hashlib.sha256(repr(facts).encode()).hexdigest()
        if key not in self.examples:
            self.examples[key] = load_examples(source, builder, show)
        self.reading += time.process_time() - begun
        return self.examples[key]

    def maps_of(self, dtype: torch.dtype | None, vision: nn.Module) -> FrozenMaps:
        """The maps of a vision model under one autocast type."""
        maps = self.maps.setdefault(dtype, FrozenMaps(dtype))
        maps.serve(vision)
        return maps


class FeatureCache:
    """Image features by study, of `copies` variations of each image, computed by a frozen image half.

    With one copy the cache is exact: the images are not varied. With more, each epoch takes another variation of a
    study, so that the language half sees features that the image half did not fit itself to in just this form.

    Args:
        copies: variations of each study. seed: of the variations. dtype: of autocast, or None.
        maps: the vision model's own maps, where they are kept and no image is varied.
    """

    def __init__(self, copies: int, seed: int, dtype: torch.dtype | None, maps: FrozenMaps | None = None) -> None:
        self.copies, self.seed, self.dtype, self.maps = copies, seed, dtype, maps
        self.store: dict[str, list[CachedFeatures]] = {}

    def fill(self, model: ReportGenerator, collate: Collator, examples: Sequence[Example]) -> None:
        """Adds what is missing of training studies, `copies` variations of each."""
        missing = [e for e in examples if e.id not in self.store]
        for copy in range(self.copies if missing else 0):
            rng = np.random.default_rng([self.seed, copy])
            self._add(model, Collator(collate.builder, True, 0.0, rng) if self.copies > 1 else collate, missing)

    def fill_plain(self, model: ReportGenerator, collate: Collator, examples: Sequence[Example]) -> None:
        """Adds what is missing of validation studies, as they are."""
        self._add(model, collate, [e for e in examples if e.id not in self.store])

    @torch.no_grad()
    def _add(self, model: ReportGenerator, collate: Collator, examples: Sequence[Example]) -> None:
        """Adds one variation of each study."""
        unique = list({e.id: e for e in examples}.values())
        device = next(model.parameters()).device
        model.eval()
        batches = list(bucketed(unique, 16, None))
        for indices in track(batches, description="image features", console=console, transient=True):
            batch = move(collate([unique[i] for i in indices]), device)
            if self.maps is not None and not collate.augment_images:
                batch = self.maps.attach(model, batch)
            with torch.autocast(device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                found = model.features(model.encode(batch, detect=False))
            for row, study in enumerate(batch.ids):
                pooled = found.pooled[batch.image_study == row].float().cpu()
                own = CachedFeatures(pooled, found.tokens[row].float().cpu(), found.logits[row].float().cpu())
                self.store.setdefault(study, []).append(own)

    def attach(self, batch: StudyBatch, epoch: int) -> StudyBatch:
        """The batch with the features of its studies in place of pixels."""
        rows = [self.store[study][epoch % len(self.store[study])] for study in batch.ids]
        pooled = torch.cat([r.pooled for r in rows])
        tokens, logits = torch.stack([r.tokens for r in rows]), torch.stack([r.logits for r in rows])
        return replace(batch, pixel_values=None, cached=CachedFeatures(pooled, tokens, logits))
