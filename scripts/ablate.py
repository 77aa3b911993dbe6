"""Does each part help? Trains a model with and without its parts, with every way of knowledge fusion, on one budget
and several seeds, and prints what each reaches.

    python scripts/ablate.py configs/openi.yaml --parts knowledge,hierarchy,detection --seeds 3 --out runs/ablation

Each (variant, seed) is a run of its own under --out; one that has finished is not repeated, and one that was stopped
goes on. What the configuration's `ablation` section says is laid over the rest first.

Without a part:
    knowledge   no relation of the graph, no fusion, no knowledge loss, no extra weight on concepts' words
    hierarchy   no attention within and across scales: the vision model's maps are projected and nothing more
    detection   one map (stride 16) for the boxes instead of all scales

Findings and texts are measured on the first validation set, boxes on every validation image that has them. Cuts that
turn a probability into a finding are chosen on one half of the studies and used on the other. Memory is the process's
peak above what it held before the run (data and kept maps are shared); time is of all cores, without reading data.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vlm.ablation import WITHOUT, cell, finding_metrics, groups, scaled, variant_config, variants, verdicts
from vlm.cli.progress import calm_libraries
from vlm.config import Config, lay_over, load_config
from vlm.types import InputError

if TYPE_CHECKING:  # the rest is imported where it is used: model libraries take seconds, and have notes to print
    from vlm.checkpoint import Checkpoint
    from vlm.training import Run
    from vlm.training_data import Shared

console = Console()
err = Console(stderr=True)

COLUMNS: dict[str, dict[str, tuple[str, int]]] = {
    "findings and boxes": {
        "accuracy": ("accuracy", 3), "precision": ("precision", 3), "recall": ("recall", 3), "f1": ("F1", 3),
        "auc": ("AUC", 3), "map": ("mAP", 3), "iou": ("IoU", 3),
    },
    "text and cost": {
        "bleu4": ("BLEU-4", 3), "cider": ("CIDEr", 3), "finding_f1_micro": ("finding F1", 3),
        "unique": ("unique reports", 2), "million_trained": ("trained M", 2), "memory_gib": ("memory GiB", 2),
        "core_minutes": ("core minutes", 1),
    },
}  # fmt: skip
"""Table -> metric -> heading and decimals."""
SHOWN = {key: row for table in COLUMNS.values() for key, row in table.items()}


def run_unit(config: Config, out: Path, shared: Shared) -> dict[str, float]:
    """Trains and measures one run, or reads what it reached; its weights are removed afterwards.

    Raises:
        InputError: the folder holds a run of another configuration.
    """
    from vlm.assembly import starting_point
    from vlm.optimization import select_parameters
    from vlm.training import Run, train

    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    done = out / "metrics.json"
    if done.is_file():
        record = json.loads(done.read_text(encoding="utf-8"))
        if record["config"] != digest:
            raise InputError(f"{out}: holds a run of another configuration; choose another --out")
        return dict(record["metrics"])
    resumed = (out / "state" / "latest.json").is_file()
    checkpoint = starting_point(config, None)
    trained = {
        id(p): p.numel()
        for stage in config.training.stages
        for group in select_parameters(checkpoint.model, stage, config.model.vision.frozen_stages).values()
        for p in group
    }
    run = Run(config, checkpoint, out, shared)
    prepare(run, shared)
    before = reset_peak()
    begun, reading, clock = time.process_time(), shared.seconds, time.monotonic()
    train(checkpoint, out, shared=shared)
    seconds = time.process_time() - begun - (shared.seconds - reading)
    metrics = {
        "memory_gib": peak_gib() - before,
        "wall_minutes": (time.monotonic() - clock) / 60,
        "core_minutes": math.nan if resumed else seconds / 60,
        "million_trained": sum(trained.values()) / 1e6,
    }
    metrics |= measure(run, out, shared)
    write_json(done, {"config": digest, "metrics": {k: round(v, 5) for k, v in metrics.items()}})
    for name in ("state", "best"):
        shutil.rmtree(out / name, ignore_errors=True)
    return metrics


def prepare(run: Run, shared: Shared) -> None:
    """Computes the maps that runs share, so that no run pays for them in time or memory."""
    from vlm.data.batches import Collator, bucketed, move

    config, model = run.config, run.model.eval()
    if config.data.augment or any("vision" in stage.train for stage in config.training.stages):
        return
    collate, device = Collator(run.builder), next(model.parameters()).device
    train_set = [e for _, examples in run.sets for e in examples]
    for dtype, examples in ((run.dtype, train_set + run.validator.examples), (None, run.validator.examples)):
        maps = shared.maps_of(dtype, model.vision)
        missing = [e for e in {e.id: e for e in examples}.values() if e.id not in maps.store]
        for indices in track(list(bucketed(missing, 16, None)), description="maps", console=err, transient=True):
            maps.attach(model, move(collate([missing[i] for i in indices]), device))


def measure(run: Run, out: Path, shared: Shared) -> dict[str, float]:
    """Findings, boxes and texts of a trained model on validation."""
    from vlm.evaluation.detection import average_precision
    from vlm.validation import Validator, calibrate_boxes

    checkpoint = run.checkpoint
    config = checkpoint.config
    examples = run.validator.examples
    everything = Validator(run.builder, examples, config, None)
    own = len(shared.load(config.data.validation[0], run.builder, False))
    first = Validator(run.builder, examples[:own], config, None)
    first.maps = everything.maps = shared.maps_of(None, checkpoint.model.vision)
    seen = first.collect(checkpoint.model)
    metrics = finding_metrics(seen.logits.numpy(), seen.targets.numpy())
    seen = everything.collect(checkpoint.model)
    if any(seen.truths):
        _, cut = calibrate_boxes(seen.boxes, seen.truths)
        boxes = average_precision(seen.boxes, seen.truths, 0.5, cut=0.5 if cut is None else cut)
        metrics |= {"map": boxes.mean_ap, "iou": boxes.mean_iou, "box_f1": boxes.f1}
    return metrics | text_metrics(checkpoint, out)


def text_metrics(checkpoint: Checkpoint, out: Path) -> dict[str, float]:
    """Writes the first validation set's reports and scores them against its own."""
    from vlm.evaluation.baselines import Settings
    from vlm.evaluation.inputs import Reports, join
    from vlm.evaluation.run import evaluate_reports
    from vlm.pipeline import FailedStudy, GenerationSettings, Pipeline
    from vlm.training_data import open_set

    config = checkpoint.config
    sections = config.data.report_sections
    _, count, study_at = open_set(config.data.validation[0])
    references, studies = {}, []
    for study in map(study_at, range(count)):
        text = " ".join((study.report or {}).get(name, "") for name in sections).strip()
        if text:
            references[study.id] = text
            studies.append(study)
    if not studies:
        return {}
    checkpoint.model.eval()
    texts = {}
    for study, report in Pipeline(checkpoint).reports(studies, GenerationSettings(attention=False)):
        written = {} if isinstance(report, FailedStudy) else report.sections
        texts[study.id] = " ".join(written.get(name, "") for name in sections).strip()
    write_json(out / "texts.json", texts)
    joined = join(
        {"model": Reports(out / "texts.json", texts, {k: {"id": k} for k in texts})},
        Reports(out, references, {k: {"id": k} for k in references}),
    )
    result = evaluate_reports(joined, Settings(resamples=0, meteor="off"))
    values = result.system("model").values()
    names = ("bleu4", "cider", "finding_f1_micro", "finding_f1_macro")
    return {n: values[n] for n in names if n in values} | {"unique": len(set(texts.values())) / len(texts)}


