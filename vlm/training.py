"""The Accelerate loop: stages, resumption, the best checkpoint by validation.

A run is a folder: `config.json` (resolved), `versions.json`, `metrics.jsonl` (a line an epoch and some of the steps),
`curve.png`, `state/` (to resume), `best/` (a checkpoint). Each step seeds its own randomness from (seed, stage, step),
so a resumed run repeats the unbroken one.

With several processes a batch is shared out over them: `batch_size` counts the studies of a step over all processes,
and the same configuration gives the same losses with any number of them (drop-out and image variation apart).
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vlm import losses
from vlm.checkpoint import Checkpoint, save_checkpoint
from vlm.config import Config, Stage
from vlm.data.batches import Collator, move
from vlm.data.examples import Example, ExampleBuilder
from vlm.data.replay import replay_plan
from vlm.data.streaming import StreamedExamples, epoch_plan
from vlm.models import adapters
from vlm.models.language import UNWRITTEN
from vlm.models.lean_lora import quick_steps
from vlm.optimization import Average, make_optimizer, select_parameters, set_modes, set_rate
from vlm.processes import (
    Meeting,
    Watch,
    agree,
    autocast_dtype,
    gathered,
    gone,
    lost,
    make_accelerator,
    return_blocks,
    shard_model,
    trim_heap,
    whole,
)
from vlm.rewards import RewardBatch, Scorer
from vlm.run_folder import draw_curve, own_folder
from vlm.run_state import Position, load_state, put_back, restore, save_state, snapshot
from vlm.steps import WEIGHT_OF, Start, TrainStep, graph_rules, mean_terms
from vlm.training_data import (
    FeatureCache,
    FrozenMaps,
    RunSets,
    Shared,
    check_losses,
    chosen_sets,
    console,
    known_of,
    labels_by_modality,
    labels_kept,
)
from vlm.types import InputError, StudyBatch
from vlm.validation import Validator, kept_calibration
from vlm.watching import WRITTEN_METRICS, Scribe, Trackers, check_choice, check_trackers, keep_samples
from vlm.zero import Zero, zero_gathered, zero_settings

IMAGE_PARTS = {"vision", "pyramid", "knowledge", "detection"}


class Run:
    """What the stages share.

    Args:
        config: resolved. checkpoint: the model to train, changed in place. out: the run's folder. shared: with other
            runs of this process.
    """

    def __init__(self, config: Config, checkpoint: Checkpoint, out: Path, shared: Shared | None = None) -> None:
        self.config, self.checkpoint, self.out = config, checkpoint, out
        check_trackers(config.training.trackers)
        for stage in config.training.stages:
            check_choice(stage)
        self.accelerator = make_accelerator(config.training)
        self.meeting = Meeting()
        self.watch = Watch(config.training.timeout_seconds, out)
        self.device = self.accelerator.device
        self.model = checkpoint.model.to(self.device)
        self.model.language.recompute = config.training.gradient_checkpointing
        if config.training.gradient_checkpointing and self.device.type == "cpu":
            return_blocks()
        self.main = self.accelerator.is_main_process
        self.dtype = autocast_dtype(config.training.dtype, self.device)
        self.model.language.attend(self.device.type, self.dtype)
        self.builder = ExampleBuilder(
            config.data, checkpoint.labels, config.model.detection.labels, checkpoint.graph, checkpoint.tokenizer,
            config.training.loss.concept_weight, view=config.model.knowledge.view,
            begin=config.model.language.frame == "prompt",
        )  # fmt: skip
        seed = config.training.seed
        self.shared = shared or Shared()
        self.data = RunSets.of(config.data, lambda s: self.shared.load(s, self.builder, self.main))
        self.sets = self.data.train
        for number, stage in enumerate(config.training.stages):
            replay = config.data.replay if self.data.replayed(stage, config.data.replay) else None
            check_losses(number, stage, self.sets, self.model.detector is not None, replay)
        self.validator = Validator(self.builder, self.data.validation, config, self.dtype)
        self.old = Validator(self.builder, self.data.old, config, self.dtype) if self.data.old else None
        self.seed = seed
        start = Start(self.model, config.training.stages) if config.training.loss.retention else None
        self.step = TrainStep(self.model, graph_rules(checkpoint), config.training.label_smoothing, start)
        # Under a launch file for FSDP too: states and checkpoints of this code are whole.
        self.sharded = config.training.shard is True or self.accelerator.distributed_type == DistributedType.FSDP
        if self.sharded:
            shard_model(self.model, self.step, self.device)
        zero = zero_settings(config, self.accelerator)
        self.zero = Zero(self.step, zero, config.training.clip) if zero else None
        self.cache: FeatureCache | None = None
        self.stop = Stop()
        self.trackers: Trackers | None = None
        self.before = 0  # steps of earlier stages, for the trackers

    @property
    def in_parts(self) -> bool:
        """Whether a process holds a part of the weights alone."""
        return self.sharded or (self.zero is not None and self.zero.shares_weights)

    @cached_property
    def scribe(self) -> Scribe:
        """Made when reports are first asked for."""
        return Scribe(self.checkpoint, self.builder, self.validator.examples, self.device)

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, and tells the trackers."""
        if self.main:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        if self.trackers is not None:
            self.trackers.log(record["stage"], self.before + record["step"], record)

    def stage(self, number: int, stage: Stage, resumed: tuple[Position, dict[str, Tensor]] | None) -> dict[str, float]:
        """Trains one stage; afterwards the model is the stage's best."""
        self.before = self.trackers.before(stage.name) if self.trackers is not None else 0
        return StageLoop(self, number, stage, resumed).fit()


