"""Study -> Report: the path that every generated report takes.

    pipeline = Pipeline.load()                       # the shipped checkpoint
    for study, report in pipeline.reports(studies):  # in the order of the input
        ...

Each study's images are looked at alone; its texts are written together with those of studies like it. A study that
cannot be read is yielded as a `FailedStudy`, and the rest goes on. Several checkpoints see and write together
(`vlm.ensemble`); one is an ensemble of itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from vlm.checkpoint import Checkpoint
from vlm.data.batches import move
from vlm.data.examples import Example
from vlm.ensemble import Member, check_members, join_seen, joined, load_members
from vlm.explaining import Explainer
from vlm.generation.structuring import withhold
from vlm.request import GenerationSettings
from vlm.types import InputError, Report, Study, StudyBatch, StudyImage
from vlm.writing import Draft, Writer

__all__ = ["FailedStudy", "GenerationSettings", "Pipeline"]


@dataclass(frozen=True, slots=True)
class FailedStudy:
    """A study for which there is no report, and the one line that says why."""

    study_id: str
    message: str


class Pipeline:
    """Loaded checkpoints and all that turns their output into reports.

    Args:
        checkpoints: one, or the members of an ensemble; loaded, in evaluation mode.
        names: what messages call them.

    Raises:
        InputError: members that can't write together.
    """

    def __init__(self, *checkpoints: Checkpoint, names: Sequence[str] | None = None) -> None:
        check_members(checkpoints, names or [f"member {number}" for number in range(1, len(checkpoints) + 1)])
        self.members = [Member(checkpoint) for checkpoint in checkpoints]
        first = self.members[0]
        self.checkpoint = joined(checkpoints)
        self.model, self.builder, self.collate = first.model, first.builder, first.collate
        self.seer, self.device = first.seer, first.device
        others = [(m.model, m.builder) for m in self.members[1:]]
        self.writer = Writer(self.checkpoint, self.builder, self.seer, others)

    @classmethod
    def load(
        cls, folder: Path | Sequence[Path] | None = None, adapter: Path | Sequence[Path] | None = None
    ) -> Pipeline:
        """Loads a checkpoint folder, by default the shipped one, and where asked for puts another adapter on it; on a
        GPU if there is one. Of several folders or adapters an ensemble is made (`ensemble.load_members`).

        Raises:
            InputError: a folder that is damaged, an adapter that was made for another base, or members that can't write
                together.
        """
        checkpoints, names = load_members(_listed(folder), _listed(adapter))
        if torch.cuda.is_available():
            # Of several processes each has a GPU of its own.
            number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
            for checkpoint in checkpoints:
                checkpoint.model.to(torch.device("cuda", number))
        return cls(*checkpoints, names=names)

    @cached_property
    def explainer(self) -> Explainer:
        """Made when first asked for: it encodes the graph without each edge in turn. Of an ensemble the first member is
        explained: changes of one model's log odds are no share of a mean of probabilities."""
        return Explainer(self.members[0].checkpoint)

    def reports(
        self, studies: Iterable[Study], settings: GenerationSettings | None = None
    ) -> Iterator[tuple[Study, Report | FailedStudy]]:
        """Reports in the order of the input.

        Args:
            studies: any number; they are taken in as many at a time as a few batches hold.
            settings: what the user asks for.

        Yields:
            Each study with its report, or with the reason why there is none.
        """
        early: dict[int, tuple[Study, Report | FailedStudy]] = {}
        turn = 0
        for index, study, result in self.stream(studies, settings):
            early[index] = (study, result)
            while turn in early:
                yield early.pop(turn)
                turn += 1

    def stream(
        self, studies: Iterable[Study], settings: GenerationSettings | None = None
    ) -> Iterator[tuple[int, Study, Report | FailedStudy]]:
        """Reports as they are finished, each with its study's place in the input (arguments as in `reports`).

        Drafts of one kind and of like length are written together; a study's report is the same whatever it is written
        with.
        """
        settings = settings or GenerationSettings()
        if settings.explain:
            _ = self.explainer  # made here: studies are looked at by several threads
        size = settings.batch_size or self.checkpoint.config.generation.batch_size
        incoming = enumerate(studies)
        waiting: list[Draft] = []
        taken: dict[int, Study] = {}
        written: dict[int, list[Draft]] = {}
        while True:
            if len(waiting) < size:
                for index, study, looked in self._look(list(islice(incoming, 4 * size - len(waiting))), settings):
                    if isinstance(looked, FailedStudy):
                        yield index, study, looked
                    else:
                        taken[index] = study
                        waiting.append(looked)
            if not waiting:
                return
            batch = _next_batch(waiting, size)
            for draft, grown in zip(batch, self.writer.write(batch, settings), strict=True):
                own = written.setdefault(draft.index, [])
                own[:] = [d for d in own if d is not draft] + grown
                waiting += [d for d in grown if not self.writer.done(d)]
                if all(self.writer.done(d) for d in own):
                    del written[draft.index]
                    study = taken.pop(draft.index)
                    yield draft.index, study, self._report(study, own, settings)

    def _look(
        self, studies: Sequence[tuple[int, Study]], settings: GenerationSettings
    ) -> Iterator[tuple[int, Study, Draft | FailedStudy]]:
        """The image half, each study by itself: a batch would only make rounding depend on its neighbours.

        On the CPU as many studies are looked at at a time as there are threads, each by one thread: that is faster than
        several threads for one study, and the result does not depend on their number.
        """
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or len(studies) < 2:
            for index, study in studies:
                yield index, study, self._draft(index, study, settings)
            return

        def alone(entry: tuple[int, Study]) -> tuple[int, Study, Draft | FailedStudy]:
            torch.set_num_threads(1)  # of this worker
            return (*entry, self._draft(*entry, settings))

        try:
            with ThreadPoolExecutor(threads) as pool:
                yield from pool.map(alone, studies)
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def _draft(self, index: int, study: Study, settings: GenerationSettings) -> Draft | FailedStudy:
        try:
            bare = replace(study, report=None, findings=None, boxes=None)
            views = settings.max_views or self.checkpoint.config.data.max_views
            examples: dict[str, Example] = {}
            found = []
            for member in self.members:
                if member.reading not in examples:
                    examples[member.reading] = member.builder.build(bare, views)
                found.append(member.look(study, examples[member.reading], settings))
            looks, seen = [look for look, _ in found], [seen for _, seen in found]
            whole = seen[0] if len(seen) == 1 else join_seen(seen, self.checkpoint.labels)
            first = looks[0]
            if settings.explain:
                whole.explanation = self._explained(self.explainer.explain(first.image, first.example, whole))
            others = tuple(looks[1:])
            return self.writer.draft(index, first.example, whole, first.image, first.batch, settings, others)
        except InputError as error:
            return FailedStudy(study.id, str(error))

    def _explained(self, found: dict[str, Any] | None) -> dict[str, Any] | None:
        """An explanation that says whose it is."""
        if found is None or len(self.members) == 1:
            return found
        return found | {"measure": f"{found['measure']}; of the first of {len(self.members)} members alone"}

    def _report(self, study: Study, drafts: Sequence[Draft], settings: GenerationSettings) -> Report:
        """The finished report, its alternatives within it."""
        reports = []
        for draft in sorted(drafts, key=lambda d: d.rank):
            seen = draft.seen
            report = Report(
                study.id, draft.written, self.writer.structurer.sentences(draft.written, seen.evidence),
                self.seer.findings(seen, draft.example), seen.boxes, seen.attention, draft.unmet,
                trace={"steps": draft.trace} if settings.traced else None, explanation=seen.explanation,
            )  # fmt: skip
            reports.append(report if settings.abstain is None else withhold(report, settings.abstain))
        return replace(reports[0], alternatives=tuple(reports[1:]))

    @torch.inference_mode()
    def lesion_score(self, image: StudyImage) -> float:
        """The score of the surest box on one image, of an ensemble the members' mean: what `--slices mls` ranks slices
        by.

        Raises:
            InputError: the image shows nothing, or the checkpoint has no detection head.
        """
        if not self.checkpoint.config.model.detection.enabled:
            raise InputError("slices by lesion score need a checkpoint with a detection head; choose uniform or mip")
        return fmean(member.lesion_score(image) for member in self.members)

    def on_device(self, batch: StudyBatch) -> StudyBatch:
        """The batch where the model is."""
        return move(batch, self.device)


def _next_batch(waiting: list[Draft], size: int) -> list[Draft]:
    """Takes the oldest draft and those most like it in length, of one kind, off the list."""
    oldest = min(waiting, key=lambda d: (d.index, d.rank))
    alike = [d for d in waiting if d.kind == oldest.kind]
    batch = sorted(alike, key=lambda d: (abs(_length(d) - _length(oldest)), d.index, d.rank))[:size]
    chosen = {id(d) for d in batch}
    waiting[:] = [d for d in waiting if id(d) not in chosen]
    return batch


def _length(draft: Draft) -> int:
    """Rough length of a prompt: characters of its texts, and many for each view."""
    texts = [*draft.example.clinical.values(), *draft.written.values()]
    return sum(map(len, texts)) + 64 * len(draft.example.pixels)


def _listed(value: Path | Sequence[Path] | None) -> list[Path]:
    if value is None:
        return []
    return [value] if isinstance(value, Path) else list(value)
