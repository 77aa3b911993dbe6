"""Measures what decoding does for reports: constrained and consistent against plain beam search of the same width, and
beams by need against a fixed width at the same cost.

    python scripts/measure_decoding.py encode STUDIES --out CACHE         image half, once
    python scripts/measure_decoding.py write CACHE --system plain         one row of the table
    python scripts/measure_decoding.py table CACHE --out table.md         all rows, with paired intervals
    python scripts/measure_decoding.py calibrate CACHE                    confidence of sentences: ECE, and Platt's fit

Systems are in `SYSTEMS`. The image half is computed once a study and kept; only the first section is written, which is
what text metrics score. Reports are appended to `CACHE/SYSTEM.jsonl`; a call goes on where another one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from knowledge.rules import contradictions
from vlm.data.batches import pad
from vlm.data.sources import read_studies
from vlm.evaluation.clinical import FindingReader, finding_scores
from vlm.evaluation.resampling import Score, compare, mean_score
from vlm.evaluation.text import cider, index_texts
from vlm.evaluation.tokens import make_profile
from vlm.generation.beam_search import beam_search
from vlm.generation.confidence import calibration_error, cross_fitted, fit_confidence, sentence_outcomes
from vlm.generation.consistency import rerank
from vlm.generation.evidence import Evidence
from vlm.generation.judging import EvidenceJudge, Judges
from vlm.generation.planning import beam_plan
from vlm.generation.structuring import share_sides
from vlm.pipeline import Pipeline
from vlm.seeing import Seen
from vlm.types import Box, InputError, Study
from vlm.writing import GenerationSettings

CONSOLE = Console()


@dataclass(frozen=True, slots=True)
class System:
    """One row: beams, whether findings steer, nats for a contradiction, reranking, samples and beams by need."""

    width: int = 4
    steer: bool = True
    contradiction: float = 0.0
    rerank: bool = False
    planned: bool = False


SYSTEMS = {
    "plain": System(steer=False),
    "constrained": System(),
    "consistent": System(contradiction=5.0, rerank=True),
    "planned": System(contradiction=5.0, rerank=True, planned=True),
    "fixed5": System(5, contradiction=5.0, rerank=True),  # beams by need take 5.3 on Open-i validation
}


def encode(args: argparse.Namespace) -> None:
    """Writes prompts as embeddings, evidence and references of every study, sixteen at a time."""
    pipeline = Pipeline.load(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    studies = read_studies(args.studies, args.format, args.split)[: args.limit]
    section = pipeline.checkpoint.config.data.report_sections[0]
    with (args.out / "studies.jsonl").open("w", encoding="utf-8") as rows:
        for start in range(0, len(studies), 16):
            _encode_batch(pipeline, studies[start : start + 16], section, args.out / f"{start:06d}.safetensors", rows)
            CONSOLE.print(f"{start + 16} of {len(studies)}", highlight=False)


@torch.inference_mode()
def _encode_batch(pipeline: Pipeline, studies: list[Study], section: str, path: Path, rows: object) -> None:
    examples, kept = [], []
    for study in studies:
        try:
            examples.append(pipeline.builder.build(replace(study, report=None, findings=None, boxes=None)))
            kept.append(study)
        except InputError as error:
            CONSOLE.print(f"{study.id}: {error}", style="yellow", markup=False)
    batch = pipeline.on_device(pipeline.collate(examples))
    image = pipeline.model.encode(batch)
    seen = pipeline.seer.see(image, batch, examples, False)
    prompts = [
        pipeline.writer._prompt(pipeline.builder, e, {}, section, s) for e, s in zip(examples, seen, strict=True)
    ]
    ids, mask = pad(prompts, pipeline.checkpoint.tokenizer.pad_token_id, left=True)
    prefix, prefix_mask = pipeline.model.prefix(image, replace(batch, prompt_ids=ids, prompt_mask=mask))
    tensors = {}
    for row, study in enumerate(kept):
        tensors[study.id] = prefix[row][prefix_mask[row].bool()].float().contiguous().clone()
        evidence = seen[row].evidence
        line = {
            "id": study.id, "reference": (study.report or {}).get(section, ""), "modality": str(examples[row].modality),
            "probabilities": dict(evidence.probabilities), "boxes": [asdict(b) for b in evidence.boxes],
            "widths": list(evidence.widths), "file": path.name,
        }  # fmt: skip
        rows.write(json.dumps(line) + "\n")  # type: ignore[attr-defined]
    save_file(tensors, path)


def write(args: argparse.Namespace) -> None:
    """Writes the reports of one system over a cache."""
    pipeline = Pipeline.load(args.checkpoint)
    system, path = SYSTEMS[args.system], args.cache / f"{args.system}.jsonl"
    rows = _read(args.cache / "studies.jsonl")[: args.limit]
    done = {row["id"] for row in _read(path)} if path.is_file() else set()
    todo = [row for row in rows if row["id"] not in done]
    plans = [_plan(pipeline, system, row) for row in todo]
    order = sorted(range(len(todo)), key=lambda i: (plans[i], todo[i]["file"]))
    with path.open("a", encoding="utf-8") as out:
        for start, end in _runs([plans[i] for i in order], args.batch):
            part = [todo[i] for i in order[start:end]]
            began = time.process_time()
            for line in _write_batch(pipeline, args.cache, part, system, plans[order[start]]):
                line["seconds"] = round((time.process_time() - began) / len(part), 3)
                out.write(json.dumps(line) + "\n")
            out.flush()
            CONSOLE.print(f"{args.system}: {len(done) + end} of {len(rows)}", highlight=False)


def _plan(pipeline: Pipeline, system: System, row: dict[str, Any]) -> tuple[int, int, float]:
    """Width, shortest text and length penalty of a study."""
    base = pipeline.writer._beams(system.width, pipeline.checkpoint.config.generation)
    if not system.planned:
        return base.num_beams, base.min_new_tokens, base.length_penalty
    plan = beam_plan(_evidence(pipeline, row), base)
    return plan.width, plan.min_new_tokens, plan.length_penalty


def _runs(keys: Sequence[Any], most: int) -> list[tuple[int, int]]:
    """Spans of equal keys, none longer than `most`."""
    spans, start = [], 0
    for place in range(1, len(keys) + 1):
        if place == len(keys) or keys[place] != keys[start] or place - start == most:
            spans.append((start, place))
            start = place
    return spans


def _evidence(pipeline: Pipeline, row: dict[str, Any]) -> Evidence:
    boxes = [Box(tuple(b["xyxy"]), b["label"], b["image"], b["confidence"]) for b in row["boxes"]]
    seer = pipeline.seer
    return Evidence(row["probabilities"], boxes, row["widths"], seer.thresholds, seer.least)


def _prompts(cache: Path, rows: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    files = {row["file"]: load_file(cache / row["file"]) for row in rows}
    prompts = [files[row["file"]][row["id"]] for row in rows]
    longest = max(map(len, prompts))
    prefix = torch.stack([torch.nn.functional.pad(p, (0, 0, longest - len(p), 0)) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return prefix, mask


def _write_batch(
    pipeline: Pipeline, cache: Path, rows: list[dict[str, Any]], system: System, plan: tuple[int, int, float]
) -> list[dict[str, Any]]:
    writer, generation = pipeline.writer, pipeline.checkpoint.config.generation
    evidence = [_evidence(pipeline, row) for row in rows]
    prefix, mask = _prompts(cache, rows)
    width, least, penalty = plan
    settings = replace(writer._beams(width, generation), min_new_tokens=least, length_penalty=penalty)
    constraints, judges = None, None
    if system.steer:
        seen = [Seen(own, tuple(own.boxes)) for own in evidence]
        asked = [writer.constraints(own, GenerationSettings(), generation) for own in seen]
        constraints = [writer._compile(own, generation.max_new_tokens) for own in asked]
    if system.contradiction:
        own = [EvidenceJudge(writer.structurer, e, system.contradiction) for e in evidence]
        judges = Judges(own, pipeline.checkpoint.tokenizer, writer.watched)
    language = pipeline.model.language.model
    found = beam_search(
        language, settings, inputs_embeds=prefix, attention_mask=mask, constraints=constraints, judges=judges
    )
    return [
        _judged(pipeline, row, own, answers, system, width)
        for row, own, answers in zip(rows, evidence, found, strict=True)
    ]


def _judged(
    pipeline: Pipeline, row: dict[str, Any], evidence: Evidence, answers: Sequence[Any], system: System, width: int
) -> dict[str, Any]:
    """The answer that is kept, and what is wrong with it."""
    writer = pipeline.writer
    texts = [writer._text(a.tokens) for a in answers]
    best = 0
    if system.rerank:
        fewest = len(answers[0].unmet)
        alike = [i for i, a in enumerate(answers) if len(a.unmet) <= fewest and texts[i]] or [0]
        judge = EvidenceJudge(writer.structurer, evidence, 1.0)
        counts = [judge.count(texts[i], True) for i in alike]
        alike = [i for i, count in zip(alike, counts, strict=True) if count == min(counts)]
        scores = [answers[i].score for i in alike]
        best = alike[rerank([texts[i] for i in alike], scores, writer.structurer, evidence)[0]]
    text = texts[best]
    mentions = share_sides(writer.structurer.reader.read(text, "findings"))
    said = writer.structurer.said(mentions, evidence)
    against = [(m.start, s) for m, s in said if s.verdict < 0]
    sentences = writer.structurer.sentences({"findings": text}, evidence)
    flagged = {label for s in sentences if s.status == "contradicted" for label in s.labels}
    return {
        "id": row["id"], "text": text, "unmet": list(answers[best].unmet),
        "against": len({(start, s.about) for start, s in against}), "wrong_side": sum(s.swapped for _, s in said),
        "unflagged": sum(s.label not in flagged for _, s in against),
        "within": len(contradictions(mentions, writer.structurer.graph)),
        "flagged": sum(s.status == "contradicted" for s in sentences),
        "beam_steps": width * len(answers[best].tokens),
        "sentences": [asdict(s) for s in sentences],
    }  # fmt: skip


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _scores(rows: Sequence[dict[str, Any]], references: Sequence[str], reader: FindingReader) -> list[Score]:
    texts = [row["text"] for row in rows]
    profile = make_profile("canonical")
    index, documents = index_texts(
        [profile.reference(text) for text in references], {"own": [profile.prediction(text) for text in texts]}
    )
    scores = finding_scores(reader.read(texts), reader.read(list(references)))
    wanted = ("finding_f1_micro", "finding_f1_macro", "false_statements", "omissions")
    kept = [score for score in scores if score.name in wanted] + [cider(index, documents["own"])]
    first: dict[str, int] = {}
    new = np.array([first.setdefault(text, i) == i for i, text in enumerate(texts)], dtype=float)
    kept.append(mean_score("unique_share", new, "unique"))
    for name in ("within", "against", "wrong_side", "unflagged", "unmet", "beam_steps"):
        values = [len(row[name]) if name == "unmet" else row[name] for row in rows]
        kept.append(mean_score(name, np.array(values, dtype=float), name, low=True))
    return kept


def table(args: argparse.Namespace) -> None:
    """Prints and writes the table as Markdown: each system, and its difference to the first one with its interval."""
    names = [name for name in args.systems or SYSTEMS if (args.cache / f"{name}.jsonl").is_file()]
    found = {name: {row["id"]: row for row in _read(args.cache / f"{name}.jsonl")} for name in names}
    studies = [s for s in _read(args.cache / "studies.jsonl") if all(s["id"] in rows for rows in found.values())]
    references, reader = [s["reference"] for s in studies], FindingReader()
    scores = {name: _scores([found[name][s["id"]] for s in studies], references, reader) for name in names}
    lines = [f"{len(studies)} studies; in brackets the difference to {names[0]} with its paired 95% interval.", ""]
    lines += ["| a report | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    gaps = {name: compare(scores[name], scores[names[0]], args.resamples) for name in names[1:]}
    for place, score in enumerate(scores[names[0]]):
        cells = [f"{score.value:.3f}"]
        for name in names[1:]:
            gap = gaps[name][score.name]
            span = f"{gap.value:+.3f}, {gap.interval.low:+.3f} to {gap.interval.high:+.3f}"
            cells.append(f"{scores[name][place].value:.3f} ({span})")
        lines.append(f"| {score.name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


def calibrate(args: argparse.Namespace) -> None:
    """Prints the calibration error of sentences' confidence, as it is and after a cross-fitted calibration."""
    pipeline = Pipeline.load(args.checkpoint)
    structurer = pipeline.writer.structurer
    studies = {row["id"]: row for row in _read(args.cache / "studies.jsonl")}
    confidence: list[float] = []
    right: list[bool] = []
    groups: list[int] = []
    for number, row in enumerate(_read(args.cache / f"{args.system}.jsonl")):
        study = studies[row["id"]]
        sentences = structurer.sentences({"findings": row["text"]}, _evidence(pipeline, study))
        for value, hit in sentence_outcomes(sentences, study["reference"], structurer):
            confidence.append(value)
            right.append(hit)
            groups.append(number % 5)
    raw, mended = calibration_error(confidence, right), cross_fitted(confidence, right, groups)
    slope, offset = fit_confidence(confidence, right)
    lines = [
        f"{len(right)} sentences, {100 * np.mean(right):.1f}% right, mean confidence {np.mean(confidence):.3f}",
        f"ECE {raw:.4f} as it is, {calibration_error(mended, right):.4f} calibrated (five folds of studies)",
        f"all of them: slope {slope:.4f}, offset {offset:.4f}",
    ]
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in lines:
        CONSOLE.print(line, highlight=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("encode", "write", "table", "calibrate"):
        verb = verbs.add_parser(name)
        verb.add_argument("--checkpoint", type=Path)
        verb.add_argument("--limit", type=int)
        if name == "encode":
            verb.add_argument("studies", type=Path)
            verb.add_argument("--format", default="auto")
            verb.add_argument("--split")
            verb.add_argument("--out", type=Path, required=True)
            continue
        verb.add_argument("cache", type=Path)
        verb.add_argument("--out", type=Path)
        verb.add_argument("--system", choices=list(SYSTEMS), default="consistent")
        verb.add_argument("--systems", nargs="+", choices=list(SYSTEMS))
        verb.add_argument("--batch", type=int, default=8)
        verb.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    {"encode": encode, "write": write, "table": table, "calibrate": calibrate}[args.verb](args)


if __name__ == "__main__":
    main()
