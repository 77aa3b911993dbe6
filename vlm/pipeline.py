"""Study -> Report: the path that every generated report takes.

    pipeline = Pipeline.load()                       # the shipped checkpoint
    for study, report in pipeline.reports(studies):  # in the order of the input
        ...

Studies are batched by image size; a study that cannot be read is yielded as a `FailedStudy`, and the rest goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from knowledge.ontology import Certainty
from vlm.checkpoint import Checkpoint, load_checkpoint
from vlm.config import Generation
from vlm.data.batches import Collator, move, pad
from vlm.data.examples import HEADINGS, VIEWS, Example, ExampleBuilder
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.checking import unmet_in
from vlm.generation.compiling import CompiledConstraints, compile_constraints
from vlm.generation.consistency import rerank
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.sampling import sample
from vlm.generation.steering import NEUTRAL, Threshold, steer, term_automaton
from vlm.generation.structuring import Evidence, Structurer
from vlm.generation.wording import wording_of
from vlm.models.detection import select_boxes
from vlm.models.language import UNWRITTEN
from vlm.models.report_generator import ImageOutput
from vlm.types import Box, Finding, InputError, Report, Study, StudyBatch, View


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What the user asks of a run, beside the checkpoint's own `generation` section.

    Args:
        must, must_not: terms that every report must hold, and must not assert.
        steer: let the findings' probabilities constrain the text. blank: replace every image by a grey one (to test
            that it matters).
        attention: keep attention maps for heat maps.
        num_beams, batch_size: override the checkpoint's.
    """

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    steer: bool = True
    blank: bool = False
    attention: bool = True
    num_beams: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class FailedStudy:
    """A study for which there is no report, and the one line that says why."""

    study_id: str
    message: str


