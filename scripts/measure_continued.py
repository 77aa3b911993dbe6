"""Does replay keep a checkpoint from forgetting, and is an ensemble better than its members? Trains the shipped
checkpoint on new data in several ways and measures old and new.

    RADSCRIBE_DATA=../shared/data python scripts/measure_continued.py --out runs/continued

New data: phantom radiographs, which the checkpoint has never seen. Old data: Open-i, of whose train part it was made.
Arms, each with the stages of configs/finetune.yaml in fewer epochs:

    none        the new studies alone
    retention   the new studies alone, with training.loss.retention
    replay      every batch holds --share of Open-i's train part; once a seed, for the ensemble of all seeds

"start" is the checkpoint before, "ensemble" the replay runs of all seeds together. All arms see the new studies
equally often and calibrate on validation studies of both kinds, other than those that are measured. Intervals are of
differences between two systems on the same studies, which are resampled (95%, percentile).

A run goes on where it was stopped, and what a system wrote is kept; phantoms are drawn again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from vlm.cli.progress import calm_libraries
from vlm.config import parse_config
from vlm.types import InputError, Study

if TYPE_CHECKING:
    from vlm.checkpoint import Checkpoint
    from vlm.training_data import Shared

CONSOLE, ERR = Console(soft_wrap=True), Console(stderr=True)
NEW, TRAIN, VALIDATION, TEST = "phantom-xray", 100, 101, 102
"""Data set of new studies, and the seeds of its parts."""
HELD = 60
"""Validation studies of Open-i that runs may see; the rest are measured."""
PAIRS = [
    ("none", "start"), ("retention", "none"), ("replay0", "none"), ("replay0", "start"), ("ensemble", "replay0"),
    ("ensemble", "replay1"), ("ensemble", "replay2"),
]  # fmt: skip
LEAST = 10
"""Present and absent studies that a label needs for an AUC."""


class World:
    """The studies of the experiment, drawn or read when first asked for."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given

    @cached_property
    def shared(self) -> Shared:
        """Examples and frozen maps of all runs."""
        from vlm.training_data import Shared

        return Shared()

    @cached_property
    def sets(self) -> dict[str, list[Study]]:
        """The old studies that are measured: those that reports are written for, and all."""
        from vlm.config import DataSet
        from vlm.training_data import open_set

        _, count, at = open_set(DataSet(path=Path("openi"), format="openi", split=("val",)))
        told = [study for study in map(at, range(HELD, count)) if (study.report or {}).get("findings")]
        return {"old": told[: self.given.test], "all old": told}

    @cached_property
    def drawn(self) -> list[Study]:
        """The new studies that are measured."""
        from vlm.training_data import MADE

        return list(map(partial(MADE[NEW], TEST), range(self.given.test)))

    def studies(self, kind: str) -> list[Study]:
        """Those of one kind."""
        return self.drawn if kind == "new" else self.sets[kind]


def config_of(arm: str, seed: int, given: argparse.Namespace) -> Any:
    """The run of one arm."""
    old: dict[str, Any] = {"validation": [{"path": "openi", "format": "openi", "split": ["val"], "limit": HELD}]}
    if arm == "replay":
        sets = [{"path": "openi", "format": "openi", "split": ["train"], "limit": given.memory}]
        old |= {"sets": sets, "share": given.share}
    stage = {"lr": 1.0e-3, "batch_size": 16}
    tree = {
        "start": "shipped",
        "data": {
            "train": [{"format": NEW, "count": given.train, "seed": TRAIN}],
            "validation": [{"format": NEW, "count": given.validation, "seed": VALIDATION}],
            "replay": old, "report_sections": ["findings"], "modality_labels": {}, "augment": False,
        },
        "training": {
            "seed": seed, "ema": 0.98, "loss": {"retention": 1.0 if arm == "retention" else 0.0},
            "stages": [
                {"name": "findings", "train": ["pyramid", "knowledge"], "losses": ["findings", "knowledge"],
                 "epochs": given.epochs[0], **stage},
                {"name": "adapter", "train": ["bridge", "adapter"], "losses": ["report"],
                 "epochs": given.epochs[1], **stage},
            ],
        },
    }  # fmt: skip
    return parse_config(tree, f"{arm}, seed {seed}")


