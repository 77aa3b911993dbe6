"""Scores labels read by `vlm knowledge label` against labels coded by people: precision, recall and F1 a label.

    vlm knowledge label ../shared/data/openi/indiana_reports.csv --out labels.csv --view openi20
    python scripts/score_labels.py labels.csv ../shared/data/openi/labels20.json \
        --studies ../shared/data/openi/r2gen_annotation.json --parts train,val

The coded labels are a JSON object, id -> list of the labels that are present. `--studies` keeps the studies of some
parts of an R2Gen annotation file (ids such as CXR12_IM-0045: the number after CXR is the report's id); `--parts rest`
keeps those in no part of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="CSV that vlm knowledge label wrote")
    parser.add_argument("coded", type=Path, help="JSON: id -> labels")
    parser.add_argument("--studies", type=Path, help="annotation.json in R2Gen's layout")
    parser.add_argument("--parts", default="train,val", help="comma-separated parts of it, or rest")
    parser.add_argument("--leave-out", default="normal / no indexing,others", help="labels that the mean leaves out")
    options = parser.parse_args()
    with options.labels.open(encoding="utf-8", newline="") as file:
        read = {row.pop("id"): row for row in csv.DictReader(file)}
    coded = json.loads(options.coded.read_text(encoding="utf-8"))
    chosen = set(read) & set(coded)
    if options.studies is not None:
        chosen &= members(options.studies, options.parts, chosen)
    if not chosen:
        parser.error("no study is in all of these files")
    apart = set(options.leave_out.split(","))
    scores = []
    print(f"{len(chosen)} reports\n| label | coded | precision | recall | F1 |\n|---|---:|---:|---:|---:|")
    for name in next(iter(read.values())):
        pairs = [(name in coded[i], read[i][name] == "1") for i in chosen]
        hit, said, true = sum(a and b for a, b in pairs), sum(b for _, b in pairs), sum(a for a, _ in pairs)
        f1 = 2 * hit / (said + true) if said + true else float("nan")
        print(f"| {name} | {true} | {hit / max(1, said):.3f} | {hit / max(1, true):.3f} | {f1:.3f} |")
        scores += [] if name in apart else [f1]
    print(f"| macro over {len(scores)} | | | | {sum(scores) / len(scores):.3f} |")


def members(path: Path, parts: str, known: set[str]) -> set[str]:
    """Report ids of some parts of an annotation file; of "rest", those of `known` in none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    wanted = list(content) if parts == "rest" else parts.split(",")
    ids = {re.sub(r"^CXR(\d+)_.*", r"\1", row["id"]) for part in wanted for row in content[part]}
    return known - ids if parts == "rest" else ids


if __name__ == "__main__":
    main()
