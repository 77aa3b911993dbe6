"""A checkpoint is one folder that reloads to the same logits: weights, adapter, language model, tokenizer, graph,
configuration.

::

    checkpoint.json      format, versions, resolved configuration, labels, calibration, graph hash, the language
                         model's name, revision and fingerprint, sha256 of every other file
    model.safetensors    everything but the language model
    graph.json           the knowledge graph it was trained with
    language/            an ordinary Hugging Face folder; a hub id or a large folder is left out and named instead
    adapter/             an ordinary PEFT folder

Nothing is a pickle. A file that is missing, altered or foreign is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from knowledge.errors import KnowledgeError
from knowledge.graph import KnowledgeGraph
from vlm import __version__
from vlm.config import Config, parse_config
from vlm.models.adapters import base_name, is_adapter, load_adapter
from vlm.models.build import build_model, label_list
from vlm.models.language import fingerprint, load_language_model, origin, source_folder
from vlm.models.report_generator import ReportGenerator
from vlm.types import InputError

FORMAT = 1
SHIPPED = Path(__file__).parent / "pretrained"
RECORD = "checkpoint.json"
MOST_BUNDLED = 10**9
"""Bytes of a language model's folder up to which checkpoints hold a copy of it."""
LANGUAGE_VARIABLE = "RADSCRIBE_LANGUAGE"
"""Environment variable: where the language model lies that a checkpoint names and does not hold."""
_IGNORED = (".md", ".png", ".gitattributes")


@dataclass(slots=True)
class Calibration:
    """What validation said of the scores.

    Args:
        findings: label -> (slope, offset): probability = sigmoid(slope * logit + offset) (Platt 1999).
        upper, lower: label -> probability above which a finding must be stated, and below which it must not be
            asserted.
        boxes: (slope, offset) for the detection score's logit.
        box_threshold: detection score from which a box counts as evidence; None for confidence 0.5.
        seen: label -> probability from which the prompt names it (the best F1 on validation).
        modalities: modality -> labels that training held present and absent examples of; of others nothing is said. A
            modality that is not named is given every label.
        sentences: (slope, offset) for the logit of a sentence's confidence.
    """

    findings: dict[str, tuple[float, float]] = field(default_factory=dict)
    upper: dict[str, float] = field(default_factory=dict)
    lower: dict[str, float] = field(default_factory=dict)
    boxes: tuple[float, float] = (1.0, 0.0)
    box_threshold: float | None = None
    modalities: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    sentences: tuple[float, float] = (1.0, 0.0)


