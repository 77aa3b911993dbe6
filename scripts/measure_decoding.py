"""Measures what decoding does for reports: constrained and consistent against plain beam search of the same width, and
beams by need against a fixed width at the same cost.

    python scripts/measure_decoding.py encode STUDIES --out CACHE         image half, once
    python scripts/measure_decoding.py write CACHE --system plain         one row of the table
    python scripts/measure_decoding.py table CACHE --out table.md         all rows, with paired intervals
    python scripts/measure_decoding.py calibrate CACHE                    confidence of sentences: ECE, and Platt's fit

Systems are in `SYSTEMS`. The image half is computed once a study and kept; only the first section is written, which is
what text metrics score.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from vlm.data.batches import pad
from vlm.data.sources import read_studies
from vlm.pipeline import Pipeline
from vlm.types import Box, InputError, Study

CONSOLE = Console()


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
    prompts = [pipeline.writer._prompt(e, {}, section, s) for e, s in zip(examples, seen, strict=True)]
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
