"""Study -> Report: the path that every generated report takes.

    pipeline = Pipeline.load()                       # the shipped checkpoint
    for study, report in pipeline.reports(studies):  # in the order of the input
        ...

Studies are batched by image size; a study that cannot be read is yielded as a `FailedStudy`, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from vlm.adapter_folder import apply_adapter
from vlm.checkpoint import Checkpoint, load_checkpoint
from vlm.config import Generation
from vlm.data.batches import Collator, move
from vlm.data.examples import Example, ExampleBuilder
from vlm.generation.structuring import withhold
from vlm.models.detection import select_boxes
from vlm.seeing import Seer
from vlm.types import InputError, Report, Study, StudyBatch, StudyImage
from vlm.writing import GenerationSettings, Writer

__all__ = ["FailedStudy", "GenerationSettings", "Pipeline"]


@dataclass(frozen=True, slots=True)
class FailedStudy:
    """A study for which there is no report, and the one line that says why."""

    study_id: str
    message: str


class Pipeline:
    """A loaded checkpoint and all that turns its output into reports.

    Args:
        checkpoint: loaded, in evaluation mode.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        config = checkpoint.config
        self.builder = ExampleBuilder(
            config.data, checkpoint.labels, config.model.detection.labels, checkpoint.graph, checkpoint.tokenizer,
            view=config.model.knowledge.view,
            begin=config.model.language.frame == "prompt",
        )  # fmt: skip
        self.collate = Collator(self.builder)
        self.seer = Seer(checkpoint)
        self.writer = Writer(checkpoint, self.builder, self.seer)
        self.device = next(self.model.parameters()).device

    @classmethod
    def load(cls, folder: Path | None = None, adapter: Path | None = None) -> Pipeline:
        """Loads a checkpoint folder, by default the shipped one, and where asked for puts another adapter on it.

        Raises:
            InputError: a folder that is damaged, or an adapter that was made for another base.
        """
        checkpoint = load_checkpoint(folder)
        return cls(checkpoint if adapter is None else apply_adapter(checkpoint, adapter))

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
        settings = settings or GenerationSettings()
        generation = self.checkpoint.config.generation
        size = settings.batch_size or generation.batch_size
        stream = iter(studies)
        while window := list(islice(stream, 4 * size)):
            done: dict[int, Report | FailedStudy] = {}
            ready: dict[int, Example] = {}
            for index, study in enumerate(window):
                try:
                    bare = replace(study, report=None, findings=None, boxes=None)
                    ready[index] = self.builder.build(bare, settings.max_views)
                except InputError as error:
                    done[index] = FailedStudy(study.id, str(error))
            for batch in _by_size(ready, size):
                found = self._batch([window[i] for i in batch], [ready[i] for i in batch], settings, generation)
                done.update(zip(batch, found, strict=True))
            for index, study in enumerate(window):
                yield study, done[index]

    @torch.inference_mode()
    def lesion_score(self, image: StudyImage) -> float:
        """The score of the surest box on one image: what `--slices mls` ranks slices by.

        Raises:
            InputError: the image shows nothing, or the checkpoint has no detection head.
        """
        detection = self.checkpoint.config.model.detection
        if not detection.enabled:
            raise InputError("slices by lesion score need a checkpoint with a detection head; choose uniform or mip")
        example = self.builder.build(Study("slice", [image]))
        dense = self.model.encode(self.on_device(self.collate([example]))).dense
        assert dense is not None
        (found,) = select_boxes(dense, example.size, 0.0, detection.nms_iou)
        spoken = self.checkpoint.calibration.modalities.get(example.modality.value, self.checkpoint.labels)
        pairs = zip(found.scores.tolist(), found.classes.tolist(), strict=True)
        return max((score for score, kind in pairs if detection.labels[kind] in spoken), default=0.0)

    def on_device(self, batch: StudyBatch) -> StudyBatch:
        """The batch where the model is."""
        return move(batch, self.device)

    @torch.inference_mode()
    def _batch(
        self,
        studies: Sequence[Study],
        examples: Sequence[Example],
        settings: GenerationSettings,
        generation: Generation,
    ) -> list[Report]:
        batch = self.on_device(self.collate(examples))
        if settings.blank and batch.pixel_values is not None:
            batch.pixel_values = torch.full_like(batch.pixel_values, 0.5)
        image = self.model.encode(batch)
        seen = self.seer.see(image, batch, examples, settings.attention)
        constraints = [self.writer.constraints(s, settings, generation) for s in seen]
        sections, unmet = self.writer.write(image, batch, examples, seen, constraints, settings, generation)
        reports = [
            Report(
                study.id, text, self.writer.structurer.sentences(text, own.evidence), self.seer.findings(own, example),
                own.boxes, own.attention, missing,
            )
            for study, example, own, text, missing in zip(studies, examples, seen, sections, unmet, strict=True)
        ]  # fmt: skip
        least = settings.abstain
        return reports if least is None else [withhold(report, least) for report in reports]


def _by_size(examples: dict[int, Example], batch_size: int) -> Iterator[list[int]]:
    for size in sorted({e.size for e in examples.values()}):
        own = [i for i, e in examples.items() if e.size == size]
        for start in range(0, len(own), batch_size):
            yield own[start : start + batch_size]