def train_arm(arm: str, seed: int, world: World) -> Path:
    """Trains one run, or what remains of it; its checkpoint."""
    from vlm.assembly import starting_point
    from vlm.training import train

    out = world.given.out / f"{arm}{seed}"
    if not (out / "best" / "checkpoint.json").is_file():
        ERR.print(f"training {arm}, seed {seed}", highlight=False)
        train(starting_point(config_of(arm, seed, world.given), None), out, shared=world.shared)
    return out / "best"


def load(folder: Path | None) -> Checkpoint:
    """A checkpoint that writes findings alone, by two beams and no samples: the same for all systems, and quick."""
    from vlm.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(folder)
    config = checkpoint.config
    checkpoint.config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"report_sections": ("findings",)}),
            "generation": config.generation.model_copy(update={"num_beams": 2, "samples": 0, "consensus": 0.0}),
        }
    )
    return checkpoint


def write(system: str, folders: Sequence[Path | None], kind: str, world: World) -> list[dict[str, Any]]:
    """Text, probabilities and truth of each study of one kind, once."""
    from vlm.pipeline import FailedStudy, GenerationSettings, Pipeline

    path = world.given.out / f"{system}.{kind}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    pipeline = Pipeline(*map(load, folders))
    rows = []
    for number, (study, report) in enumerate(
        pipeline.reports(world.studies(kind), GenerationSettings(attention=False))
    ):
        if isinstance(report, FailedStudy):
            raise InputError(f"{study.id}: {report.message}")
        truth = pipeline.builder.targets(study)
        known = {n: bool(t) for n, t in zip(pipeline.checkpoint.labels, truth.tolist(), strict=True) if t == t}
        said = {f.label: f.probability for f in report.findings}
        reference = (study.report or {})["findings"]
        row = {"id": f"{number}", "text": report.sections["findings"], "reference": reference}
        rows.append(row | {"probabilities": said, "truth": known})
    path.write_text(json.dumps(rows), encoding="utf-8")
    ERR.print(f"{system} on {kind} studies: written", highlight=False)
    return rows


@torch.inference_mode()
def look(system: str, folder: Path | None, world: World) -> list[dict[str, Any]]:
    """Probabilities, truth and the loss of the report (nats a token) of every old study, once; nothing is written."""
    from vlm.ensemble import Member
    from vlm.request import GenerationSettings

    path = world.given.out / f"{system}.looked.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    member = Member(load(folder))
    rows = []
    for study in world.studies("all old"):
        example = member.builder.build(study)
        own, seen = member.look(study, example, GenerationSettings(attention=False))
        prefix, mask = member.model.prefix(own.image, own.batch)
        batch = own.batch
        logits, index = member.model.language(prefix, mask, batch.report_ids, batch.report_mask, batch.report_labels)
        loss = torch.nn.functional.cross_entropy(logits.float(), batch.report_labels.flatten()[index], reduction="sum")
        known = {
            n: bool(t) for n, t in zip(member.builder.labels, example.finding_targets.tolist(), strict=True) if t == t
        }
        row = {"probabilities": dict(seen.evidence.probabilities), "truth": known, "loss": float(loss)}
        rows.append(row | {"tokens": len(index)})
    path.write_text(json.dumps(rows), encoding="utf-8")
    ERR.print(f"{system} on all old studies: looked at", highlight=False)
    return rows


