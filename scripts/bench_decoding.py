"""Times beam search beside transformers' generate() on the same model, alternating in one run, and says whether each
target is met.

The model has Llama's shape (hidden 512, 8 layers) and random weights; the prompt is 200 embeddings, every answer takes
all its 120 new tokens. Three sides: `generate()`, our search through the model's own forward, and our search through
the short way for Llama-shaped models, always in one dtype. Then what constraints cost over plain search of the same
width, what compiling a large lexicon takes, the peak memory of each side (in processes of their own), and the distance
to the limit: bytes of weights and cache over the measured bandwidth, or operations over the measured rate of matrix
products, whichever takes longer.

    python scripts/bench_decoding.py --json bench.json     # all of it: 15 minutes on two quiet cores
    python scripts/bench_decoding.py --quick               # one round, 40 new tokens, memory of one case
    python scripts/bench_decoding.py --clock cpu --threads 1 --cases 1x4    # on a busy machine: processor time
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.compiling import compile_constraints
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.packing import PackedLinear
from vlm.generation.widening import computed_in

END, PAD = 1, 2
WIDTH, INNER, LAYERS = 512, 1376, 8
CONSOLE = Console(width=150)
GAINS = {"1x4": (1.3, 2.0), "1x16": (2.0, 3.0), "8x16": (4.0, 6.0)}
"""Case -> least gain over generate() through the model's own forward and the short way."""
COSTS = {"500 forbidden": 0.10, "4 required": 0.15}
"""Constraints -> most of a plain search's time that they may add."""


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["1x4", "1x16", "8x16"], help="studies x beams")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[4000, 32000])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=200, help="embeddings")
    parser.add_argument("--tokens", type=int, default=120, help="new tokens")
    parser.add_argument("--rounds", type=int, default=3, help="of the smallest case; the largest gets one")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--skip", nargs="*", default=[], choices=["gains", "constraints", "memory"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", help="print the peak memory of one side of the first case, and nothing else")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.tokens = 1, min(args.tokens, 40)
    return args


