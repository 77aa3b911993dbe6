"""What memory a run needs, told before it starts.

Nothing is guessed by a factor. What is held is counted: weights, what the optimizer and the averages keep, examples and
features by study. What comes and goes is watched: a training step, a validation batch and a step of the search run
once on fake tensors (`vlm.weightless`), with the lengths of the data's own texts, and every block of memory that an
operation asks for or lets go is added up.

A stage's need is that of its hungriest phase; the run's, that of its hungriest stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from vlm import losses
from vlm.checkpoint import MOST_BUNDLED
from vlm.config import Stage
from vlm.models.adapters import is_adapter
from vlm.models.lean_lora import quick_steps
from vlm.optimization import select_parameters, set_modes
from vlm.sizing import SetFacts, Shape, heaviest
from vlm.tally import KERNELS, PRODUCTS, Watch, heap_of
from vlm.types import CachedFeatures, StudyBatch
from vlm.weightless import FewBits, Weightless

VALIDATION_BATCH = 16
IMAGE_PARTS = {"vision", "pyramid", "knowledge", "detection"}
WRITTEN = ("cider", "bleu4", "finding_f1")
TURNS = 6
"""Batches of different lengths that the heap is watched over."""
OBJECTS = 35 * 2**20
"""What Python holds of a run beside tensors: the graph, its readers, the tokenizer, the modules; measured."""
MOST_MAPS = 6 * 2**30
"""`FrozenMaps` keeps no more."""


@dataclass(frozen=True, slots=True)
class StageNeed:
    """Bytes that a stage needs.

    Args:
        name: of the stage. parameters: that learn, by part. steps: of the stage, counted in batches.
        held: what stays for the whole stage, by name. host: the part of it that lies in the machine's memory even
            when the model is on a GPU. phases: what each phase adds to it while it runs.
        shape: of the heaviest batch.
    """

    name: str
    parameters: dict[str, int]
    steps: int
    held: dict[str, int]
    host: int
    phases: dict[str, int]
    shape: Shape

    @property
    def peak(self) -> int:
        """The hungriest phase, with what is held."""
        return sum(self.held.values()) + max(self.phases.values())


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a run needs, beyond the program itself.

    Args:
        stages: in order. around: before and behind them. generation: a batch of reports afterwards, by name.
        notes: what could not be looked at.
    """

    stages: tuple[StageNeed, ...]
    around: dict[str, int]
    generation: dict[str, int]
    notes: tuple[str, ...] = ()

    def peak(self, gpu: bool = False) -> int:
        """Of training; on a GPU without what stays in the machine's memory."""
        if gpu:
            return max(s.peak - s.host for s in self.stages)
        return max([s.peak for s in self.stages] + list(self.around.values()))


def need_of(
    weightless: Weightless, facts: Mapping[str, Sequence[SetFacts]], dtype: torch.dtype | None, device: str = "cpu"
) -> Need:
    """What a run needs.

    Args:
        weightless: what it trains. facts: of the sets named in data.train ("train") and data.validation, and
            in data.replay ("replay", "old").
        dtype: of autocast, or None. device: "cpu" or "cuda".
    """
    return Estimate(weightless, facts, dtype, device).need()