@dataclass(slots=True)
class Checkpoint:
    """A loaded checkpoint.

    Args:
        model: in evaluation mode. tokenizer: of its language model. graph: the one it was trained with.
        config: as resolved at training. labels: the finding list. hash: sha256 of the record, which names every file's
            hash.
    """

    model: ReportGenerator
    tokenizer: PreTrainedTokenizerBase
    graph: KnowledgeGraph
    config: Config
    labels: tuple[str, ...]
    calibration: Calibration
    metrics: dict[str, Any]
    hash: str = ""


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes the folder at once: it is complete or not there.

    Args:
        folder: replaced when it is a checkpoint; refused when it holds anything else.
        checkpoint: what is written; its model is left as it is.
        dtype: of the floating-point weights on disk. With float16 the reloaded model equals any later reload bit for
            bit, and the model in memory up to rounding.
        state: all weights of the model, where its own are shared out over processes.

    Raises:
        InputError: the folder holds other things.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise InputError(f"{folder}: holds files that are not a checkpoint; choose an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        language = _write_parts(fresh, checkpoint, dtype, state or checkpoint.model.state_dict())
        files = {str(p.relative_to(fresh).as_posix()): _sha256(p) for p in sorted(fresh.rglob("*")) if p.is_file()}
        record = {
            "format": FORMAT, "radscribe": __version__,
            "labels": list(checkpoint.labels),
            "graph_hash": checkpoint.graph.hash, "language": language,
            "config": _portable(checkpoint.config, language), "metrics": checkpoint.metrics, "files": files,
            "calibration": asdict(checkpoint.calibration),
        }  # fmt: skip
        (fresh / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.chmod(fresh, 0o755)
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_parts(
    fresh: Path, checkpoint: Checkpoint, dtype: torch.dtype, whole: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Writes everything but the record; returns what the record says of the language model."""
    model = checkpoint.model
    state = {n: _cast(t, dtype) for n, t in whole.items() if not n.startswith("language.")}
    save_file(state, fresh / "model.safetensors")
    checkpoint.graph.save(fresh / "graph.json")
    language, chosen = model.language.model, checkpoint.config.model.language
    source = source_folder(language)
    named = {"path": chosen.path, "revision": chosen.revision, "bundled": bundled(checkpoint.config, source)}
    if named["bundled"]:
        _write_language(fresh / "language", checkpoint, source, dtype, whole)
        named |= {"path": "language", "revision": None, "fingerprint": fingerprint(fresh / "language")}
    else:
        name, commit = origin(model.language.base)
        path = str(Path(name).resolve()) if Path(name).is_dir() else name
        named |= {"path": path, "revision": commit, "fingerprint": fingerprint(source)}
    if isinstance(language, PeftModel):
        inside = {n.removeprefix("language.model."): t for n, t in whole.items() if n.startswith("language.model.")}
        write_adapter(
            fresh / "adapter", language, dtype, "../language" if named["bundled"] else str(named["path"]), inside
        )
    return named


def bundled(config: Config, source: Path) -> bool:
    """Whether a checkpoint holds the language model itself: one that was trained always, a small folder by default."""
    chosen = config.model.language
    if any("language" in stage.train for stage in config.training.stages) or chosen.bundle == "yes":
        return True
    if chosen.bundle == "no":
        return False
    local = chosen.path in ("shipped", "language") or Path(chosen.path).is_dir()
    return local and sum(p.stat().st_size for p in source.glob("*") if p.is_file()) <= MOST_BUNDLED


def _write_language(
    folder: Path, checkpoint: Checkpoint, source: Path, dtype: torch.dtype, whole: dict[str, torch.Tensor]
) -> None:
    """An ordinary Hugging Face folder. Weights that are held in few bits are copied as they were read."""
    base, chosen = checkpoint.model.language.base, checkpoint.config.model.language
    if chosen.quantize != "none" or chosen.dtype != "float32":
        folder.mkdir()
        for pattern in ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"):
            for file in source.glob(pattern):
                shutil.copyfile(file, folder / file.name)
    else:
        # PEFT renames the layers that it wraps; the base is saved under the names that transformers gave it.
        prefix = next(n for n, m in checkpoint.model.named_modules() if m is base) + "."
        inside = {n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}
        weights = {base_name(n): _cast(t, dtype) for n, t in inside.items() if not is_adapter("." + n)}
        base.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    checkpoint.tokenizer.save_pretrained(folder)


def write_adapter(
    folder: Path, language: PeftModel, dtype: torch.dtype, base: str, state: dict[str, torch.Tensor] | None = None
) -> None:
    """An ordinary PEFT folder.

    Args:
        folder: new. language: whose adapter is written. dtype: on disk. base: what the folder says that it belongs to.
        state: of `language`, where its weights are shared out over processes.
    """
    language.save_pretrained(str(folder), safe_serialization=True, state_dict=state)
    weights = folder / "adapter_model.safetensors"
    save_file({n: _cast(t, dtype) for n, t in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # The path that it was trained from means nothing elsewhere.
    settings |= {"base_model_name_or_path": base, "inference_mode": True}
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _portable(config: Config, language: dict[str, Any]) -> dict[str, Any]:
    """The configuration without paths of the machine it was made on: what a folder held lies in the checkpoint."""
    tree = config.model_dump(mode="json")
    tree["model"]["language"] |= {"path": language["path"], "revision": language["revision"]}
    tree["model"]["knowledge"]["graph"] = None
    weights = tree["model"]["vision"]["weights"]
    tree["model"]["vision"]["weights"] = Path(weights).name if weights and weights != "pretrained" else weights
    return tree


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = tensor.detach().cpu()
    return (out.to(dtype) if out.is_floating_point() else out).contiguous().clone()


def _swap(fresh: Path, folder: Path) -> None:
    """Puts the new folder in place of the old; at any moment one whole checkpoint can be found."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    kept = (
        {p.name: p for p in folder.glob("*") if p.suffix in _IGNORED or p.name == "__init__.py"}
        if folder.exists()
        else {}
    )
    for name, path in kept.items():
        shutil.copy2(path, fresh / name)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any]:
    """The checkpoint's record, after every file was found and its hash compared.

    Raises:
        InputError: naming what is missing, altered or foreign.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder")
    path = folder / RECORD
    if not path.is_file():
        raise InputError(f"{folder}: is not a checkpoint: {RECORD} is missing")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files, made = record["files"], record["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not a checkpoint's record; copy the checkpoint again") from None
    if made != FORMAT:
        version = record.get("radscribe", "of its time")
        raise InputError(f"{path}: format {made}, this version reads {FORMAT}; use radscribe {version}")
    for name, digest in files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            raise InputError(f"{folder}: {name} is missing; copy the whole checkpoint folder again")
        if _sha256(file) != digest:
            raise InputError(
                f"{folder}: {name} is not the file that this checkpoint was saved with; copy the folder again"
            )
    foreign = [
        p.relative_to(folder).as_posix()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.relative_to(folder).as_posix() not in files
        and p.name != RECORD and p.suffix not in _IGNORED and "__pycache__" not in p.parts and p.name != "__init__.py"
    ]  # fmt: skip
    if foreign:
        raise InputError(f"{folder}: {foreign[0]} is not part of this checkpoint; remove it")
    return record  # type: ignore[no-any-return]


def load_checkpoint(folder: Path | None = None, quantize: str | None = None) -> Checkpoint:
    """Loads a checkpoint, by default the shipped one, in evaluation mode.

    Args:
        folder: of the checkpoint. quantize: how to hold the language model, in place of the checkpoint's own way.

    Raises:
        InputError: naming what is missing, altered, foreign or does not fit.
    """
    folder = folder or SHIPPED
    record = read_record(folder)
    # Checkpoints before 0.2 were trained with the begin token after the images.
    record["config"]["model"]["language"].setdefault("frame", "prompt")
    config = parse_config(record["config"], str(folder / RECORD))
    try:
        graph = KnowledgeGraph.load(folder / "graph.json")
    except KnowledgeError as error:
        raise InputError(str(error)) from None
    if graph.hash != record["graph_hash"]:
        wanted = record["graph_hash"][:12]
        raise InputError(
            f"{folder}/graph.json: is not the graph of this checkpoint (hash {graph.hash[:12]}, not {wanted})"
        )
    chosen = config.model.language
    path = _language_path(folder, record)
    try:
        language, tokenizer = load_language_model(path, chosen.revision, quantize or chosen.quantize, chosen.dtype)
        _check_language(folder, record, language)
        language.requires_grad_(False)
        wrapped: torch.nn.Module = language
        if (folder / "adapter").is_dir():
            wrapped = load_adapter(language, folder / "adapter")
        model, _ = build_model(
            config.model, graph, config.data.image_size.get("default", 256), wrapped, tokenizer, vision_weights=False
        )
        state = load_file(folder / "model.safetensors")
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    missing = [n for n in missing if not n.startswith("language.")]
    if missing or unexpected:
        raise InputError(f"{folder}/model.safetensors: does not fit its configuration: {(missing + unexpected)[0]}")
    return Checkpoint(
        model.eval(),
        tokenizer,
        graph,
        config,
        label_list(graph, config.model.knowledge.view),
        read_calibration(record["calibration"]),
        record["metrics"],
        hashlib.sha256((folder / RECORD).read_bytes()).hexdigest(),
    )


def _language_path(folder: Path, record: dict[str, Any]) -> str:
    """The folder or hub id of the language model; a large one lies elsewhere and may have moved."""
    if (folder / "language").is_dir():
        return str(folder / "language")
    named = record.get("language") or record["config"]["model"]["language"]
    path = os.environ.get(LANGUAGE_VARIABLE) or named["path"]
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise InputError(
            f"{folder}: its language model is not part of it and not at {path}; say where it lies: "
            f"{LANGUAGE_VARIABLE}=/folder"
        )
    return str(path)


def _check_language(folder: Path, record: dict[str, Any], language: torch.nn.Module) -> None:
    """A base that came from elsewhere must be the one that the adapter was trained on."""
    named = record.get("language")
    if named is None or named["bundled"]:
        return
    found = source_folder(language)
    if fingerprint(found) != named["fingerprint"]:
        revision = f" at revision {named['revision']}" if named["revision"] else ""
        raise InputError(
            f"{folder}: was trained on the language model {named['path']}{revision}; the one at {found} has other "
            f"weights. Say where the right one lies: {LANGUAGE_VARIABLE}=/folder"
        )


def read_calibration(saved: dict[str, Any]) -> Calibration:
    """From a record: JSON has no tuples."""
    pairs = {name: (pair[0], pair[1]) for name, pair in saved["findings"].items()}
    boxes = (saved["boxes"][0], saved["boxes"][1])
    slope, offset = saved.get("sentences", (1.0, 0.0))  # checkpoints before 0.2 have none
    return Calibration(
        pairs, saved["upper"], saved["lower"], boxes, saved["box_threshold"], saved["modalities"], saved["seen"],
        (slope, offset),
    )  # fmt: skip


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
