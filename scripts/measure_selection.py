"""Does it pay to choose what is annotated next? Simulates annotation on Open-i and compares `vlm data select`'s
strategies with chance.

    RADSCRIBE_DATA=../shared/data python scripts/measure_selection.py --out runs/selection

For each seed a model learns the findings of --start studies drawn by chance; then, --rounds times, each strategy picks
--n more of the pool by the model that it has trained so far, their labels are uncovered, and a model is trained anew on
all that it holds: the same number of steps for all. Every strategy begins with the same studies, the same first
weights and the same order of numbers.

The model is small so that this takes minutes: ImageNet weights that stay frozen and have seen no radiograph, with
their maps computed once, 128-pixel images, no boxes, no text. Pool: R2Gen's train part; what is learnt is measured on
its validation part and on studies in neither part; other such studies calibrate. Mean AUC over labels with at least ten
positives; macro-F1 over the same with cuts from the other half of the studies.

Each (strategy, seed) that has finished is not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vlm.ablation import cell, summary
from vlm.cli.progress import calm_libraries
from vlm.config import Stage, parse_config
from vlm.types import InputError, Study

if TYPE_CHECKING:  # the rest is imported where it is used: model libraries take seconds, and have notes to print
    from torch import Tensor

    from vlm.checkpoint import Checkpoint
    from vlm.data.examples import Example
    from vlm.models.report_generator import ReportGenerator
    from vlm.optimization import Average
    from vlm.selecting.looking import Look
    from vlm.training_data import Shared

console = Console()
err = Console(stderr=True)

ARMS = {
    "random": ("random", 0), "uncertainty": ("uncertainty", 3), "uncertainty, highest": ("uncertainty", 1),
    "diversity": ("diversity", 1), "disagreement": ("disagreement", 3),
}  # fmt: skip
"""Row of the table -> strategy, and among how many times n the final choice is made (1: the highest scores)."""
TREE: dict[str, Any] = {
    "data": {"image_size": {"default": 128}, "augment": False},
    "model": {
        "width": 64,
        "vision": {
            "name": "mobilenetv2_100",
            "weights": "weights/mobilenetv2_100.imagenet.safetensors",
            "options": {"pad_type": "same"},
        },
        "hierarchy": {"enabled": False},
        "detection": {"enabled": False},
        "language": {"path": "shipped", "adapter": {"type": "none"}},
    },
    "training": {"dtype": "float32", "ema": 0.95},
}
STAGE = Stage(name="findings", epochs=1, train=("pyramid", "knowledge"), losses=("findings", "knowledge"), lr=1e-3)
BATCH = 16


@dataclass(slots=True)
class World:
    """What all runs share: examples by part, and the frozen model's maps."""

    pool: list[Example]
    judged: list[Example]
    calibrating: list[Example]
    shared: Shared
    seen: dict[tuple[int, tuple[int, ...], int], list[Look]]


def read_world(pool: int, limit: int | None) -> World:
    """Reads Open-i and encodes every image once."""
    from vlm.assembly import starting_point
    from vlm.config import DataSet
    from vlm.data.batches import Collator, bucketed
    from vlm.data.sources import read_studies
    from vlm.training_data import Shared

    checkpoint = starting_point(parse_config(TREE, "script"), None)
    collate = Collator(builder_of(checkpoint))
    studies = read_studies(DataSet(path=Path("openi")).location(), "openi")
    by_split: dict[str | None, list[Study]] = {}
    for study in studies:
        by_split.setdefault(study.split, []).append(study)
    rng = np.random.default_rng(0)
    pooled = rng.permutation(len(by_split["train"]))[:pool]
    extra = by_split["extra"]
    parts = [[by_split["train"][i] for i in pooled], (by_split["val"] + extra[120:420])[:limit], extra[:120]]
    world = World(*([collate.builder.build(s) for s in part] for part in parts), Shared(), {})
    maps = world.shared.maps_of(None, checkpoint.model.vision)
    every = [*world.pool, *world.judged, *world.calibrating]
    for indices in track(list(bucketed(every, 16, None)), description="maps", console=err, transient=True):
        maps.attach(checkpoint.model, collate([every[i] for i in indices]))
    return world


def builder_of(checkpoint: Checkpoint) -> Any:
    """What makes examples for a checkpoint."""
    from vlm.data.examples import ExampleBuilder

    config = checkpoint.config
    return ExampleBuilder(
        config.data, checkpoint.labels, config.model.detection.labels, checkpoint.graph, checkpoint.tokenizer
    )


