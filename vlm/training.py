"""The Accelerate loop: stages, resumption, the best checkpoint by validation.

A run is a folder: `config.json` (resolved), `metrics.jsonl` (a line an epoch and every tenth step), `curve.png`,
`state/` (to resume), `best/` (a checkpoint). Each step seeds its own randomness from (seed, stage, step), so a resumed
run repeats the unbroken one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vlm import losses
from vlm.checkpoint import Checkpoint, save_checkpoint
from vlm.config import Config, Stage
from vlm.data.batches import Collator, move
from vlm.data.examples import Example, ExampleBuilder
from vlm.data.streaming import StreamedExamples, epoch_plan
from vlm.models import adapters
from vlm.models.report_generator import ModelOutput
from vlm.optimization import Average, make_optimizer, select_parameters, set_modes, set_rate
from vlm.run_state import Position, load_state, put_back, restore, save_state, snapshot
from vlm.training_data import (
    FeatureCache,
    FrozenMaps,
    Shared,
    console,
    known_of,
    labels_by_modality,
    tell_apart,
    usable,
)
from vlm.types import InputError, StudyBatch
from vlm.validation import Validator

IMAGE_PARTS = {"vision", "pyramid", "knowledge", "detection"}


class Run:
    """What the stages share.

    Args:
        config: resolved. checkpoint: the model to train, changed in place. out: the run's folder. shared: with other
            runs of this process.
    """

    def __init__(self, config: Config, checkpoint: Checkpoint, out: Path, shared: Shared | None = None) -> None:
        self.config, self.checkpoint, self.out = config, checkpoint, out
        self.model = checkpoint.model
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.main = self.accelerator.is_main_process
        self.dtype = autocast_dtype(config.training.dtype, self.accelerator.device)
        self.builder = ExampleBuilder(
            config.data, checkpoint.labels, config.model.detection.labels, checkpoint.graph, checkpoint.tokenizer,
            config.training.loss.concept_weight, view=config.model.knowledge.view,
            begin=config.model.language.frame == "prompt",
        )  # fmt: skip
        seed = config.training.seed
        self.shared = shared or Shared()
        named = (*config.data.train, *config.data.validation)
        sets = tell_apart([(s, self.shared.load(s, self.builder, self.main)) for s in named])
        self.sets = sets[: len(config.data.train)]
        validation = [e for _, examples in sets[len(config.data.train) :] for e in examples]
        if not self.sets:
            raise InputError("data.train: names no data set")
        self.validator = Validator(self.builder, validation, config, self.dtype)
        self.seed = seed
        self.rules = graph_rules(checkpoint)
        self.cache: FeatureCache | None = None

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        if self.main:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def stage(self, number: int, stage: Stage, resumed: tuple[Position, dict[str, Tensor]] | None) -> dict[str, float]:
        """Trains one stage; afterwards the model is the stage's best."""
        return StageLoop(self, number, stage, resumed).fit()


