"""Our loop against `transformers.Trainer` with a plain padded collator, in one alternating run.

Both fine-tune bridge and LoRA adapter of the shipped checkpoint on the same studies, with the same batch size, dtype,
optimizer and clipping; each round runs an epoch of every way, one after the other, so that what else the machine does
falls on all of them. Ways between the two differ in one thing more each, which says what contributes how much:

    plain        Trainer: images decoded, encoded, and all logits computed in every step; random batches; SDPA
    + decoded    images decoded once and kept
    + features   the frozen image half computed once (exact: nothing of it learns, images are not varied)
    + buckets    batches of like length
    + labelled   logits of the labelled positions alone
    + eager      eager attention, which our loop takes in bf16 on CPUs alone
    ours         `vlm train`'s own loop, which does all that helps; a LoRA layer is one operation in it, and drop-out,
                 in attention too, takes less
    ours, bf16   the same with the frozen language model held in bf16; left out where autocast isn't bf16

An epoch holds the same real tokens (of prompts, images and reports, without padding) for all, so tokens a second
compare like epochs. What is computed once is timed apart and spread over `--epochs`.

    python scripts/bench_training.py --json training.json        # a quarter of an hour on two quiet cores
    python scripts/bench_training.py --quick                     # a look at whether it runs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vlm import training
from vlm.assembly import starting_point
from vlm.checkpoint import Checkpoint
from vlm.cli.progress import calm_libraries
from vlm.config import parse_config
from vlm.data.batches import Collator, bucketed
from vlm.data.examples import Example, ExampleBuilder
from vlm.models.report_generator import ReportGenerator
from vlm.optimization import select_parameters, set_modes
from vlm.processes import autocast_dtype
from vlm.training_data import FeatureCache, open_set
from vlm.types import Study, StudyBatch

ROOT = Path(__file__).resolve().parents[1]
LADDER = ("decoded", "features", "buckets", "labelled", "eager")
STAGE = {"name": "adapter", "train": ["bridge", "adapter"], "losses": ["report"], "lr": 5.0e-4}


@dataclass(slots=True)
class Times:
    """Seconds of each epoch: on the wall and on all cores; and of the parts of our loop's steps."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)


class Plain(nn.Module):
    """The composer as Trainer wants it: keyword arguments in, loss out.

    Args:
        model: the composer. labelled: logits of the labelled positions alone, instead of all.
    """

    def __init__(self, model: ReportGenerator, labelled: bool) -> None:
        super().__init__()
        self.model, self.labelled = model, labelled

    def forward(self, batch: StudyBatch) -> dict[str, Tensor]:
        """Mean cross-entropy of the report's tokens, weighted as in our loop."""
        image = self.model.encode(batch, detect=False)
        prefix, mask = self.model.prefix(image, batch)
        language = self.model.language
        targets = batch.report_labels.flatten()
        if self.labelled:
            logits, index = language(prefix, mask, batch.report_ids, batch.report_mask, batch.report_labels)
            nll = F.cross_entropy(logits, targets[index], reduction="none")
            weights = batch.report_weights.flatten()[index]
            return {"loss": (nll * weights).sum() / weights.sum()}
        inputs = torch.cat([prefix, language.embed(batch.report_ids).to(prefix.dtype)], dim=1)
        mask = torch.cat([mask, batch.report_mask], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        out = language.base(inputs_embeds=inputs, attention_mask=mask.long(), position_ids=positions, use_cache=False)
        first, count = prefix.shape[1] - 1, batch.report_ids.shape[1]
        logits = out.logits.float()[:, first : first + count].flatten(0, 1)
        nll = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
        weights = batch.report_weights.flatten() * (targets != -100)
        return {"loss": (nll * weights).sum() / weights.sum()}


class Studies(Dataset):
    """Examples, decoded when they are asked for or kept."""

    def __init__(self, studies: Sequence[Study], builder: ExampleBuilder, keep: bool) -> None:
        self.studies, self.builder = studies, builder
        self.kept = [builder.build(s) for s in studies] if keep else None

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Example:
        return self.kept[index] if self.kept is not None else self.builder.build(self.studies[index])


class Epochs(TrainerCallback):
    """Times Trainer's epoch, without its setting up."""

    def __init__(self, times: Times) -> None:
        self.times = times

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.times.wall.append(time.perf_counter() - self.begun[0])
        self.times.cpu.append(time.process_time() - self.begun[1])


class Bucketed(Trainer):
    """Trainer with batches that were drawn elsewhere."""

    batches: list[list[int]] | None = None

    def get_train_dataloader(self) -> DataLoader:
        """Its own loader, or one over the drawn batches."""
        if self.batches is None:
            return super().get_train_dataloader()
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)


