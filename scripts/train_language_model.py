"""Trains the embedded language model from scratch on report text and saves it as an ordinary Hugging Face folder.

The text is Open-i (training part and the studies in neither R2Gen part), MedPix (training part) and ROCO captions.
Everything of the validation parts, and 2% of ROCO, is held out; its perplexity is written to `training.json` beside
the weights. A byte-level BPE tokenizer is trained on the same text. The de-identifier's mark XXXX is one token that
carries no loss, so the model never learns to write it.

    python scripts/train_language_model.py --data ../shared/data --out runs/language_model
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEIDENTIFIED = "XXXX"


def openi_texts(folder: Path) -> tuple[list[str], list[str]]:
    """Reports in the format in which the report generator is prompted; split by R2Gen's annotation, rest to
    training."""
    annotation = json.loads((folder / "r2gen_annotation.json").read_text())
    held_out = {re.match(r"CXR(\d+)_", study["id"]).group(1) for study in annotation["val"]}
    train: list[str] = []
    validation: list[str] = []
    with (folder / "indiana_reports.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            text = "Modality: xray."
            if row["indication"].strip():
                text += f"\nIndication: {row['indication'].strip()}"
            if row["findings"].strip():
                text += f"\nFindings: {row['findings'].strip()}"
            if row["impression"].strip():
                text += f"\nImpression: {row['impression'].strip()}"
            (validation if row["uid"] in held_out else train).append(text)
    return train, validation


def medpix_texts(folder: Path) -> tuple[list[str], list[str]]:
    """Captions and case findings; placeholders and repeats are left out."""
    parts: dict[str, dict[str, None]] = {"train": {}, "dev": {}}
    for line in (folder / "cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        modality = {"CT": "ct", "MR": "mr"}.get(case["modality"], "other")
        for key, section in (("caption", "Findings"), ("case_findings", "Findings"), ("diagnosis", "Impression")):
            text = " ".join((case.get(key) or "").split())
            if len(text) > 15 and not text.startswith("Replace this"):
                parts[case["split"]][f"Modality: {modality}.\n{section}: {text[:1500]}"] = None
    return list(parts["train"]), list(parts["dev"])


def roco_texts(path: Path) -> tuple[list[str], list[str]]:
    """Figure captions; every fiftieth is held out."""
    captions = []
    for line in path.read_text().splitlines():
        _, _, caption = line.partition("\t")
        captions.append(" ".join(caption.split())[:1200])
    captions = [c for c in captions if len(c) > 15]
    return [c for i, c in enumerate(captions) if i % 50], captions[::50]


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", AddedToken(DEIDENTIFIED, normalized=False, special=True)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def pack(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """Documents, each between <s> and </s>, cut into rows of `length` tokens: (rows, length)."""
    stream: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    rows = len(stream) // length
    return torch.tensor(stream[: rows * length]).view(rows, length)


def mask_labels(ids: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Labels without the de-identifier's mark."""
    return ids.masked_fill(ids == tokenizer.convert_tokens_to_ids(DEIDENTIFIED), -100)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, float]:
    """Perplexity per token, document by document, each read from its <s> alone."""
    model.eval()
    nll, count = 0.0, 0
    order = sorted(texts, key=len)
    for start in range(0, len(order), 16):
        batch = tokenizer(
            [f"<s>{t}</s>" for t in order[start : start + 16]],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=256,
        )
        labels = mask_labels(batch["input_ids"], tokenizer).masked_fill(batch["attention_mask"] == 0, -100)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        target = labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), target, reduction="sum")
        nll += loss.item()
        count += int((target != -100).sum())
    model.train()
    return {"perplexity": round(math.exp(nll / count), 3), "nats_per_token": round(nll / count, 4), "tokens": count}


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict) -> None:
    """The folder a Hugging Face user expects, and what the training measured."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RADSCRIBE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("runs/language_model"))
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--hidden-size", type=int, default=320)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    sources = {
        "openi": openi_texts(arguments.data / "openi"),
        "medpix": medpix_texts(arguments.data / "medpix"),
        "roco": roco_texts(arguments.data / "text" / "roco_radiology_captions.tsv"),
    }
    # Open-i is the register in which reports are written, and the smallest source: it is seen twice as often.
    texts = [t for name, (train, _) in sources.items() for t in train * (2 if name == "openi" else 1)]
    tokenizer = train_tokenizer(sorted(set(texts)), arguments.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=arguments.hidden_size, num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden_size // 64, num_key_value_heads=arguments.hidden_size // 64,
        intermediate_size=int(2.8 * arguments.hidden_size), max_position_embeddings=1024, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        attention_dropout=0.1,
    )  # fmt: skip
    # Eager attention: its backward is faster than SDPA's in bf16 on CPUs.
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    parameters = sum(p.numel() for p in model.parameters())
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=arguments.lr,
        betas=(0.9, 0.95),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    steps_an_epoch = len(pack(texts, tokenizer, arguments.length)) // arguments.batch_size
    total = int(steps_an_epoch * arguments.epochs)
    warmup = max(1, total // 20)
    print(
        f"{parameters / 1e6:.1f} M parameters, {total} steps of {arguments.batch_size}x{arguments.length} tokens",
        flush=True,
    )
    step, epoch, begun = 0, 0, time.time()
    while step < total:
        order = texts[:]
        random.Random(arguments.seed + epoch).shuffle(order)
        rows = pack(order, tokenizer, arguments.length)
        for start in range(0, len(rows) - arguments.batch_size + 1, arguments.batch_size):
            if step >= total:
                break
            ids = rows[start : start + arguments.batch_size]
            scale = min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = arguments.lr * scale
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, labels=mask_labels(ids, tokenizer)).loss
            if not torch.isfinite(loss):
                raise SystemExit(f"the loss is {loss.item()} at step {step}: lower --lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 25 == 0:
                rate = step * ids.numel() / (time.time() - begun)
                print(f"step {step}/{total} loss {loss.item():.3f} {rate:.0f} tokens/s", flush=True)
        epoch += 1
        held_out = {name: perplexity(model, tokenizer, validation) for name, (_, validation) in sources.items()}
        print(f"epoch {epoch}: {held_out}", flush=True)
        record = {"parameters": parameters, "steps": step, "seed": arguments.seed, "held_out": held_out,
                  "texts": {name: len(train) for name, (train, _) in sources.items()}}  # fmt: skip
        save(arguments.out, model, tokenizer, record)


if __name__ == "__main__":
    main()