class Estimate:
    """The arithmetic of one run (arguments as in `need_of`)."""

    def __init__(
        self, weightless: Weightless, facts: Mapping[str, Sequence[SetFacts]], dtype: torch.dtype | None, device: str
    ) -> None:
        self.weightless, self.facts, self.dtype, self.device = weightless, facts, dtype, device
        self.model, self.config = weightless.model, weightless.config
        self.model.language.recompute = self.config.training.gradient_checkpointing
        self.model.language.attend(device, dtype)
        self.world = self.config.training.processes or 1
        self.weights = weight_bytes(self.model)
        self.cached = False  # whether features of an earlier stage are still kept
        self.compiled: dict[tuple[object, ...], int] = {}  # by the stages so far

    def need(self) -> Need:
        """All stages in order, for what one keeps the next may use."""
        stages = tuple(self._stage(stage) for stage in self.config.training.stages)
        notes = [s.note for sets in self.facts.values() for s in sets if s.note]
        if self.weightless.tokenizer is None:
            notes.append(f"{self.weightless.source}: its tokenizer is not at hand; four characters count as a token")
        return Need(stages, self._around(), self._generation(), tuple(notes))

    def _sets(self, stage: Stage) -> list[tuple[SetFacts, float]]:
        """The sets that a stage draws from, with their weights."""
        named = zip(self.facts["train"], self.config.data.train, strict=True)
        return [(f, s.weight) for i, (f, s) in enumerate(named) if stage.sets is None or i in stage.sets]

    def _replayed(self, stage: Stage) -> tuple[list[SetFacts], int]:
        """The old sets of which a stage's batches hold a share, and how many studies of a batch that is."""
        replay = self.config.data.replay
        if replay is None or not replay.concerns(stage.name):
            return [], 0
        return list(self.facts.get("replay", ())), replay.of_batch(stage.batch_size)

    def _judged(self) -> list[SetFacts]:
        """The sets that are validated on."""
        return [*self.facts["validation"], *self.facts.get("old", ())]

    def _stage(self, stage: Stage) -> StageNeed:
        """One stage; its parameters are left thawed, as the loop leaves them."""
        groups = select_parameters(self.model, stage, self.config.model.vision.frozen_stages)
        trained = sum(size(p) for own in groups.values() for p in own)
        largest = max((size(p) for own in groups.values() for p in own), default=0)
        sets = self._sets(stage)
        again, old = self._replayed(stage)
        facts = [f for f, _ in sets] + again
        image = bool(IMAGE_PARTS & set(stage.train))
        cached = not image and set(stage.losses) <= {"report", "reward"} and not any(f.streamed for f in facts)
        fixed = "vision" not in stage.train and not self.config.data.augment
        fresh = stage.batch_size - old
        steps = math.ceil(sum(-(-f.count * weight // fresh) for f, weight in sets) * stage.epochs)
        reads = bool({"report", "reward"} & set(stage.losses))
        shapes = [self._drawn(s, stage) for s in heaviest(facts, self._share(stage), self.config, reads)]
        checks = heaviest(self._judged(), VALIDATION_BATCH, self.config, reads)
        watches = [self._step(s, stage, cached, fixed, True) for s in shapes]
        looks = [self._step(s, stage, cached, fixed, False) for s in checks]
        self._compile([*watches, *looks], steps, facts, reads)
        peaks = [w.peak for w in watches]
        held = {**self.weights, "optimizer": 2 * trained, "best so far": trained}
        if self.config.training.ema:
            held["average"] = trained
        kept = self._kept(stage, facts, cached, fixed, image)
        if self.config.training.loss.retention:
            held["the start, for retention"] = self.weights["image half"]
        held["graph, tokenizer, readers"] = OBJECTS
        held["compiled operations"] = self._compiled_bytes()
        phases = {
            "training step": max(
                self._taken(w, s, facts) + (trained if stage.accumulate > 1 else 0)  # gradients of the batch before
                for w, s in zip(watches, shapes, strict=True)
            ),
            "optimizer": trained + 2 * largest,
            "validation": max([0, *(w.peak for w in looks)]),
            "keeping the best": trained,
            "saving": trained * (4 if self.config.training.ema else 3) + self._learnt(),
        }
        if cached:
            seen = heaviest(facts, VALIDATION_BATCH, self.config, False)
            phases["features"] = max(self._look(s, fixed).peak for s in seen)
        if "report" in stage.losses and (self.config.training.samples or stage.choose_by in WRITTEN):
            phases["writing reports"] = sum(self._generation().values())
        learns = {part: sum(p.numel() for p in own) for part, own in groups.items()}
        shape = shapes[max(range(len(peaks)), key=peaks.__getitem__)]
        return StageNeed(stage.name, learns, max(1, steps), held | kept, sum(kept.values()), phases, shape)

    def _taken(self, watch: Watch, shape: Shape, facts: Sequence[SetFacts]) -> int:
        """What steps take of the machine: on the CPU, the heap after batches of the lengths that the data has."""
        if self.device != "cpu" or self.config.training.gradient_checkpointing:  # there blocks go back at once
            return watch.peak
        around = shape.prompt + shape.views * self.model.bridge.grid**2 + len(self.weightless.labels)
        reports = np.sort(np.concatenate([f.report for f in facts]))
        scales = [1.0]
        if shape.report and len(reports):
            # Batches of like length come in any order.
            lengths = np.quantile(reports, [turn / TURNS for turn in (3, 5, 1, 4, 2)])
            scales = [min(1.0, float((around + x) / (around + shape.report))) for x in lengths] + scales
        fixed = {p.numel() * width for p in self.model.parameters() for width in (2, 4)}
        # Compiled code is counted by itself; here it only divides the heap.
        code = sum(watch.kernels.values()) * len(scales)
        return max(watch.peak, heap_of(watch.events, tuple(scales), fixed) - code)

    def _share(self, stage: Stage) -> int:
        """Studies of a step in one process."""
        return max(1, -(-stage.batch_size // self.world))

    def _drawn(self, shape: Shape, stage: Stage) -> Shape:
        """Self-critical steps learn from draws: several a study, as long as they may be."""
        if "reward" not in stage.losses:
            return shape
        draws, most = self.config.training.reward.draws, self.config.generation.max_new_tokens
        studies = shape.studies * draws
        return replace(shape, studies=studies, images=shape.images * draws, report=most, labelled=studies * most)

    def _kept(self, stage: Stage, facts: Sequence[SetFacts], cached: bool, fixed: bool, image: bool) -> dict[str, int]:
        """What is kept by study in the machine's memory: examples, features, maps."""
        every = [s for name in self.facts for s in self.facts[name]]
        kept = {"examples": sum(map(self._examples, every))}
        self.cached = cached or (self.cached and not image)
        if self.cached:
            kept["features"] = self._features(facts, stage.cache_copies) + self._features(self._judged(), 1)
        if fixed:
            kept["maps of the vision model"] = min(MOST_MAPS, sum(map(self._maps, every)))
        return kept

    def _compile(self, watches: Sequence[Watch], steps: int, facts: Sequence[SetFacts], reads: bool) -> None:
        """Counts what oneDNN compiles: once for the image half, for every length that batches have where texts are
        read."""
        lengths = max(1, sum(len(np.unique(f.report)) for f in facts)) if reads else 1
        for number, watch in enumerate(watches):
            times = min(steps, lengths) if number == 0 else 1
            for key, taken in watch.kernels.items():
                for time in range(times if key[0] in PRODUCTS else 1):
                    self.compiled[(*key, time)] = taken

    def _compiled_bytes(self) -> int:
        """oneDNN keeps the last ones."""
        return sum(list(self.compiled.values())[-KERNELS:]) if self.device == "cpu" else 0

    def _learnt(self) -> int:
        """What a saved state holds of the model: all but the frozen language model."""
        return self.weights["image half"] + self.weights.get("adapter", 0)

    def _examples(self, facts: SetFacts) -> int:
        """Kept in memory: pixels, texts as numbers, and what Python needs for a study."""
        if facts.streamed or not len(facts.size):
            return 0
        pixels = (facts.views * facts.size**2).mean() * self.config.data.channels
        return round(facts.count * (pixels + 20 * facts.report.mean() + 3000))

    def _features(self, sets: Sequence[SetFacts], copies: int) -> int:
        """What `FeatureCache` keeps."""
        model = self.model
        evidence = len(self.weightless.labels) * (self._dim + 1)
        view = model.bridge.grid**2 * len(model.vision.strides) * self._dim
        return round(sum(4 * copies * s.count * (s.views.mean() * view + evidence) for s in sets if len(s.views)))

    def _maps(self, facts: SetFacts) -> int:
        """What `FrozenMaps` keeps."""
        if facts.streamed or not len(facts.size):
            return 0
        with self._fakes(Watch()):
            maps = self.model.vision(
                self._fake(1, self.config.data.channels, int(facts.size.max()), int(facts.size.max()))
            )
        return round(facts.count * facts.views.mean() * sum(size(m) for m in maps))

    @property
    def _dim(self) -> int:
        return int(self.model.view.weight.shape[1])

    def _fake(self, *shape: int) -> Tensor:
        with self.weightless.mode:
            return torch.zeros(*shape)

    def _fakes(self, watch: Watch) -> Any:
        """Autocast, under a watch."""
        stack = ExitStack()
        stack.enter_context(watch)
        stack.enter_context(torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None))
        return stack

    def _batch(self, shape: Shape, cached: bool, fixed: bool) -> StudyBatch:
        """A batch of that shape: whole numbers are real, for they are read as indices; pixels and features are fake."""
        n, images = shape.studies, shape.images
        study = torch.arange(images) * n // max(1, images)
        slot = torch.arange(images) - torch.searchsorted(study, study)
        labels = torch.full((n, shape.report), -100)
        labels.view(-1)[: min(shape.labelled, labels.numel())] = 1
        features = maps = None
        if cached:
            view = self.model.bridge.grid**2
            features = CachedFeatures(
                self._fake(images, view, len(self.model.vision.strides) * self._dim),
                self._fake(n, len(self.weightless.labels), self._dim), self._fake(n, len(self.weightless.labels)),
            )  # fmt: skip
        pixels = None if cached else self._fake(images, shape.channels, shape.size, shape.size)
        if fixed and not cached:
            with torch.no_grad(), torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                maps = tuple(self.model.vision(pixels))
        return StudyBatch(
            ids=tuple(map(str, range(n))), pixel_values=pixels, image_study=study, image_slot=slot,
            view=torch.zeros(images, dtype=torch.long), prompt_ids=torch.zeros(n, shape.prompt, dtype=torch.long),
            prompt_mask=torch.ones(n, shape.prompt, dtype=torch.bool),
            report_ids=torch.zeros(n, shape.report, dtype=torch.long),
            report_mask=torch.ones(n, shape.report, dtype=torch.bool), report_labels=labels,
            report_weights=torch.ones(n, shape.report), finding_targets=torch.zeros(n, len(self.weightless.labels)),
            boxes_xyxy=(), box_classes=(), box_known=torch.zeros(images, 1, dtype=torch.bool), cached=features,
            maps=maps,
        )  # fmt: skip

    def _step(self, shape: Shape, stage: Stage, cached: bool, fixed: bool, learns: bool) -> Watch:
        """The most that one batch holds at a time beside the weights: forward, and backward when it learns."""
        if learns:
            set_modes(self.model, stage)
        else:
            self.model.eval()
        watch = Watch()
        with torch.set_grad_enabled(learns), quick_steps(self.model.language, self.device):
            with self._fakes(watch):
                batch = self._batch(shape, cached, fixed)
                reads = bool({"report", "reward"} & set(stage.losses))
                output = self.model(batch, report=reads, detect="detection" in stage.losses)
                total = self._total(output, batch, stage)
            if learns and total is not None and total.requires_grad:
                with watch:
                    total.backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        return watch

    def _total(self, output: Any, batch: StudyBatch, stage: Stage) -> Tensor | None:
        """A sum that reaches all that the losses reach; the report's own loss, for its logits are large."""
        terms = []
        if output.report_logits is not None:
            terms.append(
                losses.report_loss(output.report_logits, output.report_index, batch.report_labels, batch.report_weights)
            )
        if "findings" in stage.losses or "knowledge" in stage.losses:
            terms.append(output.image.logits.sigmoid().sum())
        if "knowledge" in stage.losses and output.alignment is not None:
            terms.append(output.alignment.log_softmax(-1).sum())
        if "detection" in stage.losses and output.image.dense is not None:
            dense = output.image.dense
            focal = sigmoid_focal_loss(dense.logits, torch.zeros_like(dense.logits), alpha=0.5, gamma=2.0)
            terms.append(focal.sum() + dense.quality.sum() + dense.boxes_xyxy.sum())
        return torch.stack(terms).sum() if terms else None

    def _look(self, shape: Shape, fixed: bool) -> Watch:
        """The image half alone, without gradients."""
        self.model.eval()
        watch = Watch()
        with torch.no_grad(), self._fakes(watch):
            self.model.encode(self._batch(shape, False, fixed), detect=False)
        return watch

    def _around(self) -> dict[str, int]:
        """Loading, and the last checkpoint: copies are made of what is written."""
        whole = sum(self.weights.values())
        examples = sum(self._examples(s) for name in self.facts for s in self.facts[name])
        chosen = self.config.model.language
        small = self.weights["language model"] <= MOST_BUNDLED and chosen.bundle != "no"
        copied = chosen.quantize == "none" and chosen.dtype == "float32" and (small or chosen.bundle == "yes")
        language = self.weights["language model"] if copied else 0
        code = self._compiled_bytes()
        whole += OBJECTS
        last = whole + code + examples + self._learnt() + 2 * language
        return {"loading": whole + self._unpacked(), "last checkpoint": last}

    def _unpacked(self) -> int:
        """The file's own weights of layers that are held in few bits: they lie in memory until all are packed."""
        layers = [m for m in self.model.language.modules() if isinstance(m, FewBits)]
        return sum(4 * m.in_features * m.out_features for m in layers)

    def _generation(self) -> dict[str, int]:
        """A batch of reports with the configured beams: keys and values, and the logits of a step."""
        g, config = self.config.generation, self.weightless.language.get_text_config()
        heads = config.to_dict().get("num_key_value_heads") or config.num_attention_heads
        width = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
        kind = 4 if self.config.model.language.dtype == "float32" else 2
        a_token = 2 * config.num_hidden_layers * heads * width * kind
        shape = max(
            (s for s in heaviest(self.facts["validation"] or self.facts["train"], g.batch_size, self.config, False)),
            key=lambda s: s.views * s.size,
        )
        prompt = shape.prompt + shape.views * self.model.bridge.grid**2 + len(self.weightless.labels)
        slots = g.batch_size * (prompt + g.num_beams * g.max_new_tokens)
        rows = g.batch_size * max(g.num_beams, g.samples)
        return {
            "keys and values": slots * a_token,
            "logits": 3 * 4 * rows * config.vocab_size,
            "images": self._look(shape, False).peak,
        }


def size(tensor: Tensor) -> int:
    """Bytes."""
    return tensor.numel() * tensor.element_size()


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the weights: the language model's, its adapter's, and those of the rest."""
    out = {"language model": 0, "adapter": 0, "image half": 0}
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        kind = "image half"
        if name.startswith("language."):
            kind = "adapter" if is_adapter(name) else "language model"
        out[kind] += size(tensor)
    return out