def present_looks(looked: dict[str, list[dict[str, Any]]], resamples: int) -> list[str]:
    """What the image half and the report's loss have forgotten, as Markdown."""
    from vlm.evaluation.resampling import resample

    labels, count = rankable(looked), len(next(iter(looked.values())))
    weights = np.concatenate([np.ones((1, count)), *resample(count, resamples, 0)])
    values = {}
    for name, rows in looked.items():
        loss, tokens = (np.array([row[key] for row in rows], float) for key in ("loss", "tokens"))
        image = list(image_scores(rows, labels, weights).values())
        values[name] = np.stack([*image, (weights @ loss) / (weights @ tokens)], 1)
    title = ["AUC", "Brier", "ECE", "F1 of the image half", "report loss"]
    pairs = [(f"{a} - {b}", values[a] - values[b]) for a, b in PAIRS if a in values and b in values]
    members = [value for name, value in values.items() if name.startswith("replay")]
    pairs.append(("mean of replay - none", np.mean(members, axis=0) - values["none"]))
    return tables(f"all {count} old studies, {len(labels)} labels ({', '.join(labels)})", title, values, pairs)


def tables(
    heading: str, title: Sequence[str], values: dict[str, np.ndarray], pairs: Sequence[tuple[str, np.ndarray]]
) -> list[str]:
    """Systems, then differences with their intervals: arrays (1 + resamples, columns), the first row as it is."""
    from vlm.evaluation.resampling import interval_of

    rule = "|---" * (len(title) + 1) + "|"
    lines = [heading, "", "| system | " + " | ".join(title) + " |", rule]
    lines += [f"| {name} | " + " | ".join(f"{v:.3f}" for v in value[0]) + " |" for name, value in values.items()]
    lines += ["", "| difference | " + " | ".join(title) + " |", rule]
    for name, gap in pairs:
        spans = [interval_of(column[1:]) for column in gap.T]
        cells = [f"{v:+.3f} ({s.low:+.3f} to {s.high:+.3f})" for v, s in zip(gap[0], spans, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def image_scores(rows: Sequence[dict[str, Any]], labels: Sequence[str], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Mean AUC, Brier score, ECE and micro F1 at 0.5 of what is known of `labels`, for each row of weights (R, N)."""
    from vlm.evaluation.ranking import auc

    p = np.array([[row["probabilities"][n] for n in labels] for row in rows])
    known = np.array([[n in row["truth"] for n in labels] for row in rows])
    y = np.array([[row["truth"].get(n, False) for n in labels] for row in rows])
    own = weights[:, :, None] * known  # (R, N, F)
    areas = [auc(y[:, i], p[:, i], own[:, :, i]) for i in range(len(labels))]
    total = own.sum((1, 2))
    place = np.minimum((p * 10).astype(int), 9)
    gaps = [np.abs((own * (place == b) * (p - y)).sum((1, 2))) for b in range(10)]
    hits, said, there = ((own * x).sum((1, 2)) for x in (y & (p >= 0.5), p >= 0.5, y))
    return {
        "AUC": np.nanmean(areas, axis=0), "Brier": (own * (p - y) ** 2).sum((1, 2)) / total,
        "ECE": np.sum(gaps, axis=0) / total, "F1": 2 * hits / np.maximum(1, said + there),
    }  # fmt: skip


def rankable(systems: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Labels that every system gives and that enough studies are known to have and not to have."""
    rows = next(iter(systems.values()))
    shared = set.intersection(*(set(row["probabilities"]) for own in systems.values() for row in own))
    counts = {
        n: [row["truth"][n] for row in rows if n in row["truth"]] for n in rows[0]["probabilities"] if n in shared
    }
    return [n for n, own in counts.items() if min(sum(own), len(own) - sum(own)) >= LEAST]


def text_scores(systems: dict[str, list[dict[str, Any]]], resamples: int) -> dict[str, np.ndarray]:
    """CIDEr-D and micro F1 of findings of every system, (1 + resamples, 2): as they are, then of resampled studies."""
    from vlm.evaluation.clinical import FindingReader, finding_scores
    from vlm.evaluation.resampling import bootstrap
    from vlm.evaluation.text import cider, index_texts
    from vlm.evaluation.tokens import make_profile

    profile, reader = make_profile("canonical"), FindingReader()
    references = [row["reference"] for row in next(iter(systems.values()))]
    told = {name: [row["text"] for row in rows] for name, rows in systems.items()}
    index, held = index_texts(
        [profile.reference(t) for t in references],
        {name: [profile.prediction(t) for t in texts] for name, texts in told.items()},
    )
    truth = reader.read(references)
    found = {}
    for name, texts in told.items():
        f1 = next(s for s in finding_scores(reader.read(texts), truth) if s.name == "finding_f1_micro")
        scores = [cider(index, held[name]), f1]
        found[name] = np.vstack([[s.value for s in scores], bootstrap(scores, resamples)])
    return found


def present(kind: str, systems: dict[str, list[dict[str, Any]]], resamples: int) -> list[str]:
    """The tables of one kind of studies, as Markdown."""
    from vlm.evaluation.resampling import resample

    labels, count = rankable(systems), len(next(iter(systems.values())))
    weights = np.concatenate([np.ones((1, count)), *resample(count, resamples, 0)])  # the draws of `bootstrap`
    text = text_scores(systems, resamples)
    values = {
        name: np.hstack([np.stack(list(image_scores(rows, labels, weights).values()), 1), text[name]])
        for name, rows in systems.items()
    }  # (1 + resamples, 6)
    members = [value for name, value in values.items() if name.startswith("replay")]
    pairs = [(f"{a} - {b}", values[a] - values[b]) for a, b in PAIRS if a in values and b in values]
    if "ensemble" in values and len(members) > 1:
        pairs.append(("ensemble - mean of its members", values["ensemble"] - np.mean(members, axis=0)))
    title = ["AUC", "Brier", "ECE", "F1 of the image half", "CIDEr-D", "F1 of the text"]
    return tables(f"{count} {kind} studies, {len(labels)} labels ({', '.join(labels)})", title, values, pairs)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/continued"))
    parser.add_argument("--train", type=int, default=150, help="new studies to learn from")
    parser.add_argument("--validation", type=int, default=40, help="new studies to choose epochs and calibrate by")
    parser.add_argument("--test", type=int, default=80, help="new and old studies that are measured")
    parser.add_argument("--memory", type=int, default=300, help="old studies that are replayed from")
    parser.add_argument("--share", type=float, default=0.25, help="of a batch that is old")
    parser.add_argument("--epochs", type=float, nargs=2, default=(3, 2), help="of the two stages")
    parser.add_argument("--seeds", type=int, default=3, help="of replay, and members of the ensemble")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def measure(given: argparse.Namespace) -> None:
    """Trains, writes and shows."""
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    world = World(given)
    systems: dict[str, list[Path | None]] = {"start": [None]}
    for arm, seeds in (("none", 1), ("retention", 1), ("replay", given.seeds)):
        for seed in range(seeds):
            name = f"{arm}{seed}" if arm == "replay" else arm
            systems[name] = [train_arm(arm, seed, world)]
    systems["ensemble"] = [systems[f"replay{seed}"][0] for seed in range(given.seeds)]
    lines: list[str] = []
    # Of replay one run stands for all on old studies: what the members do alone is asked on new ones.
    few = {
        name: folders for name, folders in systems.items() if name in ("replay0", "ensemble") or "replay" not in name
    }
    for kind, own in (("new", systems), ("old", few)):
        lines += present(
            kind, {name: write(name, folders, kind, world) for name, folders in own.items()}, given.resamples
        )
    single = {name: folders[0] for name, folders in systems.items() if len(folders) == 1}
    lines += present_looks({name: look(name, folder, world) for name, folder in single.items()}, given.resamples)
    (given.out / "table.md").write_text("\n".join(lines), encoding="utf-8")
    CONSOLE.print("\n".join(lines), markup=False, highlight=False)


def main() -> None:
    """Runs the experiment; bad input is one line and exit status 2."""
    given = parse()
    calm_libraries()
    try:
        measure(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what has finished is kept, the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