class Bench:
    """The ways, each with a model of its own; an epoch of one at a time.

    Args:
        arguments: the command line. folder: scratch.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.times: dict[str, Times] = {}
        data = {"path": str(arguments.data), "format": "openi", "split": ["train"], "limit": arguments.studies}
        made = {"format": "phantom", "count": arguments.studies, "seed": 3}
        stage = {**STAGE, "epochs": 1000, "batch_size": arguments.batch_size}
        self.tree = {
            "start": "shipped",
            "data": {"train": [data if arguments.data else made], "augment": False, "clinical_dropout": 0.0},
            "training": {"stages": [stage], "dtype": arguments.dtype},
        }
        self.config = parse_config(self.tree, "bench_training.py")
        self.dtype = autocast_dtype(arguments.dtype, torch.device("cpu"))
        checkpoint = self.fresh()
        self.builder = ExampleBuilder(
            checkpoint.config.data, checkpoint.labels, checkpoint.config.model.detection.labels, checkpoint.graph,
            checkpoint.tokenizer, checkpoint.config.training.loss.concept_weight, view="radscribe",
            begin=checkpoint.config.model.language.frame == "prompt",
        )  # fmt: skip
        _, count, study_at = open_set(self.config.data.train[0])
        self.studies = [s for s in map(study_at, range(count)) if s.report]
        self.once: dict[str, float] = {}

    def fresh(self) -> Checkpoint:
        """The shipped checkpoint, loaded anew."""
        return starting_point(self.config, None)

    def peer(self, chosen: frozenset[str]) -> Callable[[int], None]:
        """Trainer with some rungs of the ladder; gives what runs an epoch."""
        checkpoint = self.fresh()
        model, stage = checkpoint.model, self.config.training.stages[0]
        select_parameters(model, stage, checkpoint.config.model.vision.frozen_stages)
        set_modes(model, stage)
        model.language.base.set_attn_implementation("eager" if "eager" in chosen else "sdpa")
        begun = time.process_time()
        data = Studies(self.studies, self.builder, "decoded" in chosen)
        if "decoded" in chosen:
            self.once["decoding"] = time.process_time() - begun
        rng = np.random.default_rng(0)
        collate = Collator(self.builder, False, 0.0, rng, skip_pixels="features" in chosen)
        cache: FeatureCache | None = None
        if "features" in chosen:
            begun = time.process_time()
            cache = FeatureCache(1, 0, self.dtype)
            cache.fill(model, Collator(self.builder), data.kept or [])
            self.once["features"] = time.process_time() - begun
            set_modes(model, stage)
        wrapped = Plain(model, "labelled" in chosen)

        def collated(examples: list[Example]) -> dict[str, Any]:
            batch = collate(examples)
            return {"batch": batch if cache is None else cache.attach(batch, 0)}

        times = self.times.setdefault(_name(chosen), Times())

        def epoch(number: int) -> None:
            trainer = Bucketed(
                wrapped, self._settings(number), data_collator=collated, train_dataset=data, callbacks=[Epochs(times)]
            )
            if "buckets" in chosen:
                kept = data.kept or []
                trainer.batches = list(bucketed(kept, self.arguments.batch_size, np.random.default_rng(number)))
            trainer.remove_callback(PrinterCallback)
            wrapped.train = lambda mode=True: wrapped  # type: ignore[method-assign, assignment] # modes stay as set
            trainer.train()

        return epoch

    def _settings(self, number: int) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(self.folder / "trainer"), per_device_train_batch_size=self.arguments.batch_size,
            num_train_epochs=1, learning_rate=STAGE["lr"], adam_beta2=0.98, weight_decay=0.05, max_grad_norm=1.0,
            lr_scheduler_type="cosine", bf16=self.dtype is not None, use_cpu=True, logging_steps=10, report_to=[],
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False, seed=number, log_level="error",
        )  # fmt: skip

    def ours(self, half: bool = False) -> Callable[[int], None]:
        """Our loop; gives what runs an epoch."""
        checkpoint = self.fresh()
        name = "ours, bf16" if half else "ours"
        if half:
            for parameter in checkpoint.model.language.base.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        out = self.folder / name.replace(", ", "-")
        out.mkdir()
        run = training.Run(checkpoint.config, checkpoint, out)
        begun = time.process_time()
        loop = training.StageLoop(run, 0, checkpoint.config.training.stages[0], None)
        self.once.setdefault("features", time.process_time() - begun)
        times = self.times.setdefault(name, Times())
        _watch(loop, times.parts)

        def epoch(number: int) -> None:
            loop.position.epoch, loop.position.batch = number, 0
            begun = time.perf_counter(), time.process_time()
            with Progress(disable=True) as bar:
                loop._epoch(number, bar, bar.add_task("", total=1))
            times.wall.append(time.perf_counter() - begun[0])
            times.cpu.append(time.process_time() - begun[1])

        return epoch

    def tokens(self) -> int:
        """Real tokens of an epoch: prompts, images, evidence, reports."""
        shape = self.fresh().config.model
        total = 0
        for study in self.studies:
            example = self.builder.build(study)
            prompt = self.builder.prompt(example.modality, example.clinical, example.first_section, [])
            total += len(self.builder.prompt_ids(prompt)) + len(example.report_ids)
            total += len(example.pixels) * shape.visual_grid**2 + len(self.builder.labels)
        return total


def _name(chosen: frozenset[str]) -> str:
    return "plain" if not chosen else f"+ {LADDER[len(chosen) - 1]}"


def _watch(loop: Any, parts: dict[str, float]) -> None:
    """Adds the seconds of forward, backward and optimizer to `parts`."""

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                parts[part] = parts.get(part, 0.0) + time.perf_counter() - begun

        return run

    loop.step_module.forward = timed("forward", loop.step_module.forward)
    loop.run.accelerator.backward = timed("backward", loop.run.accelerator.backward)
    loop._clip = timed("optimizer", loop._clip)
    loop.optimizer.step = timed("optimizer", loop.optimizer.step)


def rounds(ways: dict[str, Callable[[int], None]], count: int) -> Iterator[int]:
    """Runs an epoch of every way in turn, in the other order every other time."""
    for number in range(count):
        names = list(ways)
        for name in names if number % 2 == 0 else names[::-1]:
            ways[name](number)
        yield number


def main() -> None:
    """Reads the command line, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("RADSCRIBE_DATA", ROOT.parent / "shared" / "data")) / "openi"
    parser.add_argument("--data", type=Path, default=root if root.is_dir() else None, help="Open-i; default: phantoms")
    parser.add_argument("--studies", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="over which what is computed once is spread")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="32 studies, one round")
    parser.add_argument("--ends", action="store_true", help="only plain and ours, nothing between")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.studies, arguments.rounds, arguments.batch_size = 32, 1, 8
    console = Console()
    calm_libraries()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        ladder = [frozenset(LADDER[:n]) for n in range(1 if arguments.ends else len(LADDER) + 1)]
        ways = {_name(chosen): bench.peer(chosen) for chosen in ladder}
        ways["ours"] = bench.ours()
        if bench.dtype is not None and not arguments.ends:
            ways["ours, bf16"] = bench.ours(half=True)
        for number in rounds(ways, arguments.rounds + 1):
            if number == 0:  # the first of each warms up
                for times in bench.times.values():
                    times.wall.clear(), times.cpu.clear(), times.parts.clear()
        tokens = bench.tokens()
    result = summary(bench, tokens, arguments)
    show(console, result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def summary(bench: Bench, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured: for each way the median epoch, and ratios within the rounds."""
    plain = bench.times["plain"]
    rows = {}
    for name, times in bench.times.items():
        pairs = [a / b for a, b in zip(plain.wall, times.wall, strict=True)]
        rows[name] = {
            "epoch_s": statistics.median(times.wall), "cpu_s": statistics.median(times.cpu),
            "tokens_per_s": tokens / statistics.median(times.wall),
            "times_plain": statistics.median(pairs), "lowest": min(pairs), "highest": max(pairs),
            "times_plain_cpu": statistics.median(a / b for a, b in zip(plain.cpu, times.cpu, strict=True)),
        }  # fmt: skip
    own = bench.times["ours"]
    whole, parts = sum(own.wall), own.parts
    once = sum(bench.once.values())
    spread = arguments.epochs
    return {
        "studies": len(bench.studies), "tokens": tokens, "batch_size": arguments.batch_size,
        "dtype": str(bench.dtype), "threads": torch.get_num_threads(), "rounds": arguments.rounds, "ways": rows,
        "once_s": bench.once, "epochs": spread,
        "times_plain_with_once": spread * rows["plain"]["cpu_s"] / (spread * rows["ours"]["cpu_s"] + once),
        "loop": {name: seconds / whole for name, seconds in parts.items()},
        "outside": 1 - sum(parts.values()) / whole,
    }  # fmt: skip


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints it."""
    title = f"{result['studies']} studies, batches of {result['batch_size']}, {result['dtype']}"
    title += f", {result['threads']} threads"
    table = Table(
        "way", "epoch s", "cores' s", "real tokens/s", "times plain", "lowest to highest", "by cores", title=title
    )
    for name, row in result["ways"].items():
        table.add_row(
            name, f"{row['epoch_s']:.2f}", f"{row['cpu_s']:.2f}", f"{row['tokens_per_s']:.0f}",
            f"{row['times_plain']:.2f}", f"{row['lowest']:.2f} to {row['highest']:.2f}",
            f"{row['times_plain_cpu']:.2f}",
        )  # fmt: skip
    console.print(table)
    once = ", ".join(f"{name} {seconds:.1f} cores' s" for name, seconds in result["once_s"].items())
    console.print(
        f"once: {once}; spread over {result['epochs']} epochs ours is {result['times_plain_with_once']:.2f} times "
        "plain by cores"
    )
    loop = ", ".join(f"{name} {100 * share:.1f}%" for name, share in result["loop"].items())
    console.print(f"our loop: {loop}, all else {100 * result['outside']:.1f}%")


if __name__ == "__main__":
    main()
