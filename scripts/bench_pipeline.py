"""Times each part of the pipeline and the whole, on the CPU and on a GPU where there is one.

Studies are drawn at random, two views of 256 pixels each, in batches. For every part: milliseconds a study (median of
the rounds), studies a second, the peak of the process's memory while it ran, and GFLOPs a study as torch counts them
(multiplications and additions apart). The language part is set beside transformers' `generate()` with the same model,
prefix and number of beams, in the same run.

    python scripts/bench_pipeline.py --batch-size 8 --beams 4 --rounds 5 --json bench.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from vlm.data.batches import pad
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.pipeline import GenerationSettings, Pipeline
from vlm.types import Modality, Study, StudyImage, View


def studies(count: int, seed: int) -> list[Study]:
    """Two-view studies of smooth noise: the time does not depend on what they show."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        images = []
        for view in (View.FRONTAL, View.LATERAL):
            pixels = np.kron(rng.random((32, 32)), np.ones((8, 8))).astype(np.float32)
            images.append(StudyImage(pixels=pixels, view=view, modality=Modality.XRAY))
        out.append(Study(f"study{number}", images, {"indication": "Chest pain."}))
    return out


def reset_peak() -> None:
    """Forgets the process's high-water mark of memory (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_gib(device: torch.device) -> float:
    """Peak since `reset_peak`, in GiB: of the GPU's memory, or of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def measure(
    run: Callable[[], object], count: int, rounds: int, device: torch.device, flops: bool = True
) -> dict[str, float]:
    """Median time, peak memory and operations of a part."""
    run()
    reset_peak()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    row = {
        "ms": 1000 * statistics.median(times) / count,
        "studies_per_s": count / statistics.median(times),
        "peak_gib": peak_gib(device),
    }
    if flops:
        with FlopCounterMode(display=False) as counter:
            run()
        row["gflops"] = counter.get_total_flops() / count / 1e9
    return row


@torch.no_grad()
def bench(
    pipeline: Pipeline, batch_size: int, beams: int, rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """All parts and the whole on one device."""
    model = pipeline.model.to(device)
    pipeline.device = device
    own = studies(batch_size, 0)
    examples = [pipeline.builder.build(s) for s in own]
    batch = pipeline.on_device(pipeline.collate(examples))
    maps = model.pyramid(model.hierarchy(model.vision(batch.pixel_values)))
    image = model.encode(batch)
    prompts = [
        pipeline.builder.prompt_ids(pipeline.builder.prompt(e.modality, e.clinical, "findings")) for e in examples
    ]
    ids, mask = pad(prompts, pipeline.checkpoint.tokenizer.pad_token_id, left=True)
    batch.prompt_ids, batch.prompt_mask = ids.to(device), mask.to(device)
    prefix, prefix_mask = model.prefix(image, batch)
    tokenizer, most = pipeline.checkpoint.tokenizer, pipeline.checkpoint.config.generation.max_new_tokens
    settings = BeamSettings(
        num_beams=beams, max_new_tokens=most, eos_token_ids=(tokenizer.eos_token_id, pipeline.writer.break_id)
    )

    def search() -> object:
        return beam_search(model.language.model, settings, inputs_embeds=prefix, attention_mask=prefix_mask.long())

    def peer() -> object:
        return model.language.model.generate(
            inputs_embeds=prefix, attention_mask=prefix_mask.long(), num_beams=beams, max_new_tokens=most,
            do_sample=False,
            eos_token_id=list(settings.eos_token_ids), pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip

    wanted = GenerationSettings(num_beams=beams, batch_size=batch_size, attention=False)
    parts: dict[str, tuple[Callable[[], object], bool]] = {
        "features": (lambda: model.pyramid(model.hierarchy(model.vision(batch.pixel_values))), True),
        "knowledge": (lambda: model.look(maps[model.attention_scale], batch), True),
        "detection": (lambda: model.detector(maps), True),
        "language": (search, False),
        "language, generate()": (peer, True),
        "whole": (lambda: list(pipeline.reports(own, wanted)), False),
    }
    return {name: measure(run, batch_size, rounds, device, flops) for name, (run, flops) in parts.items()}


def main() -> None:
    """Reads the command line, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=None, help="default: the shipped one")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console()
    results: dict[str, object] = {
        "threads": torch.get_num_threads(),
        "batch_size": arguments.batch_size,
        "beams": arguments.beams,
    }
    begun = time.perf_counter()
    pipeline = Pipeline.load(arguments.checkpoint)
    results["load_s"] = time.perf_counter() - begun
    console.print(f"checkpoint loaded in {results['load_s']:.2f} s; {torch.get_num_threads()} threads")
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for device in devices:
        rows = bench(pipeline, arguments.batch_size, arguments.beams, arguments.rounds, device)
        results[device.type] = rows
        table = Table(
            "part", "ms a study", "studies/s", "peak GiB", "GFLOPs a study", title=f"{device.type}, two views a study"
        )
        for name, row in rows.items():
            flops = f"{row['gflops']:.2f}" if "gflops" in row else "-"
            table.add_row(name, f"{row['ms']:.1f}", f"{row['studies_per_s']:.2f}", f"{row['peak_gib']:.2f}", flops)
        console.print(table)
        ratio = rows["language, generate()"]["ms"] / rows["language"]["ms"]
        console.print(f"beam search against transformers' generate(): {ratio:.2f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
