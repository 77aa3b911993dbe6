"""Times a list of a million studies: written as an index once, then opened, planned for training and streamed.

    python scripts/bench_index.py --n 1000000

The list is synthetic (reports of 10 to 60 words, two images each, no pixels). Each step runs in a process of its own,
and its peak memory is that of the process: "open" is until the first study is at hand, "plan" is an epoch's batches,
"stream" goes once through all studies.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

TEXT = "the heart lungs are clear no pleural effusion or pneumothorax is seen there small nodule right left lobe"

STEPS = {
    "index": """
from vlm.data.prepare import index_only
done = index_only([(here / "studies.jsonl", "auto")], here / "index")
""",
    "open": """
from vlm.data.prepared import PreparedSet
begun = time.perf_counter()
studies = PreparedSet(here / "index")
first = studies[0]
""",
    "plan": """
import numpy as np
from types import SimpleNamespace
from vlm.config import Data
from vlm.data.prepared import PreparedSet
from vlm.data.streaming import StreamedExamples, choose, epoch_plan
begun = time.perf_counter()
studies = PreparedSet(here / "index")
examples = StreamedExamples(studies, SimpleNamespace(config=Data()), choose(studies, ["train"], None))
drawn, batches = epoch_plan([(1.0, examples)], 16, np.random.default_rng(0), 2048)
""",
    "stream": """
from vlm.data.prepared import PreparedSet
begun = time.perf_counter()
count = sum(1 for study in PreparedSet(here / "index"))
""",
}
MEASURE = """
import resource, sys, time
from pathlib import Path
here, begun = Path(sys.argv[1]), time.perf_counter()
{step}
print(time.perf_counter() - begun, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def write_list(path: Path, count: int) -> None:
    """Writes a synthetic JSONL list."""
    rng, words = random.Random(0), TEXT.split()
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            findings = " ".join(rng.choices(words, k=rng.randint(10, 60))) + "."
            record = {
                "id": f"s{number}",
                "patient": f"p{number // 2}",
                "split": "val" if number % 20 == 0 else "train",
                "images": [
                    {"file": f"images/{number % 1000:03d}/{number}-{view}.png", "view": view, "modality": "xray"}
                    for view in ("frontal", "lateral")
                ],
                "report": {"findings": findings, "impression": "No acute disease."},
            }
            stream.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000, help="number of studies")
    parser.add_argument("--folder", type=Path, help="keep the list and the index here; default: a temporary folder")
    arguments = parser.parse_args()
    console = Console()
    table = Table(
        "step", "seconds", "processor seconds with imports", "peak memory, GB", title=f"{arguments.n:,} studies"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "studies.jsonl").is_file():
            begun = time.perf_counter()
            write_list(folder / "studies.jsonl", arguments.n)
            console.print(f"list written in {time.perf_counter() - begun:.1f} s")
        for name, step in STEPS.items():
            if name == "index" and (folder / "index" / "prepared.json").is_file():
                continue
            call = [sys.executable, "-c", MEASURE.format(step=step), str(folder)]
            seconds, processor, memory = subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
            table.add_row(name, f"{float(seconds):.2f}", f"{float(processor):.2f}", f"{float(memory):.2f}")
        sizes = [
            f"{p.name} {p.stat().st_size / 1e6:,.0f} MB"
            for p in (folder / "studies.jsonl", folder / "index" / "index.parquet")
        ]
    console.print(table)
    console.print("; ".join(sizes))


if __name__ == "__main__":
    main()