def make_model(vocabulary: int, dtype: str, device: str) -> LlamaForCausalLM:
    """A random Llama of the size that the project's decoder has."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=2048, bos_token_id=0, eos_token_id=END,
        pad_token_id=PAD,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device, getattr(torch, dtype))


def size_of(case: str) -> tuple[int, int]:
    """Studies and beams of "8x16"."""
    studies, beams = case.split("x")
    return int(studies), int(beams)


def peak_memory(args: argparse.Namespace, vocabulary: int, dtype: str, side: str, case: str) -> float:
    """Highest memory of one call over what the process held before it, in MB, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, "--cases", case, "--vocabulary", str(vocabulary)]
    command += ["--dtype", dtype]
    for name in ("device", "threads", "prompt", "tokens"):
        command += [f"--{name}", str(getattr(args, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(run: Callable[[], object], device: str) -> float:
    """MB that one call takes at its highest."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the model
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e3


def timed(run: Callable[[], object], args: argparse.Namespace) -> float:
    """Seconds of one call."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    run()
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def limit_seconds(model: LlamaForCausalLM, args: argparse.Namespace, studies: int, beams: int) -> float:
    """Least time of the new tokens: bytes over measured bandwidth, or operations over the measured product rate."""
    parameters = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    block = torch.ones(64_000_000, device=args.device)
    other = torch.empty_like(block)
    reads = block.nbytes / min(timed(block.sum, args) for _ in range(5))
    copies = 2 * block.nbytes / min(timed(lambda: other.copy_(block), args) for _ in range(5))
    kind = computed_in(model.get_input_embeddings().weight)
    left = torch.randn(512, 2048, device=args.device, dtype=kind)
    right = torch.randn(2048, 2048, device=args.device, dtype=kind)
    product = PackedLinear(right, None)  # the faster of the products at hand
    fastest = min(timed(run, args) for run in (lambda: left @ right, lambda: product(left)) for _ in range(8))
    size = torch.finfo(kind).bits // 8
    cache = studies * (args.prompt + args.tokens / 2) * LAYERS * 2 * WIDTH
    traffic = args.tokens * size * (parameters + cache) / max(reads, copies)
    work = args.tokens * 2 * parameters * studies * beams / (2 * 512 * 2048 * 2048 / fastest)
    return max(traffic, work)


def make_sides(
    model: LlamaForCausalLM, args: argparse.Namespace, studies: int, beams: int
) -> dict[str, Callable[[], list[list[int]]]]:
    """The three ways to answer the same prompts."""
    torch.manual_seed(1)
    embeds = torch.randn(studies, args.prompt, WIDTH, device=args.device, dtype=model.dtype)
    mask = torch.ones(studies, args.prompt, dtype=torch.long, device=args.device)
    settings = BeamSettings(beams, args.tokens, args.tokens, eos_token_ids=(END,), pad_token_id=PAD)

    @torch.inference_mode()
    def generate() -> list[list[int]]:
        found = model.generate(
            inputs_embeds=embeds, attention_mask=mask, num_beams=beams, max_new_tokens=args.tokens,
            min_new_tokens=args.tokens, eos_token_id=END, pad_token_id=PAD, do_sample=False,
        )  # fmt: skip
        return found.tolist()

    def ours(lean: bool) -> list[list[int]]:
        found = beam_search(model, settings, inputs_embeds=embeds, attention_mask=mask, lean=lean)
        return [list(rows[0].tokens) for rows in found]

    return {"generate": generate, "own forward": lambda: ours(False), "short way": lambda: ours(True)}


def rounds_of(args: argparse.Namespace, studies: int, beams: int) -> int:
    """Repeats: long runs need fewer."""
    return max(1, args.rounds - (studies * beams >= 16) - (studies * beams >= 64))


def compare(model: LlamaForCausalLM, args: argparse.Namespace, case: str) -> dict[str, Any]:
    """Times of the three sides, alternating, with the limit and how many answers are the same."""
    studies, beams = size_of(case)
    sides = make_sides(model, args, studies, beams)
    for name in ("own forward", "short way"):
        sides[name]()  # packs the weights
    answers: dict[str, list[list[int]]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds_of(args, studies, beams)):
        for name, run in sides.items():
            seconds[name].append(timed(lambda n=name, r=run: answers.update({n: r()}), args))  # type: ignore[misc]
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    same = sum(a == b for a, b in zip(answers["generate"], answers["short way"], strict=True))
    limit = limit_seconds(model, args, studies, beams)
    gains = {name: middle["generate"] / middle[name] for name in middle}
    return {"seconds": middle, "gains": gains, "same": f"{same}/{studies}", "limit": limit}


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Byte-level pieces and random words with a leading space, up to `size` tokens."""
    draw = random.Random(0)
    pieces = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = set(pieces)
    while len(pieces) < size:
        word = "Ġ" + "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(2, 9)))
        if word not in known:
            known.add(word)
            pieces.append(word)
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def lexicon(tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> tuple[str, ...]:
    """Random terms of two words each."""
    draw = random.Random(seed)
    words = [piece[1:] for piece in tokenizer.get_vocab() if piece.startswith("Ġ") and len(piece) > 3]
    words.sort()
    return tuple(f"{draw.choice(words)} {draw.choice(words)}" for _ in range(count))


def constraint_kinds(vocabulary: int) -> tuple[PreTrainedTokenizerFast, dict[str, Constraints]]:
    """What is asked of the search, by name."""
    tokenizer = word_tokenizer(vocabulary)
    words = tuple(piece[1:] for piece in sorted(tokenizer.get_vocab()) if piece.startswith("Ġ") and len(piece) > 2)
    forbidden = (TermSet("forbidden", lexicon(tokenizer, 250, 1) + words[:250]),)
    required = tuple(TermSet(f"concept {n}", lexicon(tokenizer, 5, 10 + n)) for n in range(4))
    return tokenizer, {
        "10 forbidden": Constraints(must_not_assert=(TermSet("small", lexicon(tokenizer, 10, 2)),)),
        "500 forbidden": Constraints(must_not_assert=forbidden),
        "4 required": Constraints(must_appear=required),
        "10,000 forbidden": Constraints(must_not_assert=(TermSet("large", lexicon(tokenizer, 10_000, 2)),)),
    }


def constraint_costs(model: LlamaForCausalLM, args: argparse.Namespace, case: str, lean: bool) -> dict[str, Any]:
    """Time of constrained over plain search of the same width: the middle of the rounds' own ratios."""
    studies, beams = size_of(case)
    tokenizer, kinds = constraint_kinds(model.config.vocab_size)
    torch.manual_seed(1)
    embeds = torch.randn(studies, args.prompt, WIDTH, device=args.device, dtype=model.dtype)
    settings = BeamSettings(beams, args.tokens, args.tokens, eos_token_ids=(END,), pad_token_id=PAD)
    compiled, rows = {}, {}
    for name, constraints in kinds.items():
        best = []
        for _ in range(2):  # the first of a tokenizer reads its pieces too
            best.append(timed(lambda c=constraints, n=name: compiled.update({n: _compile(c, tokenizer, args)}), args))  # type: ignore[misc]
        rows[name] = {"compile": max(best)}
    sides = {"none": None, **compiled}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    unmet: dict[str, int] = {}
    for turn in range(2 + rounds_of(args, studies, beams)):
        for name, entry in sides.items():
            bound = [entry] * studies if entry else None
            found: list[Any] = []
            took = timed(
                lambda b=bound, f=found: f.extend(  # type: ignore[misc]
                    beam_search(model, settings, inputs_embeds=embeds, constraints=b, lean=lean)
                ),
                args,
            )
            if turn:
                seconds[name].append(took)
            unmet[name] = sum(bool(own[0].unmet) for own in found)
    steps = args.tokens * studies * beams
    for name in compiled:
        ratios = [a / b - 1 for a, b in zip(seconds[name], seconds["none"], strict=True)]
        per = {of: [1e6 * (a - b) / steps for a, b in zip(seconds[name], seconds[of], strict=True)] for of in sides}
        rows[name] |= {
            "more": statistics.median(ratios),
            "us_over_plain": statistics.median(per["none"]),
            "us_over_10_terms": statistics.median(per["10 forbidden"]),
            "unmet": f"{unmet[name]}/{studies}",
        }
    return {"seconds": {name: statistics.median(values) for name, values in seconds.items()}, "rows": rows}


def _compile(constraints: Constraints, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> object:
    return compile_constraints(constraints, tokenizer, args.tokens)


def gate(results: dict[str, Any], name: str, value: float, target: float, most: bool) -> None:
    """Notes one target; `most` for one not to be exceeded."""
    met = value <= target if most else value >= target
    results["gates"].append({"name": name, "value": round(value, 3), "target": target, "most": most, "met": met})


def bench_model(args: argparse.Namespace, vocabulary: int, dtype: str, results: dict[str, Any]) -> None:
    """All measurements of one model."""
    model = make_model(vocabulary, dtype, args.device)
    title = f"{dtype}, vocabulary {vocabulary:,}"
    table = Table("case", "generate()", "own forward", "short way", "same", "limit", "short way / limit", title=title)
    for case in () if "gains" in args.skip else args.cases:
        row = compare(model, args, case)
        results["gains"][f"{case}, {title}"] = row
        for way, least in zip(("own forward", "short way"), GAINS.get(case, ()), strict=False):
            gate(results, f"{way}, {case}, {title}", row["gains"][way], least, False)
        ways = (f"{row['seconds'][way]:.2f} s, {row['gains'][way]:.2f}x" for way in ("own forward", "short way"))
        ahead = f"{row['seconds']['short way'] / row['limit']:.1f}"
        table.add_row(case, f"{row['seconds']['generate']:.2f} s", *ways, row["same"], f"{row['limit']:.2f} s", ahead)
    CONSOLE.print(table)
    largest = args.cases[-1]
    if "memory" not in args.skip and not (args.quick and results["memory"]):
        used = {
            side: peak_memory(args, vocabulary, dtype, side, largest)
            for side in ("generate", "own forward", "short way")
        }
        results["memory"][f"{largest}, {title}"] = used
        for way in ("own forward", "short way"):
            gate(results, f"memory, {way}, {largest}, {title}", used[way] / used["generate"], 0.25, True)
        CONSOLE.print(f"peak memory at {largest}, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in used.items()))
    if "constraints" in args.skip:
        return
    for case in dict.fromkeys((args.cases[0], largest)):
        for lean in (True, False):
            way = "short way" if lean else "own forward"
            costs = constraint_costs(model, args, case, lean)
            results["constraints"][f"{way}, {case}, {title}"] = costs
            show_costs(results, costs, f"{way}, {case}, {title}", case == largest)


def show_costs(results: dict[str, Any], costs: dict[str, Any], name: str, widest: bool) -> None:
    """One table of constraint costs, and its targets."""
    table = Table(
        "constraints", "compile", "search", "over plain", "us a beam-step", "us over 10 terms", "unmet", title=name
    )
    for kind, row in costs["rows"].items():
        if kind in COSTS:
            gate(results, f"{kind}, {name}", row["more"], COSTS[kind], True)
        if kind == "10,000 forbidden":
            gate(results, f"compile {kind}, {name}", row["compile"], 1.0, True)
            if widest:  # a step has a price of its own, whatever its width and the lexicon's size
                gate(results, f"us a beam-step of {kind}, {name}", row["us_over_plain"], 5.0, True)
        numbers = (f"{row['compile']:.3f} s", f"{costs['seconds'][kind]:.2f} s", f"{100 * row['more']:+.1f}%")
        micro = (f"{row['us_over_plain']:.1f}", f"{row['us_over_10_terms']:.1f}")
        table.add_row(kind, *numbers, *micro, row["unmet"])
    CONSOLE.print(table)


def main() -> None:
    """Print the tables."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        model = make_model(args.vocabulary[0], args.dtype[0], args.device)
        CONSOLE.print(measure_memory(make_sides(model, args, *size_of(args.cases[0]))[args.memory_of], args.device))
        return
    results: dict[str, Any] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "processor": platform.processor(),
        "threads": args.threads, "device": args.device, "clock": args.clock, "tokens": args.tokens,
        "gains": {}, "memory": {}, "constraints": {}, "gates": [],
    }  # fmt: skip
    CONSOLE.print(f"{args.device}, {args.threads} threads, {args.tokens} new tokens, {args.clock} time")
    for dtype in args.dtype:
        for vocabulary in args.vocabulary:
            bench_model(args, vocabulary, dtype, results)
    missed = [g for g in results["gates"] if not g["met"]]
    CONSOLE.print(f"{len(results['gates']) - len(missed)} of {len(results['gates'])} targets met")
    for own in missed:
        CONSOLE.print(f"missed: {own['name']}: {own['value']} (target {own['target']})")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