def learn(examples: list[Example], world: World, seed: int, steps: int) -> Checkpoint:
    """A model trained anew on these studies, calibrated."""
    from vlm.assembly import starting_point
    from vlm.data.batches import Collator
    from vlm.optimization import Average, make_optimizer, select_parameters, set_modes, set_rate
    from vlm.steps import WEIGHT_OF, TrainStep, graph_rules
    from vlm.validation import Validator

    config = parse_config(TREE | {"training": TREE["training"] | {"seed": seed}}, "script")
    checkpoint = starting_point(config, None)
    model, collate = checkpoint.model, Collator(builder_of(checkpoint))
    maps = world.shared.maps_of(None, model.vision)
    groups = select_parameters(model, STAGE, 0)
    optimizer, step = make_optimizer(groups, STAGE, 0.05), TrainStep(model, graph_rules(checkpoint), 0.0)
    average = Average(groups, config.training.ema)
    parameters = [p for group in groups.values() for p in group]
    rng = np.random.default_rng(seed)
    order: list[int] = []
    set_modes(model, STAGE)
    for number in range(steps):
        torch.manual_seed(1000 * seed + number)
        while len(order) < BATCH:
            order += rng.permutation(len(examples)).tolist()
        chosen, order = [examples[i] for i in order[:BATCH]], order[BATCH:]
        set_rate(optimizer, number, steps, STAGE.warmup)
        terms = step(maps.attach(model, collate(chosen)), STAGE.losses)
        torch.stack([v * getattr(config.training.loss, WEIGHT_OF[n]) for n, v in terms.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(number)
    kept = snapshot_of(average, model)
    model.load_state_dict(kept, strict=False)
    model.eval()
    checkpoint.calibration = Validator(collate.builder, world.calibrating, config, None).calibrate(model, world.shared)
    return checkpoint


def snapshot_of(average: Average, model: ReportGenerator) -> dict[str, Tensor]:
    """The weights with the running average in place."""
    with average.in_place():
        return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("language.")}


def judge(checkpoint: Checkpoint, world: World) -> dict[str, float]:
    """Mean AUC and macro-F1 of the findings."""
    from vlm.validation import FEWEST_POSITIVES, Validator, best_f1_cut, mean_auc

    validator = Validator(builder_of(checkpoint), world.judged, checkpoint.config, None)
    validator.maps = world.shared.maps_of(None, checkpoint.model.vision)
    seen = validator.collect(checkpoint.model)
    logits, targets = seen.logits.numpy(), seen.targets.numpy()
    score, fold = 1 / (1 + np.exp(-logits.astype(float))), np.arange(len(logits)) % 2
    values = []
    for label in range(logits.shape[1]):
        truth, known = targets[:, label] == 1, ~np.isnan(targets[:, label])
        if truth.sum() < FEWEST_POSITIVES:
            continue
        stated = np.zeros(len(truth), bool)
        for half in (0, 1):
            stated[fold == half] = score[fold == half, label] >= best_f1_cut(
                score[fold != half, label], targets[fold != half, label]
            )
        values.append(2 * (stated & truth).sum() / max(1, (stated & known).sum() + truth.sum()))
    return {"auc": mean_auc(logits, targets), "f1": float(np.mean(values))}


def look_at(checkpoint: Checkpoint, held: list[int], world: World, passes: int, seed: int) -> list[Look]:
    """What the model that was trained on these studies of the pool says of all of it; the first model is asked by
    several strategies, and answers once."""
    from vlm.selecting.looking import Member

    key = (seed, tuple(held), passes)
    if key not in world.seen:
        member = Member(checkpoint)
        maps, collate = world.shared.maps_of(None, checkpoint.model.vision), member.collate
        batches = ((e, maps.attach(checkpoint.model, collate([e]))) for e in world.pool)
        world.seen[key] = [member.look(e, batch, passes, seed) for e, batch in batches]
    return world.seen[key]


def pick(name: str, checkpoint: Checkpoint, held: list[int], world: World, n: int, seed: int) -> list[int]:
    """Indices of the pool that a strategy chooses next."""
    from vlm.selecting.looking import Committee, Member
    from vlm.selecting.picking import choose

    strategy, breadth = ARMS[name]
    free = [i for i in range(len(world.pool)) if i not in set(held)]
    if strategy == "random":
        return np.random.default_rng([seed, len(held)]).choice(free, n, replace=False).tolist()  # type: ignore[no-any-return]
    passes = 10 if strategy == "disagreement" else 1
    looks = look_at(checkpoint, held, world, passes, seed)
    committee = Committee([Member(checkpoint)], passes, seed)
    studies, centres = [Study(str(i), []) for i in free], [looks[i] for i in held]
    picks = choose(committee, studies, [looks[i] for i in free], centres, n, strategy, breadth)
    return [int(p.study.id) for p in picks]


def run_seed(names: list[str], seed: int, world: World, options: argparse.Namespace, show: Any) -> None:
    """The first model of a seed, then every strategy from there."""
    todo = [name for name in names if read_unit(options, name, seed) is None]
    if not todo:
        return
    start = np.random.default_rng([seed, 7]).permutation(len(world.pool))[: options.start].tolist()
    first = learn([world.pool[i] for i in start], world, seed, options.steps)
    begun = judge(first, world)
    for name in todo:
        held, checkpoint, rows = list(start), first, [begun | {"studies": options.start}]
        for _ in range(options.rounds):
            held += pick(name, checkpoint, held, world, options.n, seed)
            checkpoint = learn([world.pool[i] for i in held], world, seed, options.steps)
            rows.append(judge(checkpoint, world) | {"studies": len(held)})
        write_json(unit_path(options, name, seed), {"options": digest(options), "rounds": rows, "picked": held})
        show(name, seed, rows)


def digest(options: argparse.Namespace) -> str:
    """What a result depends on."""
    facts = [TREE, STAGE.model_dump(mode="json"), ARMS, options.start, options.n, options.rounds, options.steps]
    facts += [options.pool, options.limit]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def unit_path(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a strategy's result for a seed lies."""
    return Path(options.out) / f"{name.replace(', ', '-')}.seed{seed}.json"


def read_unit(options: argparse.Namespace, name: str, seed: int) -> list[dict[str, float]] | None:
    """A finished result; None when there is none.

    Raises:
        InputError: it was made with other options.
    """
    path = unit_path(options, name, seed)
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["options"] != digest(options):
        raise InputError(f"{path}: was measured with other options; choose another --out")
    return record["rounds"]  # type: ignore[no-any-return]


def write_json(path: Path, value: Any) -> None:
    """Writes JSON at once."""
    from vlm.data.files import write_atomic

    write_atomic(path, json.dumps(value, indent=1) + "\n")


def present(names: list[str], options: argparse.Namespace) -> None:
    """Prints the table and writes it as table.md: the mean with half its 95% interval over seeds (Student's t), and the
    paired difference to chance."""
    from vlm.data.files import write_atomic

    units = {name: [read_unit(options, name, seed) for seed in range(options.seeds)] for name in names}
    runs = {name: [u for u in own if u] for name, own in units.items()}
    sizes = [options.start + options.n * i for i in range(1, options.rounds + 1)]
    heading = ["picked by", *(f"{title} at {size}" for size in sizes for title in ("AUC", "macro-F1"))]
    heading += ["AUC over chance", "macro-F1 over chance"]
    table, lines = Table(*heading), ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for name, own in runs.items():
        cells = [cell([run[i][key] for run in own], 3) for i in range(1, options.rounds + 1) for key in ("auc", "f1")]
        for key in ("auc", "f1"):
            pairs = zip(units[name], units.get("random", [None] * options.seeds), strict=True)
            gaps = [np.mean([a[i][key] - b[i][key] for i in range(1, len(a))]) for a, b in pairs if a and b]
            mean, half = summary([float(g) for g in gaps])
            shown = "" if math.isnan(half) else f" ± {half:.3f}"
            cells.append("-" if name == "random" or math.isnan(mean) else f"{mean:+.3f}{shown}")
        table.add_row(name, *cells)
        lines.append("| " + " | ".join([name, *cells]) + " |")
    first = [run[0] for run in next(iter(runs.values()), [])]
    start = f"{len(first)} seeds; at the start, {options.start} studies: AUC {cell([r['auc'] for r in first], 3)}, "
    start += f"macro-F1 {cell([r['f1'] for r in first], 3)}. Differences are means over the rounds, paired by seed."
    (console if console.is_terminal else Console(width=170)).print(table)
    console.print(start, markup=False, highlight=False)
    write_atomic(Path(options.out) / "table.md", "\n".join([*lines, "", start]) + "\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/selection"), help="folder of results")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--pool", type=int, default=400, help="studies whose labels are hidden")
    parser.add_argument("--start", type=int, default=60, help="labelled studies at the beginning")
    parser.add_argument("--n", type=int, default=60, help="studies that are picked in a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="of 16 studies, for each model")
    parser.add_argument("--limit", type=int, default=None, help="judge by the first so many studies only")
    parser.add_argument("--only", default=";".join(ARMS), help="rows of the table, split by ';'")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.start, options.n, options.rounds, options.steps) < 1:
        raise InputError("--seeds, --start, --n, --rounds, --steps: must be at least 1")
    if options.start + options.n * options.rounds > options.pool:
        raise InputError(f"--pool {options.pool}: is smaller than --start and --n times --rounds together")
    unknown = [name for name in options.only.split(";") if name not in ARMS]
    if unknown:
        raise InputError(f"--only {unknown[0]!r} is none of {'; '.join(ARMS)}")
    return options


def main() -> None:
    """Measures what is missing, then prints the table."""
    calm_libraries()
    try:
        options = parse()
        names = options.only.split(";")
        missing = [s for s in range(options.seeds) if any(read_unit(options, name, s) is None for name in names)]
        if missing:
            world = read_world(options.pool, options.limit)

            def show(name: str, seed: int, rows: list[dict[str, float]]) -> None:
                reached = ", ".join(f"{r['studies']}: AUC {r['auc']:.3f} F1 {r['f1']:.3f}" for r in rows)
                err.print(f"seed {seed}, {name}: {reached}", markup=False, highlight=False)

            for seed in missing:
                run_seed(names, seed, world, options, show)
        present(names, options)
    except InputError as error:
        err.print(str(error), style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; run the same command again to go on", style="yellow")
        sys.exit(130)


if __name__ == "__main__":
    main()