@dataclass(slots=True)
class _Seen:
    """What the image half says of one study, in plain values."""

    evidence: Evidence
    boxes: tuple[Box, ...]
    attention: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Written:
    """A candidate text: what was written, its search score, and the constraints that it does not hold."""

    text: str
    score: float
    unmet: tuple[str, ...] = ()


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
        )  # fmt: skip
        self.collate = Collator(self.builder)
        self.wording = wording_of(checkpoint.graph, config.model.knowledge.view)
        self.automaton = term_automaton(self.wording)
        self.structurer = Structurer(checkpoint.graph, self.builder.reader, config.model.knowledge.view)
        self.thresholds = self._thresholds()
        self.least = self._least_confidence()
        self.device = next(self.model.parameters()).device
        tokenizer = checkpoint.tokenizer
        self.break_id = _break_id(tokenizer)
        mark = tokenizer.convert_tokens_to_ids(UNWRITTEN)
        self.suppressed = (mark,) if isinstance(mark, int) and mark != tokenizer.unk_token_id else ()

    def _thresholds(self) -> dict[str, Threshold]:
        """The checkpoint's cuts; a label without cuts of its own is neither demanded nor forbidden."""
        calibration = self.checkpoint.calibration
        cuts = {}
        for name in self.checkpoint.labels:
            upper = calibration.upper.get(name, 1.01)
            cuts[name] = Threshold(min(calibration.lower.get(name, NEUTRAL.lower), upper - 1e-6), upper)
        return cuts

    def _least_confidence(self) -> float:
        """Confidence from which a box is evidence: the calibrated value of the best threshold on validation."""
        calibration = self.checkpoint.calibration
        if calibration.box_threshold is None:
            return 0.5
        slope, offset = calibration.boxes
        return float((torch.logit(torch.tensor(calibration.box_threshold), eps=1e-4) * slope + offset).sigmoid())

    @classmethod
    def load(cls, folder: Path | None = None) -> Pipeline:
        """Loads a checkpoint folder, by default the shipped one (raises `InputError` when it is damaged)."""
        return cls(load_checkpoint(folder))

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
                    ready[index] = self.builder.build(replace(study, report=None, findings=None, boxes=None))
                except InputError as error:
                    done[index] = FailedStudy(study.id, str(error))
            for batch in _by_size(ready, size):
                found = self._batch([window[i] for i in batch], [ready[i] for i in batch], settings, generation)
                done.update(zip(batch, found, strict=True))
            for index, study in enumerate(window):
                yield study, done[index]

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
        seen = self._see(image, batch, examples, settings.attention)
        constraints = [self._constraints(s, settings, generation) for s in seen]
        sections, unmet = self._write(image, batch, examples, seen, constraints, settings, generation)
        return [
            Report(
                study.id, text, self.structurer.sentences(text, own.evidence), self._findings(own, example), own.boxes,
                own.attention, missing,
            )
            for study, example, own, text, missing in zip(studies, examples, seen, sections, unmet, strict=True)
        ]  # fmt: skip

    def _see(self, image: ImageOutput, batch: StudyBatch, examples: Sequence[Example], attention: bool) -> list[_Seen]:
        """Calibrated probabilities, boxes in the image's own pixels, attention maps by view."""
        labels, calibration = self.checkpoint.labels, self.checkpoint.calibration
        platt = torch.tensor([calibration.findings.get(name, (1.0, 0.0)) for name in labels], device=self.device)
        probability = (image.logits.float() * platt[:, 0] + platt[:, 1]).sigmoid()
        boxes = self._boxes(image, batch, examples)
        out = []
        h, w = image.map_size
        for row, example in enumerate(examples):
            maps = {}
            if attention and image.evidence is not None:
                views = len(example.pixels)
                full = image.evidence.attention[row, :, : views * h * w].float().cpu().numpy()
                maps = {name: full[i].reshape(views, h, w) for i, name in enumerate(labels)}
            widths = {i: p.width for i, p in zip(example.chosen, example.placements, strict=True)}
            spoken = calibration.modalities.get(example.modality.value, labels)
            evidence = Evidence(
                {name: p for name, p in zip(labels, probability[row].tolist(), strict=True) if name in spoken},
                boxes[row],
                [widths.get(i, 0) for i in range(max(widths) + 1)],
                self.thresholds,
                self.least,
            )
            maps = {name: value for name, value in maps.items() if name in spoken}
            out.append(_Seen(evidence, boxes[row], maps))
        return out

    def _boxes(self, image: ImageOutput, batch: StudyBatch, examples: Sequence[Example]) -> list[tuple[Box, ...]]:
        if image.dense is None:
            return [()] * len(examples)
        detection = self.checkpoint.config.model.detection
        slope, offset = self.checkpoint.calibration.boxes
        found: list[list[Box]] = [[] for _ in examples]
        selected = select_boxes(image.dense, examples[0].size, detection.score_threshold, detection.nms_iou)
        places = zip(selected, batch.image_study.tolist(), batch.image_slot.tolist(), strict=True)
        for detections, study, slot in places:
            example = examples[study]
            xyxy = example.placements[slot].to_image(detections.boxes_xyxy.cpu().numpy())
            confidence = (torch.logit(detections.scores, eps=1e-4) * slope + offset).sigmoid().tolist()
            for box, score, kind in zip(xyxy.tolist(), confidence, detections.classes.tolist(), strict=True):
                spoken = self.checkpoint.calibration.modalities.get(example.modality.value, self.checkpoint.labels)
                if box[2] > box[0] and box[3] > box[1] and detection.labels[kind] in spoken:
                    rounded = (round(box[0], 1), round(box[1], 1), round(box[2], 1), round(box[3], 1))
                    found[study].append(Box(rounded, detection.labels[kind], example.chosen[slot], round(score, 4)))
        return [tuple(sorted(b, key=lambda x: -(x.confidence or 0))) for b in found]

    def _constraints(self, seen: _Seen, settings: GenerationSettings, generation: Generation) -> Constraints:
        """The findings' own constraints and the user's."""
        base = Constraints(repeat_sentences=False, negation=self.wording.negation)
        if settings.steer:
            # A box says as much as a finding: the more certain of the two counts.
            boxed: dict[str, float] = {}
            for box in seen.boxes:
                if (box.confidence or 0.0) >= self.least:
                    boxed[box.label] = max(boxed.get(box.label, 0.0), box.confidence or 0.0)
            probabilities = {n: max(p, boxed.get(n, 0.0)) for n, p in seen.evidence.probabilities.items()}
            base = steer(probabilities, self.wording, self.thresholds, generation.softness, generation.max_must)
        must = tuple(TermSet(f"--must {t}", (t,)) for t in settings.must)
        never = tuple(TermSet(f"--must-not {t}", (t,)) for t in settings.must_not)
        return replace(base, must_appear=base.must_appear + must, must_not_assert=base.must_not_assert + never)

    def _write(
        self,
        image: ImageOutput,
        batch: StudyBatch,
        examples: Sequence[Example],
        seen: Sequence[_Seen],
        constraints: Sequence[Constraints],
        settings: GenerationSettings,
        generation: Generation,
    ) -> tuple[list[dict[str, str]], list[tuple[str, ...]]]:
        """Writes section after section, each after those before it; what must appear binds the first."""
        texts: list[dict[str, str]] = [{} for _ in examples]
        unmet: list[tuple[str, ...]] = [()] * len(examples)
        for number, section in enumerate(self.checkpoint.config.data.report_sections):
            prompts = [self._prompt(e, texts[i], section, seen[i]) for i, e in enumerate(examples)]
            ids, mask = pad(prompts, self.checkpoint.tokenizer.pad_token_id, left=True)
            prefix, prefix_mask = self.model.prefix(
                image, replace(batch, prompt_ids=ids.to(self.device), prompt_mask=mask.to(self.device))
            )
            own = list(constraints) if number == 0 else [replace(c, must_appear=()) for c in constraints]
            answers = self._search(prefix, prefix_mask, own, settings, generation)
            pools = (
                self._sample(prefix, prefix_mask, own, examples, generation) if number == 0 else [()] * len(examples)
            )
            for row, candidates in enumerate(answers):
                best = self._best(candidates, pools[row], seen[row], generation) if number == 0 else candidates[0]
                texts[row][section] = best.text
                unmet[row] += best.unmet
        return texts, unmet

    def _best(
        self, candidates: Sequence[_Written], pool: Sequence[_Written], seen: _Seen, generation: Generation
    ) -> _Written:
        """The candidate to keep, beam or sample, of those that hold as many constraints as the best beam."""
        fewest = len(candidates[0].unmet)
        alike = [c for c in (*candidates, *pool) if len(c.unmet) <= fewest and c.text]
        if len(alike) < 2:
            return candidates[0]
        order = rerank(
            [c.text for c in alike], [c.score for c in alike], self.structurer, seen.evidence,
            generation.consistency, generation.consensus, [c.text for c in pool],
        )  # fmt: skip
        return alike[order[0]]

    def _sample(
        self,
        prefix: Tensor,
        mask: Tensor,
        constraints: Sequence[Constraints],
        examples: Sequence[Example],
        generation: Generation,
    ) -> list[list[_Written]]:
        """Draws from the language model, for consensus; each with the constraints that it does not hold."""
        if not generation.samples:
            return [[] for _ in examples]
        settings = replace(self._beams(generation.samples, generation), min_new_tokens=1)
        seeds = [int.from_bytes(hashlib.sha256(e.id.encode()).digest()[:4], "big") for e in examples]
        drawn = sample(
            self.model.language.model, settings, seeds, inputs_embeds=prefix, attention_mask=mask.long(),
            temperature=generation.temperature, top_p=generation.top_p,
        )  # fmt: skip
        out = []
        for row, own in zip(drawn, constraints, strict=True):
            compiled = self._compile(own, generation.max_new_tokens)
            texts = [(self._text(c.tokens), c.score) for c in row]
            out.append([_Written(text, score, unmet_in(compiled, text)) for text, score in texts if text])
        return out

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.checkpoint.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _beams(self, width: int, generation: Generation) -> BeamSettings:
        tokenizer = self.checkpoint.tokenizer
        return BeamSettings(
            num_beams=width,
            max_new_tokens=generation.max_new_tokens,
            length_penalty=generation.length_penalty,
            no_repeat_ngram_size=generation.no_repeat_ngram_size,
            eos_token_ids=(tokenizer.eos_token_id, self.break_id),
            pad_token_id=tokenizer.pad_token_id,
            suppress_token_ids=self.suppressed,
        )

    def _prompt(self, example: Example, written: dict[str, str], section: str, seen: _Seen) -> list[int]:
        first = next(iter(written), section)
        cuts = self.checkpoint.calibration.seen
        named = [name for name, p in seen.evidence.probabilities.items() if p >= cuts.get(name, 0.5)]
        named += [name for name in self.checkpoint.labels if name not in named and seen.evidence.boxes_of(name)]
        ids = self.builder.prompt_ids(self.builder.prompt(example.modality, example.clinical, first, named))
        if not written:
            return ids
        body = ""
        for number, (name, text) in enumerate(written.items()):
            body += f" {text}" if number == 0 else f"\n{HEADINGS[name]} {text}"
        tail = self.checkpoint.tokenizer(f"{body}\n{HEADINGS[section]}", add_special_tokens=False)["input_ids"]
        return ids + tail

    def _search(
        self,
        prefix: Tensor,
        mask: Tensor,
        constraints: Sequence[Constraints],
        settings: GenerationSettings,
        generation: Generation,
    ) -> list[list[_Written]]:
        beams = self._beams(settings.num_beams or generation.num_beams, generation)
        compiled = [self._compile(c, generation.max_new_tokens) for c in constraints]
        found = beam_search(
            self.model.language.model, beams, inputs_embeds=prefix, attention_mask=mask.long(), constraints=compiled
        )
        return [[_Written(self._text(c.tokens), c.score, c.unmet) for c in row] for row in found]

    def _compile(self, constraints: Constraints, length: int) -> CompiledConstraints:
        # The shared automaton knows the graph's terms alone; a user's own terms need one of their own.
        own = any(t.name.startswith("--") for t in constraints.must_appear + constraints.must_not_assert)
        return compile_constraints(
            constraints, self.checkpoint.tokenizer, length, automaton=None if own else self.automaton
        )

    def _findings(self, seen: _Seen, example: Example) -> tuple[Finding, ...]:
        """Every label with its probability; the certainty is what the label's cuts say of it."""
        out = []
        for name, probability in seen.evidence.probabilities.items():
            indices = seen.evidence.boxes_of(name)
            cut = seen.evidence.cut(name)
            certainty = Certainty.PRESENT if probability >= cut.upper or indices else Certainty.UNCERTAIN
            if probability <= cut.lower and not indices:
                certainty = Certainty.ABSENT
            side = _side([seen.boxes[i] for i in indices], example)
            out.append(Finding(name, certainty, round(probability, 4), side, indices))
        return tuple(out)