def reset_peak() -> float:
    """Gives freed memory back, forgets the process's high-water mark, and returns what is held now (GiB; Linux)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**30
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return math.nan
    return _status("VmRSS")


def peak_gib() -> float:
    """The high-water mark since `reset_peak` in GiB: of the GPU's memory, or of the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return _status("VmHWM")


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith(name)), math.nan)


def present(results: dict[str, list[dict[str, float]]], out: Path, facts: dict[str, Any]) -> None:
    """Prints the tables and writes them as results.json and table.md."""
    results = {name: runs for name, runs in results.items() if runs}
    lines = ["Mean ± half the 95% interval over seeds (Student's t).", ""]
    for group, names in groups(results).items():
        for topic, columns in COLUMNS.items():
            own = {k: v for k, v in columns.items() if any(k in run for runs in results.values() for run in runs)}
            heading = [group, "seeds", *(title for title, _ in own.values())]
            table = Table(*heading, title=f"{group}: {topic}")
            lines += ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
            for name, shown in names.items():
                runs = results[name]
                cells = [cell([r.get(k, math.nan) for r in runs], digits) for k, (_, digits) in own.items()]
                table.add_row(shown, str(len(runs)), *cells)
                lines.append("| " + " | ".join([shown, str(len(runs)), *cells]) + " |")
            (console if console.is_terminal else Console(width=130)).print(table)
            lines.append("")
    told = verdicts(results, SHOWN)
    if told:
        lines += [
            "Paired by seed, differences whose 95% interval leaves out zero (one in twenty does so by chance):",
            "",
        ]
        lines += [f"- {line}" for line in told]
        for line in told:
            console.print(line, markup=False, highlight=False)
    write_text(out / "table.md", "\n".join(lines) + "\n")
    write_json(out / "results.json", {**facts, "runs": results})


