"""Turns a run's best checkpoint into the one that ships: half-precision weights, at most 40 MB, checked by
loading it again.

    python scripts/ship_checkpoint.py runs/shipped/best --out vlm/pretrained
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from vlm.checkpoint import load_checkpoint, save_checkpoint

LIMIT_MB = 40


def main() -> None:
    """Reads the command line, converts, and reports size and loading time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("vlm/pretrained"))
    arguments = parser.parse_args()
    save_checkpoint(arguments.out, load_checkpoint(arguments.checkpoint), torch.float16)
    begun = time.perf_counter()
    load_checkpoint(arguments.out)
    seconds = time.perf_counter() - begun
    size = sum(p.stat().st_size for p in arguments.out.rglob("*") if p.is_file()) / 1e6
    print(f"{arguments.out}: {size:.1f} MB, loads in {seconds:.2f} s")
    if size > LIMIT_MB:
        sys.exit(f"larger than {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