class StageLoop:
    """The epochs of one stage."""

    def __init__(self, run: Run, number: int, stage: Stage, resumed: tuple[Position, dict[str, Tensor]] | None) -> None:
        self.run, self.number, self.stage = run, number, stage
        settings = run.config.training
        self.sets = chosen_sets(stage, run.sets)
        self.replay = run.data.replayed(stage, run.config.data.replay)
        self.groups = select_parameters(run.model, stage, run.config.model.vision.frozen_stages)
        if not self.groups:
            raise InputError(f"training.stages.{stage.name}: nothing to train in {', '.join(stage.train)}")
        self.optimizer = make_optimizer(self.groups, stage, settings.weight_decay)
        self.average = Average(self.groups, settings.ema)
        self.position = Position(stage=number)
        self.best: dict[str, Tensor] = {}
        if resumed is not None:
            self.position, tensors = resumed
            self.best = restore(tensors, run.model, None if run.zero else self.optimizer, self.average)
        with gathered(run.step):
            self.maps = self._maps()
            self.cache = self._cache()
        run.meeting.wait()
        self.step_module, self.optimizer = self._prepare()
        if run.zero is not None and resumed is not None:
            run.zero.restore(tensors)
        self.epochs = math.ceil(stage.epochs)
        sizes = [len(self._plan(epoch)[1]) for epoch in range(self.epochs)]
        self.total = max(1, round(sum(sizes) * stage.epochs / self.epochs))
        self.adapting = "adapter" in stage.train and bool({"report", "reward"} & set(stage.losses))
        self.rewards = self._rewards()
        if self.adapting:
            adapters.set_steps(run.checkpoint.model.language.model, self.total // stage.accumulate)

    def _prepare(self) -> tuple[Any, Any]:
        """The step and the optimizer as Accelerate runs them; weights that are sharded by hand are left to their
        wrapper, and what nothing learns in is not wrapped."""
        run = self.run
        if run.zero is not None:
            return run.zero.begin(self.optimizer)
        if run.sharded:
            return run.step, self.optimizer
        return run.accelerator.prepare(run.step, self.optimizer)  # type: ignore[no-any-return]

    def _maps(self) -> FrozenMaps | None:
        """The vision model's maps, kept when it does not learn and images are not varied."""
        run = self.run
        fixed = "vision" not in self.stage.train and not run.config.data.augment and not run.in_parts
        run.validator.maps = maps = run.shared.maps_of(run.dtype, run.model.vision) if fixed else None
        if run.old is not None:
            run.old.maps = maps
        return maps

    def _cache(self) -> FeatureCache | None:
        """Features of the image half, when nothing of it learns and only the report's loss is asked for.

        They are kept for the next stage, for as long as no stage trains the image half.
        """
        run = self.run
        if IMAGE_PARTS & set(self.stage.train):
            run.cache = None
            return None
        if not set(self.stage.losses) <= {"report", "reward"} or any(
            isinstance(s, StreamedExamples) for _, s in (*self.sets, *self.replay)
        ):
            return None  # a streamed set may be larger than memory, and so are its features
        collate = Collator(run.builder)
        if run.cache is None or run.cache.copies != self.stage.cache_copies:
            run.cache = FeatureCache(self.stage.cache_copies, run.seed, run.dtype, self.maps)
        run.cache.fill(run.model, collate, [e for _, s in (*self.sets, *self.replay) for e in s])
        run.cache.fill_plain(run.model, collate, [*run.validator.examples, *run.data.old])
        return run.cache

    def _plan(self, epoch: int) -> tuple[Sequence[Example], list[list[int]]]:
        """The epoch's examples and the batches of them, which every process takes its share of."""
        rng = np.random.default_rng([self.run.seed, self.number, epoch])
        new, kept = ([(source.weight, examples) for source, examples in sets] for sets in (self.sets, self.replay))
        size, data = self.stage.batch_size, self.run.config.data
        if not kept or data.replay is None:
            return epoch_plan(new, size, rng, data.buffer)
        return replay_plan(new, kept, data.replay.of_batch(size), size, rng, data.buffer)

    def fit(self) -> dict[str, float]:
        """Runs the epochs that remain and returns the best validation metrics."""
        position = self.position
        trim_heap()
        if self.run.old is not None and position.step == 0:  # what there is to forget
            self.run.log({"stage": self.stage.name, "epoch": 0, "step": 0, **self._measure_old()})
        with _progress(self.run.main) as bar:
            task = bar.add_task(self.stage.name, total=self.total, completed=position.step, info="")
            for epoch in range(position.epoch, self.epochs):
                terms = self._epoch(epoch, bar, task)
                with self.average.in_place():
                    self._validate(epoch, terms)
                position.epoch, position.batch = epoch + 1, 0
                self._save()
                trim_heap()
                if self.stage.patience is not None and position.worse >= self.stage.patience:
                    if self.run.main:
                        console.print(f"{self.stage.name}: no better for {position.worse} epochs, stopped early")
                    break
        self.optimizer.zero_grad(set_to_none=True)
        if self.run.zero is not None:
            self.run.zero.end()
        with zero_gathered(self.run.step, change=True):
            put_back(self.run.model, self.best)
        self.position = Position(stage=self.number + 1)
        self._write(Position(stage=self.number + 1), last=True)
        return position.best_metrics

    def _epoch(self, epoch: int, bar: Progress, task: Any) -> dict[str, list[float]]:
        set_modes(self.run.model, self.stage)
        examples, batches = self._plan(epoch)
        sums: dict[str, list[float]] = {}
        saved = time.monotonic()
        position = self.position
        for index in range(position.batch if epoch == position.epoch else 0, len(batches)):
            if position.step >= self.total:
                break
            with quick_steps(self.run.model.language, self.run.device.type):
                terms = self._step(epoch, self._share([examples[i] for i in batches[index]]))
            position.epoch, position.batch, position.step = epoch, index + 1, position.step + 1
            for name, value in terms.items():
                sums.setdefault(name, []).append(value)
            bar.update(
                task, completed=position.step, info=" ".join(f"{k} {np.mean(v[-50:]):.3f}" for k, v in sums.items())
            )
            if position.step % self.run.config.training.log_every == 0:
                rate = self.optimizer.param_groups[0]["lr"]
                shown = {k: round(v, 5) for k, v in terms.items()}
                self.run.log({"stage": self.stage.name, "step": position.step, "lr": float(f"{rate:.4g}"), **shown})
            stop = agree(self.run.stop.asked is not None, self.run.device)
            if stop or agree(time.monotonic() - saved > self.run.config.training.save_minutes * 60, self.run.device):
                self._save()
                saved = time.monotonic()
            if stop:
                raise Interrupted(self.run.stop.asked or signal.SIGTERM, self.run.out)
        return sums

    def _share(self, examples: list[Example]) -> list[Example]:
        """This process's studies of a batch. One for whom none is left takes one that says nothing."""
        world, rank = self.run.accelerator.num_processes, self.run.accelerator.process_index
        return examples[rank::world] or [muted(examples[0])]

    def _step(self, epoch: int, examples: list[Example]) -> dict[str, float]:
        """One batch: forward, named losses, weighted once, backward."""
        run, settings = self.run, self.run.config.training
        step = self.position.step
        torch.manual_seed(hash((run.seed, self.number, step, run.accelerator.process_index)) % 2**63)
        set_rate(self.optimizer, step, self.total, self.stage.warmup)
        rng = np.random.default_rng([run.seed, self.number, step, run.accelerator.process_index])
        data = run.config.data
        collate = Collator(run.builder, data.augment, data.clinical_dropout, rng, skip_pixels=self.cache is not None)
        batch = collate(examples)
        if {"report", "reward"} & set(self.stage.losses):
            batch = with_report_column(batch, run.checkpoint.tokenizer.pad_token_id)
        if self.cache is not None:
            batch = self.cache.attach(batch, epoch)
        batch = move(batch, run.device)
        if self.maps is not None and self.cache is None:
            batch = self.maps.attach(run.model, batch)
        wanted = self.stage.losses
        with torch.autocast(run.device.type, run.dtype or torch.bfloat16, enabled=run.dtype is not None):
            terms, told = self._terms(batch, wanted)
        if not terms:
            return {}
        nothing = terms.pop("nothing", None)
        weighted = [value * getattr(settings.loss, WEIGHT_OF[name]) for name, value in terms.items()]
        total = torch.stack([*weighted, *([] if nothing is None else [nothing])]).sum()
        orthogonal = adapters.penalty(run.checkpoint.model.language.model) if self.adapting else None
        if orthogonal is not None:
            total = total + orthogonal
        if agree(not bool(torch.isfinite(total.detach())), run.device):
            shown = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in terms.items())
            raise InputError(
                f"the loss is not finite ({shown}) in studies {', '.join(batch.ids[:8])}"
                f"{' or in those of another process' if losses.processes() > 1 else ''}; "
                "lower the learning rate or check them"
            )
        last = (step + 1) % self.stage.accumulate == 0 or step + 1 == self.total
        if run.zero is not None:
            run.zero.backward(total / self.stage.accumulate, last)
        else:
            run.accelerator.backward(total / self.stage.accumulate)
        if last:
            if run.zero is None:
                self._clip([p for g in self.groups.values() for p in g])
                self.optimizer.step()
            if self.adapting:
                adapters.after_step(run.checkpoint.model.language.model, (step + 1) // self.stage.accumulate - 1)
            self.optimizer.zero_grad(set_to_none=True)
            self.average.update(step)
        return mean_terms(terms, run.device) | told

    def _terms(self, batch: StudyBatch, wanted: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The named terms, and what else the log is told."""
        plain = tuple(name for name in wanted if name != "reward")
        terms = self.step_module(batch, plain) if plain else {}
        if self.rewards is None:
            return terms, {}
        seed = int(np.random.default_rng([self.run.seed, self.number, self.position.step]).integers(2**31))
        drawn, told = self.rewards.draw(self.run.model, batch, seed + 1000 * self.run.accelerator.process_index)
        return terms | self.step_module(drawn, ("reward",)), told

    def _rewards(self) -> RewardBatch | None:
        """What scores drawn reports, where the stage learns by reward."""
        run = self.run
        if "reward" not in self.stage.losses:
            return None
        if run.in_parts:
            raise InputError(f"training.stages.{self.stage.name}: reports can't be drawn while weights are sharded")
        tokenizer, settings = run.checkpoint.tokenizer, run.config.training.reward
        ids = [e.report_labels[e.report_labels >= 0] for _, s in (*self.sets, *self.replay) for e in s]
        texts = [" ".join(str(tokenizer.decode(row, skip_special_tokens=True)).split()) for row in ids]
        scorer = Scorer(texts, run.checkpoint.graph, run.config.model.knowledge.view, settings)
        mark = tokenizer.convert_tokens_to_ids(UNWRITTEN)
        suppressed = [mark] if isinstance(mark, int) and mark != tokenizer.unk_token_id else []
        return RewardBatch(scorer, tokenizer, settings, run.config.data.max_report_tokens, suppressed)

    def _clip(self, parameters: list[torch.nn.Parameter]) -> None:
        limit = self.run.config.training.clip
        if self.run.sharded:
            torch.nn.utils.clip_grad_norm_(parameters, limit)
        else:
            self.run.accelerator.clip_grad_norm_(parameters, limit)

    def _validate(self, epoch: int, terms: dict[str, list[float]]) -> None:
        metrics: dict[str, float] = {}
        if self.run.validator.examples:
            with gathered(self.run.step):
                metrics = self.run.validator.measure(self.run.model, self.stage.losses, self.cache)
                metrics |= self._written(epoch)
        metrics |= self._measure_old()
        self.run.meeting.wait()
        score = self._score(metrics)
        metrics |= {f"train_{name}": float(np.mean(values)) for name, values in terms.items()}
        self.run.log({"stage": self.stage.name, "epoch": epoch + 1, "step": self.position.step, **metrics})
        if self.run.main:
            console.print(
                f"{self.stage.name} {epoch + 1}/{self.epochs}: " + " ".join(f"{k} {v:.4f}" for k, v in metrics.items())
            )
        # Without validation there is nothing to choose by: the last epoch stands.
        if score > self.position.best_score or not self.best or not self.run.validator.examples:
            self.position.best_score, self.position.best_metrics, self.position.worse = score, metrics, 0
            with zero_gathered(self.run.step):
                self.best = snapshot(self.run.model, self.groups)
        else:
            self.position.worse += 1

    def _measure_old(self) -> dict[str, float]:
        """What the model still knows of the old data, by names that begin with "old_"."""
        run = self.run
        if run.old is None:
            return {}
        with gathered(run.step):
            found = run.old.measure(run.model, self.stage.losses, self.cache)
        return {f"old_{name}": value for name, value in found.items() if name != "auc+map"}

    def _score(self, metrics: dict[str, float]) -> float:
        """What the stage is chosen by; more is better."""
        if not metrics:
            return 0.0
        choice = self.stage.choose_by
        if choice not in metrics:
            raise InputError(
                f"training.stages.{self.stage.name}.choose_by: {choice!r} can't be measured: validation studies lack "
                "what it takes (boxes; reports of at most data.max_report_tokens); choose by loss"
            )
        return -metrics[choice] if choice == "loss" else metrics[choice]

    def _written(self, epoch: int) -> dict[str, float]:
        """Reports of validation studies with the current weights, and what they score; only where asked for."""
        run, settings = self.run, self.run.config.training
        chosen = self.stage.choose_by in WRITTEN_METRICS
        if not {"report", "reward"} & set(self.stage.losses) or not (chosen or settings.samples):
            return {}
        samples = run.scribe.write(max(settings.written, settings.samples))
        shown = samples[: settings.samples]
        if run.main:
            keep_samples(run.out, self.stage.name, epoch + 1, shown)
        if run.trackers is not None:
            texts = {f"sample {s.id}": f"{s.report}\n\n(reference) {s.reference}" for s in shown}
            run.trackers.log(self.stage.name, run.before + self.position.step, texts)
        return run.scribe.score(samples)

    def _save(self) -> None:
        self._write(self.position)

    def _write(self, position: Position, last: bool = False) -> None:
        """Every process gives its part of sharded tensors, the first one writes."""
        run, keep = self.run, self.run.config.training.keep
        with zero_gathered(run.step):
            if last:
                save_state(run.out, position, run.model, None, None, {}, keep, run.main)
            else:
                parts, optimizer = (run.zero.parts(), None) if run.zero is not None else (None, self.optimizer)
                save_state(run.out, position, run.model, optimizer, self.average, self.best, keep, run.main, parts)
        run.meeting.wait()


def train(checkpoint: Checkpoint, out: Path, resume: bool = True, shared: Shared | None = None) -> dict[str, Any]:
    """Trains all stages and leaves the best model of the last in `out/best`.

    Args:
        config: resolved. checkpoint: a model to start from, changed in place. out: the run's folder. resume: go on
            from `out/state`. shared: examples and maps of other runs of this process, read and added to.

    Returns:
        Each stage's best validation metrics.

    Raises:
        InputError: nothing to learn from, a folder of another run, a loss that is not finite, no memory or no disk
            left, or another process of the run that is gone.
        Interrupted: SIGTERM or Ctrl-C; the state was saved.
    """
    config = checkpoint.config
    # Sums over graph edges and words would otherwise depend on how threads interleave, and a resumed run would drift.
    torch.use_deterministic_algorithms(True, warn_only=True)
    run = Run(config, checkpoint, out, shared)
    if run.main:
        own_folder(out, config, resume, checkpoint.graph.hash)
    run.meeting.wait()
    run.trackers = Trackers(run.accelerator, config.training.trackers, out, config)
    resumed = load_state(out) if resume else None
    first = resumed[0].stage if resumed else 0
    if resumed and first >= len(config.training.stages):
        restore(resumed[1], run.model, None, None)
    metrics = dict(checkpoint.metrics)
    with run.stop.listening():
        for number, stage in enumerate(config.training.stages):
            if number < first:
                continue
            if resumed and number == first and resumed[0].step == 0:
                restore(resumed[1], run.model, None, None)
                resumed = None
            with explained(number, stage, out):
                metrics[stage.name] = run.stage(number, stage, resumed if number == first else None)
    checkpoint.metrics = metrics
    state = whole_state(run)
    before, judged = checkpoint.calibration, run.data.validation + run.data.old
    # What nothing held on to has drifted: then the run's own data alone say what the model speaks of.
    remembers = bool(run.data.replay) or config.training.loss.retention > 0
    if judged:
        with gathered(run.step):
            found = Validator(run.builder, judged, config, run.dtype).calibrate(run.model, shared)
        kept = kept_calibration(before, found, judged, checkpoint.labels) if remembers else found
        checkpoint.calibration = kept
    if run.main:
        known = (fact for _, examples in (*run.sets, *run.data.replay) for fact in known_of(examples))
        chosen = {name: list(labels) for name, labels in config.data.modality_labels.items()}
        learnt = labels_by_modality(known, checkpoint.labels)
        if remembers:
            learnt = labels_kept(learnt, before.modalities, checkpoint.labels)
        checkpoint.calibration.modalities = learnt | chosen
        save_checkpoint(out / "best", checkpoint, state=state)
        draw_curve(out)
    run.meeting.wait()
    run.watch.end()
    run.accelerator.end_training()
    return metrics


def whole_state(run: Run) -> dict[str, Tensor] | None:
    """All weights of a sharded model, on every process; None when nothing is sharded."""
    if not run.in_parts:
        return None
    with zero_gathered(run.step):
        return {name: whole(value).detach().cpu().clone() for name, value in run.model.state_dict().items()}


def with_report_column(batch: StudyBatch, pad: int) -> StudyBatch:
    """A batch without any report, among several processes, gets one column of padding: the language model has to run
    on all of them or on none."""
    if losses.processes() == 1 or batch.report_ids.shape[1]:
        return batch
    shape = (len(batch.ids), 1)
    return replace(
        batch, report_ids=torch.full(shape, pad), report_mask=torch.zeros(shape, dtype=batch.report_mask.dtype),
        report_labels=torch.full(shape, -100), report_weights=torch.zeros(shape),
    )  # fmt: skip


def muted(example: Example) -> Example:
    """An example of which nothing is known."""
    return replace(
        example, report_labels=np.full_like(example.report_labels, -100),
        report_weights=np.zeros_like(example.report_weights),
        finding_targets=np.full_like(example.finding_targets, np.nan), box_known=np.zeros_like(example.box_known),
        boxes_xyxy=tuple(b[:0] for b in example.boxes_xyxy), box_classes=tuple(c[:0] for c in example.box_classes),
    )  # fmt: skip


class Interrupted(Exception):
    """A run that was asked to stop and has saved its state.

    Args:
        number: of the signal. out: the run's folder.
    """

    def __init__(self, number: int, out: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the state is saved in {out}, run again to go on")
        self.number = number


class Stop:
    """Hears SIGTERM and Ctrl-C, so that a step is finished and the state is saved; a second one stops at once."""

    def __init__(self) -> None:
        self.asked: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Replaces the handlers while the block runs; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def hear(number: int, frame: object) -> None:
            if self.asked is not None:
                raise KeyboardInterrupt
            self.asked = number

        for number in before:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def explained(number: int, stage: Stage, out: Path) -> Iterator[None]:
    """Turns what a machine runs out of into one line that names the setting to change."""
    key = f"training.stages.{number}"
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in text:
            half, twice = max(1, stage.batch_size // 2), 2 * stage.accumulate
            raise InputError(
                f"stage {stage.name!r}: out of memory with batches of {stage.batch_size}; try --set "
                f"{key}.batch_size={half} --set {key}.accumulate={twice}, --set "
                f"training.gradient_checkpointing=true, fewer data.max_views, or model.language.quantize=nf4; "
                f"vlm doctor CONFIG says what fits"
            ) from error
        if lost(error):
            raise InputError(gone(error, out)) from error
        raise


def _progress(show: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
    return Progress(*columns, console=console, disable=not show)
