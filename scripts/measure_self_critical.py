"""What self-critical training brings beside the same number of supervised steps from the same checkpoint.

    python scripts/measure_self_critical.py --out runs/self-critical              # Open-i below RADSCRIBE_DATA
    python scripts/measure_self_critical.py --steps 20 --studies 32 --out runs/quick

Both arms start from one checkpoint and take the same studies in the same order; they differ in the loss. Reports of the
validation studies are then written by beams of width 2 without constraints, so that what is judged is the language
model, and compared study by study. An arm that has finished is not trained again, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=150)
METRICS = (
    "cider", "bleu4", "rougeL", "finding_f1_micro", "finding_f1_macro", "false_statements", "omissions", "unique",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="openi", help="set with the splits train and val, below RADSCRIBE_DATA")
    parser.add_argument("--start", default="shipped")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--studies", type=int, help="validation studies; default: all")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--findings", type=float, default=5.0, help="weight of F1 (0 to 1) beside CIDEr (0 to 10)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def config_of(args: argparse.Namespace, loss: str) -> Any:
    """One arm's configuration: a stage of one epoch over as many studies as the steps take."""
    from vlm.config import parse_config

    stage = {"name": loss, "epochs": 1, "train": ["bridge", "adapter"], "losses": [loss], "lr": args.lr}
    source = {"path": args.data, "split": ["train"], "limit": args.steps * args.batch_size}
    tree = {
        "start": args.start,
        "data": {"train": [source], "validation": [{"path": args.data, "split": ["val"], "limit": args.studies}],
                 "augment": False, "clinical_dropout": 0.0},
        "training": {
            "seed": args.seed, "stages": [stage | {"batch_size": args.batch_size}],
            "reward": {"draws": args.draws, "baseline": "mean", "findings": args.findings},
        },
    }  # fmt: skip
    return parse_config(tree, "measure_self_critical")


def written(args: argparse.Namespace, arm: str, loss: str | None) -> list[dict[str, str]]:
    """Reports of the validation studies by one arm, trained first where it has a loss; kept in OUT/ARM.json."""
    from vlm import training
    from vlm.assembly import starting_point
    from vlm.training import Run
    from vlm.training_data import Shared

    kept = args.out / f"{arm}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))["reports"]  # type: ignore[no-any-return]
    config = config_of(args, loss or "report")
    checkpoint = starting_point(config, None)
    begun = time.monotonic()
    if loss is not None:
        training.train(checkpoint, args.out / arm)
    minutes = (time.monotonic() - begun) / 60
    scribe = Run(config, checkpoint, args.out / arm, Shared()).scribe
    reports = [{"id": s.id, "report": s.report, "reference": s.reference} for s in scribe.write(10**6)]
    record = json.dumps({"minutes": round(minutes, 1), "reports": reports}, ensure_ascii=False)
    kept.with_suffix(".tmp").write_text(record, encoding="utf-8")
    kept.with_suffix(".tmp").replace(kept)
    return reports


def scores(rows: list[dict[str, str]]) -> list[Any]:
    """What one arm's reports score."""
    import numpy as np

    from vlm.evaluation.clinical import FindingReader, finding_scores
    from vlm.evaluation.resampling import mean_score
    from vlm.evaluation.text import index_texts, text_scores
    from vlm.evaluation.tokens import make_profile

    texts, references = [r["report"] for r in rows], [r["reference"] for r in rows]
    profile, reader = make_profile("canonical"), FindingReader()
    index, documents = index_texts(
        [profile.reference(t) for t in references], {"own": [profile.prediction(t) for t in texts]}
    )
    found = text_scores(index, documents["own"]) + finding_scores(reader.read(texts), reader.read(references))
    first: dict[str, int] = {}
    new = np.array([first.setdefault(text, i) == i for i, text in enumerate(texts)], dtype=float)
    found.append(mean_score("unique", new, "unique"))
    by_name = {score.name: score for score in found}
    return [by_name[name] for name in METRICS]


def main() -> None:
    """Trains, writes, prints the table."""
    args = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vlm.cli.progress import calm_libraries
    from vlm.evaluation.resampling import compare

    calm_libraries()
    args.out.mkdir(parents=True, exist_ok=True)
    arms = {"start": None, "supervised": "report", "self-critical": "reward"}
    found = {arm: scores(written(args, arm, loss)) for arm, loss in arms.items()}
    title = f"{args.steps} steps of {args.batch_size}, lr {args.lr:g}, {args.draws} draws, seed {args.seed}"
    table = Table("", *arms, "self-critical less start", "self-critical less supervised", title=title)
    gaps = [compare(found["self-critical"], found[other], 1000) for other in ("start", "supervised")]
    for place, name in enumerate(METRICS):
        cells = [f"{found[arm][place].value:.3f}" for arm in arms]
        for gap in gaps:
            own = gap[name]
            cells.append(f"{own.value:+.3f} ({own.interval.low:+.3f} to {own.interval.high:+.3f})")
        table.add_row(name, *cells)
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