def _side(boxes: Sequence[Box], example: Example) -> Literal["left", "right", "bilateral"] | None:
    """The patient's side on which a finding's boxes lie, where the view tells sides apart; the patient's right is at
    the viewer's left."""
    sides: set[Literal["left", "right"]] = set()
    for box in boxes:
        slot = example.chosen.index(box.image)
        if VIEWS[example.view[slot]] in (View.LATERAL, View.SAGITTAL):
            continue
        sides.add("right" if (box.xyxy[0] + box.xyxy[2]) / 2 < example.placements[slot].width / 2 else "left")
    return "bilateral" if len(sides) == 2 else next(iter(sides), None)


def _by_size(examples: dict[int, Example], batch_size: int) -> Iterator[list[int]]:
    for size in sorted({e.size for e in examples.values()}):
        own = [i for i, e in examples.items() if e.size == size]
        for start in range(0, len(own), batch_size):
            yield own[start : start + batch_size]


def _break_id(tokenizer: object) -> int:
    """The token that ends a section: a line break before the next heading."""
    encoded = tokenizer("end.\nImpression:", add_special_tokens=False, return_offsets_mapping=True)  # type: ignore[operator]
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if start <= 4 < end:
            return int(token)
    raise InputError("the tokenizer has no token for a line break; a report's sections could not be told apart")
