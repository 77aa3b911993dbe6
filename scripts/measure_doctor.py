"""What `vlm doctor CONFIG` says a run needs, beside what the run takes: `python scripts/measure_doctor.py`.

Each configuration is trained in a process of its own on the CPU. Measured is the most resident memory above what the
process held when all libraries were imported and before anything was loaded (Linux: VmHWM, set back at the start).
The estimate is made in another process, before.

    configuration   estimate MB   measured MB   ratio   hungriest phase as estimated / as measured
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT_STAGES = [
    {"name": "text", "epochs": 1, "train": ["bridge", "adapter"], "losses": ["report"], "batch_size": 8},
]
PHANTOM = {
    "train": [{"format": "phantom", "count": 16, "seed": 1}],
    "validation": [{"format": "phantom", "count": 8, "seed": 2}],
}


def cases(work: Path) -> dict[str, tuple[Path, list[str]]]:
    """Name -> configuration and overrides: few studies, for memory does not wait for the last epoch."""
    gpt2 = {
        "data": {**PHANTOM, "image_size": {"default": 128}, "report_sections": ["findings", "impression"]},
        "model": {"width": 64, "vision": {"name": "mobilenetv3_small_050"},
                  "language": {"path": str(work / "gpt2"), "adapter": {"r": 16}}},
        "training": {"stages": TEXT_STAGES},
        "generation": {"num_beams": 2, "max_new_tokens": 40},
    }  # fmt: skip
    plain, few = work / "gpt2.yaml", work / "gpt2_nf4.yaml"
    plain.write_text(yaml.safe_dump(gpt2))
    gpt2["model"]["language"]["quantize"] = "nf4"  # type: ignore[index]
    gpt2["training"]["gradient_checkpointing"] = True  # type: ignore[index]
    few.write_text(yaml.safe_dump(gpt2))
    short = ["data.train.0.count=40", "data.validation.0.count=16"]
    films = [
        "data.train=[{format: phantom-xray, count: 40, seed: 1}]",
        "data.validation=[{format: phantom-xray, count: 16, seed: 2}]",
        "training.stages.0.epochs=1", "training.stages.1.epochs=1",
    ]  # fmt: skip
    found = {
        "tiny": (ROOT / "configs" / "tiny.yaml", []),
        "phantom": (
            ROOT / "configs" / "phantom.yaml",
            [*short, "training.stages.0.epochs=1", "training.stages.1.epochs=1"],
        ),
        "finetune, 40 films": (ROOT / "configs" / "finetune.yaml", films),
        "gpt2-124M lora": (plain, []),
        "gpt2-124M nf4, checkpointing": (few, []),
    }
    if os.environ.get("RADSCRIBE_DATA"):
        limits = ["data.train.0.limit=40", "data.validation.0.limit=16", "training.stages.2.epochs=1"]
        found["openi, 40 studies"] = (ROOT / "configs" / "openi.yaml", limits)
    return found


def write_gpt2(folder: Path) -> None:
    """A random GPT-2 of the small size, with the shipped tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from vlm.models.language import SHIPPED_LANGUAGE

    source = SHIPPED_LANGUAGE if SHIPPED_LANGUAGE.is_dir() else ROOT / "vlm" / "pretrained" / "language"
    tokenizer = AutoTokenizer.from_pretrained(source)
    ends = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def import_everything() -> None:
    """All that a run imports on its way, so that libraries are no part of what is measured."""
    import bitsandbytes  # noqa: F401
    import matplotlib
    import sklearn.metrics  # noqa: F401
    import torch
    import torch._dynamo
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import vlm.training
    import vlm.writing  # noqa: F401
    from vlm.cli.progress import calm_libraries

    calm_libraries()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.close(pyplot.subplots()[0])
    layer = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 900, 8))
    layer(torch.randn(2, 1, 32, 32)).sum().backward()  # the numerical libraries' own workspace


def resident(field: str) -> int:
    """VmRSS or VmHWM in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def set_back() -> None:
    """The high-water mark becomes what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(config: Path, overrides: list[str]) -> dict[str, Any]:
    """Trains, and notes the most memory of each phase."""
    import_everything()
    from vlm import training
    from vlm.assembly import starting_point
    from vlm.config import load_config

    set_back()
    base = resident("VmRSS")
    phases: dict[str, int] = {}

    def watched(owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before = resident("VmHWM") - base
            phases["between"] = max(phases.get("between", 0), before)
            set_back()
            try:
                return original(*args, **kwargs)
            finally:
                key = phase.format(getattr(getattr(args[0], "stage", None), "name", "")) if args else phase
                phases[key] = max(phases.get(key, 0), resident("VmHWM") - base)
                set_back()

        setattr(owner, name, wrapper)

    watched(training.StageLoop, "_cache", "{} features")
    watched(training.StageLoop, "_step", "{} step")
    watched(training.StageLoop, "_validate", "{} validation")
    watched(training.StageLoop, "_write", "{} saving")
    watched(training, "save_checkpoint", "last checkpoint")
    begun = time.monotonic()
    checkpoint = starting_point(load_config(config, overrides), None)
    phases["loading"] = resident("VmHWM") - base
    set_back()
    with tempfile.TemporaryDirectory() as out:
        training.train(checkpoint, Path(out) / "run")
    phases["between"] = max(phases.get("between", 0), resident("VmHWM") - base)
    return {"peak": max(phases.values()), "phases": phases, "base": base, "seconds": time.monotonic() - begun}


def estimate(config: Path, overrides: list[str]) -> dict[str, Any]:
    """What the doctor says."""
    from vlm.cli.progress import calm_libraries
    from vlm.config import load_config
    from vlm.fitting import estimate_run

    calm_libraries()
    begun = time.monotonic()
    need = estimate_run(load_config(config, overrides), None, gpu=False)
    phases = dict(need.around)
    for stage in need.stages:
        held = sum(stage.held.values())
        phases |= {f"{stage.name} {name}": held + more for name, more in stage.phases.items()}
    return {"peak": need.peak(), "phases": phases, "seconds": time.monotonic() - begun}


def run_case(kind: str, config: Path, overrides: list[str]) -> dict[str, Any]:
    """In a process of its own."""
    words = [sys.executable, __file__, "--one", kind, str(config), *overrides]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--phases", action="store_true", help="show every phase")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, config, *overrides = given.one
        print(json.dumps({"measure": measure, "estimate": estimate}[kind](Path(config), overrides)))
        return
    with tempfile.TemporaryDirectory() as work:
        write_gpt2(Path(work) / "gpt2")
        print(f"{'configuration':30}{'estimate MB':>12}{'measured MB':>12}{'ratio':>7}  hungriest phase, both ways")
        for name, (config, overrides) in cases(Path(work)).items():
            if given.only and given.only not in name:
                continue
            told, took = run_case("estimate", config, overrides), run_case("measure", config, overrides)
            worst = [max(r["phases"], key=r["phases"].get) for r in (told, took)]
            print(
                f"{name:30}{told['peak'] / 2**20:12.0f}{took['peak'] / 2**20:12.0f}{told['peak'] / took['peak']:7.2f}  "
                f"{worst[0]} / {worst[1]} ({told['seconds']:.0f} s, {took['seconds']:.0f} s)", flush=True,
            )  # fmt: skip
            for result in (told, took) if given.phases else ():
                print("   ", {k: round(v / 2**20) for k, v in result["phases"].items()}, flush=True)


if __name__ == "__main__":
    main()