def write_json(path: Path, value: Any) -> None:
    """Writes JSON at once."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--parts", default="knowledge,hierarchy,detection", help="parts to leave out, by comma")
    parser.add_argument("--seeds", type=int, default=3, help="how many; 0, 1, ...")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/ablate_<name of the configuration>")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="key.sub=value, for every run")
    parser.add_argument("--limit", type=int, default=None, help="studies of each data set")
    parser.add_argument("--epochs", type=float, default=1.0, help="times the epochs of each stage")
    parser.add_argument("--only", default=None, help="variants to run, by semicolon; the table shows all that are done")
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args(arguments)


def ablate(given: argparse.Namespace) -> None:
    """Runs what is missing, seed by seed, and shows the table after each seed."""
    parts = [p.strip() for p in given.parts.split(",") if p.strip()]
    strange = [p for p in parts if p not in WITHOUT]
    if strange or not parts:
        raise InputError(f"--parts {given.parts!r}: {(strange or ['nothing'])[0]!r} is none of {', '.join(WITHOUT)}")
    if given.seeds < 1 or given.epochs <= 0 or (given.limit is not None and given.limit < 1):
        raise InputError("--seeds and --limit must be at least 1, --epochs above 0")
    loaded = load_config(given.config)
    base = lay_over(loaded, loaded.ablation, f"{given.config}: ablation", given.overrides)
    if base.start is not None:
        raise InputError(
            f"{given.config}: starts from a checkpoint, whose parts are fixed; give it an ablation section with "
            "'start: null' and a model"
        )
    if not base.data.validation:
        raise InputError(f"{given.config}: data.validation names no data set; nothing could be measured")
    base = scaled(base, given.limit, given.epochs, str(given.config))
    out = given.out or Path("runs") / f"ablate_{given.config.stem}"
    names = variants(list(dict.fromkeys(parts)))
    wanted = list(names) if given.only is None else [n.strip() for n in given.only.split(";")]
    if unknown := [n for n in wanted if n not in names]:
        raise InputError(f"--only: {unknown[0]!r} is none of {'; '.join(names)}")
    from vlm.training_data import Shared

    if given.threads:
        torch.set_num_threads(given.threads)
    shared = Shared()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    facts = {"config": str(given.config), "parts": parts, "seeds": given.seeds, "threads": torch.get_num_threads()}
    total, begun, fresh = len(wanted) * given.seeds, time.monotonic(), 0
    for seed in range(given.seeds):
        for name in names:
            folder = out / name.replace("+ ", "plus_").replace(", fusion ", "_").replace(" ", "_") / f"seed{seed}"
            if name not in wanted and not (folder / "metrics.json").is_file():
                continue
            known = (folder / "metrics.json").is_file()
            metrics = run_unit(variant_config(base, names[name], seed, str(given.config)), folder, shared)
            results[name].append({"seed": seed, **metrics})
            fresh += not known
            done = sum(map(len, results.values()))
            left = (time.monotonic() - begun) / max(1, fresh) * max(0, total - done) / 60
            told = " ".join(f"{k} {metrics[k]:.{d}f}" for k, (_, d) in SHOWN.items() if k in metrics)
            console.print(f"[{done}/{total}, {left:.0f} min left] {name}, seed {seed}: {told}", markup=False)
        present(results, out, facts)


def main() -> None:
    """Runs the ablation; bad input is one line and exit status 2."""
    given = parse()
    calm_libraries()
    try:
        ablate(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what has finished is kept, the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