class StageLoop:
    """The epochs of one stage."""

    def __init__(self, run: Run, number: int, stage: Stage, resumed: tuple[Position, dict[str, Tensor]] | None) -> None:
        self.run, self.number, self.stage = run, number, stage
        settings = run.config.training
        self.sets = [
            (source, usable(examples, stage.losses))
            for index, (source, examples) in enumerate(run.sets)
            if stage.sets is None or index in stage.sets
        ]
        if not any(len(examples) for _, examples in self.sets):
            raise InputError(
                f"training.stages.{stage.name}: no study has what its losses ({', '.join(stage.losses)}) need"
            )
        self.groups = select_parameters(run.model, stage, run.config.model.vision.frozen_stages)
        if not self.groups:
            raise InputError(f"training.stages.{stage.name}: nothing to train in {', '.join(stage.train)}")
        self.optimizer = make_optimizer(self.groups, stage, settings.weight_decay)
        self.average = Average(self.groups, settings.ema)
        self.position = Position(stage=number)
        self.best: dict[str, Tensor] = {}
        if resumed is not None:
            self.position, tensors = resumed
            self.best = restore(tensors, run.model, self.groups, self.optimizer, self.average)
        self.maps = self._maps()
        self.cache = self._cache()
        run.model, self.optimizer = run.accelerator.prepare(run.model, self.optimizer)
        self.epochs = math.ceil(stage.epochs)
        sizes = [len(self._plan(epoch)[1]) for epoch in range(self.epochs)]
        self.total = max(1, round(sum(sizes) * stage.epochs / self.epochs))
        self.adapting = "adapter" in stage.train and "report" in stage.losses
        if self.adapting:
            adapters.set_steps(run.checkpoint.model.language.model, self.total // stage.accumulate)

    def _maps(self) -> FrozenMaps | None:
        """The vision model's maps, kept when it does not learn and images are not varied."""
        run = self.run
        fixed = "vision" not in self.stage.train and not run.config.data.augment
        run.validator.maps = maps = run.shared.maps_of(run.dtype, run.model.vision) if fixed else None
        return maps

    def _cache(self) -> FeatureCache | None:
        """Features of the image half, when nothing of it learns and only the report's loss is asked for.

        They are kept for the next stage, for as long as no stage trains the image half.
        """
        run = self.run
        if IMAGE_PARTS & set(self.stage.train):
            run.cache = None
            return None
        if set(self.stage.losses) != {"report"} or any(isinstance(s, StreamedExamples) for _, s in self.sets):
            return None  # a streamed set may be larger than memory, and so are its features
        collate = Collator(run.builder)
        if run.cache is None or run.cache.copies != self.stage.cache_copies:
            run.cache = FeatureCache(self.stage.cache_copies, run.seed, run.dtype, self.maps)
        run.cache.fill(run.model, collate, [e for _, s in self.sets for e in s])
        run.cache.fill_plain(run.model, collate, run.validator.examples)
        return run.cache

    def _plan(self, epoch: int) -> tuple[Sequence[Example], list[list[int]]]:
        """The epoch's examples and this process's batches of them."""
        rng = np.random.default_rng([self.run.seed, self.number, epoch])
        sets = [(source.weight, examples) for source, examples in self.sets]
        examples, batches = epoch_plan(sets, self.stage.batch_size, rng, self.run.config.data.buffer)
        world, rank = self.run.accelerator.num_processes, self.run.accelerator.process_index
        return examples, batches[rank : len(batches) - len(batches) % world : world]

    def fit(self) -> dict[str, float]:
        """Runs the epochs that remain and returns the best validation metrics."""
        position = self.position
        with _progress(self.run.main) as bar:
            task = bar.add_task(self.stage.name, total=self.total, completed=position.step, info="")
            for epoch in range(position.epoch, self.epochs):
                terms = self._epoch(epoch, bar, task)
                with self.average.in_place():
                    self._validate(epoch, terms)
                position.epoch, position.batch = epoch + 1, 0
                self._save()
        put_back(self.run.model, self.best)
        self.position = Position(stage=self.number + 1)
        save_state(self.run.out, self.position, self.run.model, {}, None, None, {}, self.run.config.training.keep)
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
            terms = self._step(epoch, [examples[i] for i in batches[index]])
            position.epoch, position.batch, position.step = epoch, index + 1, position.step + 1
            for name, value in terms.items():
                sums.setdefault(name, []).append(value)
            bar.update(
                task, completed=position.step, info=" ".join(f"{k} {np.mean(v[-50:]):.3f}" for k, v in sums.items())
            )
            if position.step % 10 == 0:
                self.run.log(
                    {"stage": self.stage.name, "step": position.step, **{k: round(v, 5) for k, v in terms.items()}}
                )
            if time.monotonic() - saved > self.run.config.training.save_minutes * 60:
                self._save()
                saved = time.monotonic()
        return sums

    def _step(self, epoch: int, examples: list[Example]) -> dict[str, float]:
        """One batch: forward, named losses, weighted once, backward."""
        run, settings = self.run, self.run.config.training
        step = self.position.step
        torch.manual_seed(hash((run.seed, self.number, step)) % 2**63)
        set_rate(self.optimizer, step, self.total, self.stage.warmup)
        rng = np.random.default_rng([run.seed, self.number, step, run.accelerator.process_index])
        data = run.config.data
        collate = Collator(run.builder, data.augment, data.clinical_dropout, rng, skip_pixels=self.cache is not None)
        batch = collate(examples)
        if self.cache is not None:
            batch = self.cache.attach(batch, epoch)
        batch = move(batch, run.accelerator.device)
        if self.maps is not None and self.cache is None:
            batch = self.maps.attach(run.accelerator.unwrap_model(run.model), batch)
        wanted = self.stage.losses
        with torch.autocast(run.accelerator.device.type, run.dtype or torch.bfloat16, enabled=run.dtype is not None):
            output = run.model(batch, report="report" in wanted, detect="detection" in wanted)
        terms = loss_terms(output, batch, wanted, run.rules, settings.label_smoothing)
        if not terms:
            return {}
        total = torch.stack([value * getattr(settings.loss, WEIGHT_OF[name]) for name, value in terms.items()]).sum()
        orthogonal = adapters.penalty(run.checkpoint.model.language.model) if self.adapting else None
        if orthogonal is not None:
            total = total + orthogonal
        if not torch.isfinite(total):
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
            raise InputError(
                f"the loss is not finite ({shown}) in studies {', '.join(batch.ids[:8])}; "
                "lower the learning rate or check them"
            )
        run.accelerator.backward(total / self.stage.accumulate)
        if (step + 1) % self.stage.accumulate == 0:
            run.accelerator.clip_grad_norm_([p for g in self.groups.values() for p in g], settings.clip)
            self.optimizer.step()
            if self.adapting:
                adapters.after_step(run.checkpoint.model.language.model, (step + 1) // self.stage.accumulate - 1)
            self.optimizer.zero_grad(set_to_none=True)
            self.average.update(step)
        return {name: float(value.detach()) for name, value in terms.items()}

    def _validate(self, epoch: int, terms: dict[str, list[float]]) -> None:
        metrics = (
            self.run.validator.measure(self.run.model, self.stage.losses, self.cache)
            if self.run.validator.examples
            else {}
        )
        metrics |= {f"train_{name}": float(np.mean(values)) for name, values in terms.items()}
        choice = self.stage.choose_by
        score = -metrics.get("loss", 0.0) if choice == "loss" else metrics.get(choice, 0.0)
        self.run.log({"stage": self.stage.name, "epoch": epoch + 1, "step": self.position.step, **metrics})
        if self.run.main:
            console.print(
                f"{self.stage.name} {epoch + 1}/{self.epochs}: " + " ".join(f"{k} {v:.4f}" for k, v in metrics.items())
            )
        if score > self.position.best_score or not self.best:
            self.position.best_score, self.position.best_metrics = score, metrics
            self.best = snapshot(self.run.model, self.groups)

    def _save(self) -> None:
        if self.run.main:
            keep = self.run.config.training.keep
            save_state(
                self.run.out, self.position, self.run.model, self.groups, self.optimizer, self.average, self.best, keep
            )


WEIGHT_OF = {
    "report": "report", "findings": "findings", "implication": "implication", "alignment": "alignment",
    "box_class": "detection", "box_giou": "detection", "box_quality": "detection",
}  # fmt: skip
"""The configured weight of each named term."""


def train(checkpoint: Checkpoint, out: Path, resume: bool = True, shared: Shared | None = None) -> dict[str, Any]:
    """Trains all stages and leaves the best model of the last in `out/best`.

    Args:
        config: resolved. checkpoint: a model to start from, changed in place. out: the run's folder. resume: go on
            from `out/state`. shared: examples and maps of other runs of this process, read and added to.

    Returns:
        Each stage's best validation metrics.

    Raises:
        InputError: nothing to learn from, a folder of another run, or a loss that is not finite.
    """
    config = checkpoint.config
    own_folder(out, config, resume)
    # Sums over graph edges and words would otherwise depend on how threads interleave, and a resumed run would drift.
    torch.use_deterministic_algorithms(True, warn_only=True)
    run = Run(config, checkpoint, out, shared)
    resumed = load_state(out) if resume else None
    first = resumed[0].stage if resumed else 0
    if resumed and first >= len(config.training.stages):
        restore(resumed[1], run.model, {}, None, None)
    metrics = dict(checkpoint.metrics)
    for number, stage in enumerate(config.training.stages):
        if number < first:
            continue
        if resumed and number == first and resumed[0].step == 0:
            restore(resumed[1], run.model, {}, None, None)
            resumed = None
        metrics[stage.name] = run.stage(number, stage, resumed if number == first else None)
    checkpoint.metrics = metrics
    if run.main:
        if run.validator.examples:
            checkpoint.calibration = run.validator.calibrate(run.model, shared)
        known = (fact for _, examples in run.sets for fact in known_of(examples))
        chosen = {name: list(labels) for name, labels in config.data.modality_labels.items()}
        checkpoint.calibration.modalities = labels_by_modality(known, checkpoint.labels) | chosen
        save_checkpoint(out / "best", checkpoint)
        draw_curve(out)
    return metrics


def loss_terms(
    output: ModelOutput,
    batch: StudyBatch,
    wanted: tuple[str, ...],
    rules: tuple[Tensor, Tensor],
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The named, unweighted terms that the batch can speak of."""
    terms: dict[str, Tensor | None] = {}
    image = output.image
    if "report" in wanted and output.report_logits is not None and len(output.report_logits):
        assert output.report_index is not None
        terms["report"] = losses.report_loss(
            output.report_logits, output.report_index, batch.report_labels, batch.report_weights, smoothing
        )
    if "findings" in wanted:
        terms["findings"] = losses.finding_loss(image.logits, batch.finding_targets)
    if "detection" in wanted and image.dense is not None:
        d = image.dense
        terms |= losses.detection_loss(d.logits, d.quality, d.boxes_xyxy, d.points, d.strides, batch)
    if "knowledge" in wanted:
        terms["implication"] = losses.implication_loss(image.logits, *(r.to(image.logits.device) for r in rules))
        if output.alignment is not None:
            terms["alignment"] = losses.alignment_loss(output.alignment, batch.finding_targets)
    return {name: value for name, value in terms.items() if value is not None}


def graph_rules(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """(n, 2) child and parent, and (m, 2) exclusive pairs, as indices into the label list."""
    labels, graph = checkpoint.labels, checkpoint.graph
    at = {name: i for i, name in enumerate(labels)}
    implies = [(at[c], at[p]) for c in labels for p in graph.ancestors(c) if p in at and p != c]
    excludes = sorted({(min(at[a], at[b]), max(at[a], at[b])) for a, b in graph.exclusions() if a in at and b in at})
    return torch.tensor(implies, dtype=torch.long).view(-1, 2), torch.tensor(excludes, dtype=torch.long).view(-1, 2)


def autocast_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is asked for, or where the processor multiplies it natively; None for float32."""
    if setting == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bf16()
        )
        return torch.bfloat16 if native else None
    return torch.bfloat16 if setting == "bfloat16" else None


def _has_bf16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def own_folder(out: Path, config: Config, resume: bool) -> None:
    """Keeps the resolved configuration beside the run.

    Raises:
        InputError: the folder holds a run of another configuration; what differs is listed.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    mine = config.model_dump(mode="json")
    if resume and path.is_file() and (out / "state" / "latest.json").is_file():
        theirs, ours = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(mine)
        different = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
        if different:
            shown = ", ".join(different[:5])
            raise InputError(
                f"{out}: holds a run with another configuration ({shown}); "
                "choose another --out, or start anew with --no-resume"
            )
    path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if pairs is None:
        return {prefix.rstrip("."): tree}
    return {k: v for key, sub in pairs for k, v in _flat(sub, f"{prefix}{key}.").items()}


def _progress(show: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
    return Progress(*columns, console=console, disable=not show)


def draw_curve(out: Path) -> None:
    """Draws metrics.jsonl as `curve.png`: training terms by step, validation by epoch, stages side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    stages = list(dict.fromkeys(r["stage"] for r in rows))
    figure, axes = pyplot.subplots(1, max(1, len(stages)), figsize=(5 * max(1, len(stages)), 4), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        steps = [r for r in rows if r["stage"] == stage and "epoch" not in r]
        epochs = [r for r in rows if r["stage"] == stage and "epoch" in r]
        for name in sorted({k for r in steps for k in r} - {"stage", "step"}):
            axis.plot(
                [r["step"] for r in steps if name in r], [r[name] for r in steps if name in r], alpha=0.5, label=name
            )
        for name in ("loss", "auc", "map", "cider"):
            if any(name in r for r in epochs):
                axis.plot([r["step"] for r in epochs], [r.get(name) for r in epochs], "o-", label=f"validation {name}")
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "curve.png", dpi=110)
    pyplot.close(figure)
