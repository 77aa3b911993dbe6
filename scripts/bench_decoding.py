"""Times beam search beside transformers' generate() on the same model, alternating in one run.

The model has Llama's shape (hidden 512, 8 layers) and random weights; the prompt is 200 embeddings, every answer takes
all its new tokens. Three sides: `generate()`, our search through the model's own forward, and our search through the
short way for Llama-shaped models. Then the cost of constraints over plain search of the same width, and of compiling a
large lexicon.

    python scripts/bench_decoding.py --cases 1x4 1x16 8x16 --vocabulary 4000 --dtype float32
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.compiling import compile_constraints
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.lean_llama import PackedLinear

END, PAD = 1, 2
CONSOLE = Console()


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["1x4", "1x16", "8x8", "8x16"], help="studies x beams")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=200, help="embeddings")
    parser.add_argument("--tokens", type=int, default=120, help="new tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", help="print the peak memory of one side of the first case, and nothing else")
    parser.add_argument("--skip-constraints", action="store_true")
    return parser.parse_args()


def make_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A random Llama of the size that the project's decoder has."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=2048, bos_token_id=0, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(args.device, getattr(torch, args.dtype))


def peak_memory(args: argparse.Namespace, side: str, case: tuple[int, int]) -> float:
    """Highest memory of one call over what the process held before it, in MB, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, "--cases", f"{case[0]}x{case[1]}"]
    for name in ("vocabulary", "dtype", "device", "threads", "prompt", "tokens"):
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


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def limit_seconds(model: LlamaForCausalLM, args: argparse.Namespace, studies: int, beams: int) -> float:
    """Least time of the new tokens: bytes over measured bandwidth, or operations over the measured product rate."""
    parameters = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    size = torch.finfo(model.dtype).bits // 8
    block = torch.empty(64_000_000, dtype=torch.uint8, device=args.device)
    bandwidth = 2 * block.numel() / min(timed(block.clone, args.device) for _ in range(5))
    rows = studies * beams
    left = torch.randn(512, 2048, device=args.device, dtype=model.dtype)
    right = torch.randn(2048, 2048, device=args.device, dtype=model.dtype)
    product = PackedLinear(right, None)  # the faster of the products at hand
    fastest = min(timed(run, args.device) for run in (lambda: left @ right, lambda: product(left)) for _ in range(8))
    rate = 2 * 512 * 2048 * 2048 / fastest
    cache = studies * (args.prompt + args.tokens / 2) * 8 * 2 * 512
    traffic = args.tokens * size * (parameters + cache) / bandwidth
    work = args.tokens * 2 * parameters * rows / rate
    return max(traffic, work)


def make_sides(
    model: LlamaForCausalLM, args: argparse.Namespace, studies: int, beams: int
) -> dict[str, Callable[[], list[list[int]]]]:
    """The three ways to answer the same prompts."""
    torch.manual_seed(1)
    embeds = torch.randn(studies, args.prompt, 512, device=args.device, dtype=model.dtype)
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


def compare(model: LlamaForCausalLM, args: argparse.Namespace, table: Table, studies: int, beams: int) -> None:
    """One row of the table."""
    sides = make_sides(model, args, studies, beams)
    answers = {name: run() for name, run in sides.items()} if args.rounds > 1 else {}  # a warm-up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            answers[name] = run()
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    same = sum(a == b for a, b in zip(answers["generate"], answers["short way"], strict=True))
    row = [f"{studies} x {beams}"]
    for name in sides:
        gain = f" ({middle['generate'] / middle[name]:.1f}x)" if name != "generate" else ""
        row.append(f"{middle[name]:.2f} s{gain}, {peak_memory(args, name, (studies, beams)):.0f} MB")
    row += [f"{same}/{studies}", f"{limit_seconds(model, args, studies, beams):.2f} s"]
    table.add_row(*row)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Byte-level pieces and random words with a leading space, up to `size` tokens."""
    draw = random.Random(0)
    pieces = ["<s>", "</s>", "<pad>", *pre_tokenizers.ByteLevel.alphabet()]
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


def constraint_costs(model: LlamaForCausalLM, args: argparse.Namespace, studies: int, beams: int) -> None:
    """Time of constrained over plain search of the same width."""
    tokenizer = word_tokenizer(args.vocabulary)
    words = tuple(piece[1:] for piece in sorted(tokenizer.get_vocab()) if piece.startswith("Ġ") and len(piece) > 2)
    forbidden = (TermSet("forbidden", lexicon(tokenizer, 250, 1) + words[:250]),)
    required = tuple(TermSet(f"concept {n}", lexicon(tokenizer, 5, 10 + n)) for n in range(4))
    large = (TermSet("large", lexicon(tokenizer, 10_000, 2)),)
    kinds = {
        "500 forbidden": Constraints(must_not_assert=forbidden),
        "4 required": Constraints(must_appear=required),
        "10,000 forbidden": Constraints(must_not_assert=large),
    }
    torch.manual_seed(1)
    embeds = torch.randn(studies, args.prompt, 512, device=args.device, dtype=model.dtype)
    settings = BeamSettings(beams, args.tokens, args.tokens, eos_token_ids=(END,), pad_token_id=PAD)
    compiled, took = {}, {}
    for name, constraints in kinds.items():
        start = time.perf_counter()
        compiled[name] = compile_constraints(constraints, tokenizer, args.tokens)
        took[name] = time.perf_counter() - start
    table = Table(f"constraints, {studies} x {beams}", "compile", "search", "over plain", "us a beam-step", "unmet")
    sides = {"none": None, **compiled}
    for lean in (True, False):
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        unmet = {}
        for turn in range(args.rounds + 1):
            for name, entry in sides.items():
                start = time.perf_counter()
                found = beam_search(
                    model, settings, inputs_embeds=embeds, constraints=[entry] * studies if entry else None, lean=lean
                )
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                unmet[name] = sum(bool(rows[0].unmet) for rows in found)
        plain = statistics.median(seconds["none"])
        for name in sides:
            middle = statistics.median(seconds[name])
            step = (middle - plain) / (args.tokens * studies * beams) * 1e6
            way = "short way" if lean else "own forward"
            compile_time = f"{took[name]:.3f} s" if name in took else ""
            more = f"{100 * (middle / plain - 1):+.1f}%"
            row = (f"{name} ({way})", compile_time, f"{middle:.2f} s", more, f"{step:.1f}", f"{unmet[name]}/{studies}")
            table.add_row(*row)
    CONSOLE.print(table)


def main() -> None:
    """Print the tables."""
    args = arguments()
    torch.set_num_threads(args.threads)
    model = make_model(args)
    cases = [tuple(int(number) for number in case.split("x")) for case in args.cases]
    if args.memory_of:
        CONSOLE.print(measure_memory(make_sides(model, args, *cases[0])[args.memory_of], args.device))
        return
    title = f"{args.dtype}, {args.device}, {args.threads} threads, vocabulary {args.vocabulary}"
    table = Table("studies x beams", "generate()", "own forward", "short way", "same answers", "limit", title=title)
    for studies, beams in cases:
        compare(model, args, table, studies, beams)
    CONSOLE.print(table)
    if not args.skip_constraints:
        for studies, beams in (cases[0], cases[-1]):
            constraint_costs(model, args, studies, beams)


if __name__ == "__main__":
    main()
