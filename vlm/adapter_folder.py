"""An adapter on its own: PEFT's folder, and beside it what else a fine-tuning changed.

::

    adapter_config.json, adapter_model.safetensors   PEFT's own format: PEFT loads them with nothing else
    parts.safetensors                                bridge, heads and whatever else differs from the base checkpoint
    radscribe.json                                   what it belongs to (language model, graph, shape); calibration

Several such folders share one base checkpoint; `vlm generate --adapter` chooses. One that was trained on another
language model, another graph or another shape of model is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlm import __version__
from vlm.checkpoint import RECORD, Checkpoint, load_checkpoint, read_calibration, read_record, write_adapter
from vlm.config import parse_config
from vlm.models.adapters import adapter_type, load_adapter
from vlm.models.language import fingerprint, source_folder
from vlm.types import InputError

FORMAT = 1
OWN = "radscribe.json"
PARTS = "parts.safetensors"


def export_adapter(checkpoint: Checkpoint, folder: Path, base: Checkpoint | None = None) -> int:
    """Writes a checkpoint's adapter as a folder of its own.

    Args:
        checkpoint: fine-tuned, with an adapter. folder: new or empty.
        base: the checkpoint that it started from; what is equal in both is left out. None writes every part but the
            language model.

    Returns:
        How many tensors beside the adapter's were written.

    Raises:
        InputError: no adapter, a folder in use, or a base of another shape.
    """
    language = checkpoint.model.language.model
    if not isinstance(language, PeftModel):
        raise InputError("the checkpoint has no adapter to export (its language model was merged or trained whole)")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; choose a new folder")
    identity = _identity(checkpoint)
    if base is not None:
        _compare(identity, _identity(base), "the base checkpoint", "the checkpoint to export")
    own = _parts(checkpoint)
    other = _parts(base) if base is not None else {}
    changed = {n: t.contiguous().clone() for n, t in own.items() if n not in other or not torch.equal(t, other[n])}
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        os.chmod(fresh, 0o755)
        write_adapter(fresh, language, torch.float32, identity["language"]["path"])
        save_file(changed, fresh / PARTS)
        files = {p.name: _sha256(p) for p in sorted(fresh.iterdir())}
        record = {
            "format": FORMAT, "radscribe": __version__, **identity, "base": base.hash if base else None,
            "config": checkpoint.config.model_dump(mode="json", include={"data": True, "generation": True}),
            "calibration": asdict(checkpoint.calibration), "metrics": checkpoint.metrics, "files": files,
        }  # fmt: skip
        (fresh / OWN).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return len(changed)


def apply_adapter(base: Checkpoint, folder: Path) -> Checkpoint:
    """Puts an adapter on a base checkpoint, in place of the one that it has.

    Args:
        base: changed in place. folder: from `export_adapter`, a PEFT folder, or a whole checkpoint.

    Raises:
        InputError: a folder that is none of these, damaged, or made for another base, naming what differs.
    """
    if (folder / RECORD).is_file():
        whole = load_checkpoint(folder)
        _compare(_identity(whole), _identity(base), str(folder), "the base checkpoint")
        return whole
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: is no adapter: adapter_config.json is missing")
    record = _read(folder) if (folder / OWN).is_file() else None
    if record is not None:
        _compare(record, _identity(base), str(folder), "the base checkpoint")
    language = base.model.language
    try:
        plain = language.model
        if isinstance(plain, PeftModel):
            prompt = plain.active_peft_config.is_prompt_learning
            plain = plain.get_base_model() if prompt else plain.unload()  # type: ignore[assignment]
        language.model = load_adapter(plain, folder)
        parts = load_file(folder / PARTS) if record is not None else {}
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
        raise InputError(f"{folder}: does not fit this language model: {' '.join(str(error).split())[:300]}") from None
    language.model.requires_grad_(False)
    base.model.eval()
    named = folder / (OWN if record is not None else "adapter_config.json")
    weights = [_sha256(p) for p in sorted(folder.glob("adapter_model.*"))] if record is None else []
    base.hash = hashlib.sha256("".join([base.hash, _sha256(named), *weights]).encode()).hexdigest()
    if record is None:
        return base
    _, unexpected = base.model.load_state_dict(parts, strict=False)
    if unexpected:
        raise InputError(f"{folder}/{PARTS}: does not fit the base checkpoint: {unexpected[0]}")
    base.calibration, base.metrics = read_calibration(record["calibration"]), record["metrics"]
    told = parse_config({**record["config"], "model": base.config.model.model_dump(mode="json")}, str(folder / OWN))
    base.config = base.config.model_copy(update={"data": told.data, "generation": told.generation})
    return base


def merge_adapter(checkpoint: Checkpoint) -> Checkpoint:
    """Adds the adapter into the language model's weights; the result needs no PEFT and writes the same reports.

    Args:
        checkpoint: changed in place; its language model must be held in full precision.

    Raises:
        InputError: no adapter, or a prefix, which is no change of weights.
    """
    language = checkpoint.model.language
    kind = adapter_type(language.model)
    if kind == "none":
        raise InputError("the checkpoint has no adapter to merge")
    if kind == "prefix":
        raise InputError("a prefix is not a change of weights and can't be merged; keep it as an adapter")
    assert isinstance(language.model, PeftModel)
    language.model = language.model.merge_and_unload()  # type: ignore[operator]
    language.model.requires_grad_(False)
    chosen = checkpoint.config.model.language
    merged = chosen.model_copy(
        update={
            "adapter": chosen.adapter.model_copy(update={"type": "none"}), "quantize": "none", "dtype": "float32",
            "bundle": "yes",
        }
    )  # fmt: skip
    model = checkpoint.config.model.model_copy(update={"language": merged})
    return replace(checkpoint, config=checkpoint.config.model_copy(update={"model": model}))


def describe_adapter(folder: Path) -> dict[str, Any]:
    """What `vlm adapter info` prints: type, rank, targets, sizes, and what the adapter belongs to.

    Raises:
        InputError: a folder without an adapter, or a damaged one.
    """
    peft = folder / "adapter" if (folder / RECORD).is_file() else folder
    if (folder / RECORD).is_file():
        record: dict[str, Any] | None = read_record(folder)
    else:
        record = _read(folder) if (folder / OWN).is_file() else None
    try:
        settings = json.loads((peft / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(peft / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: holds no adapter that can be read: {error}") from None
    named = (record or {}).get("language") or {"path": settings.get("base_model_name_or_path")}
    found = {
        "type": settings.get("peft_type"), "r": settings.get("r"), "alpha": settings.get("lora_alpha"),
        "targets": settings.get("target_modules"), "parameters": sum(t.numel() for t in tensors.values()),
        "layers": len(tensors), "language model": named.get("path"), "revision": named.get("revision"),
        "fingerprint": named.get("fingerprint"), "graph": (record or {}).get("graph_hash"),
    }  # fmt: skip
    if settings.get("use_dora") or settings.get("use_rslora"):
        found["type"] = "DORA" if settings.get("use_dora") else "RSLORA"
    if (folder / PARTS).is_file():
        parts = load_file(folder / PARTS)
        found["other parts"] = sum(t.numel() for t in parts.values())
        found["parts"] = sorted({n.partition(".")[0] for n in parts})
    return {name: value for name, value in found.items() if value is not None}


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What two checkpoints must share for one's adapter to fit the other."""
    language = checkpoint.config.model.language
    source = source_folder(checkpoint.model.language.model)
    shape = checkpoint.config.model.model_dump(mode="json", exclude={"language"})
    shape["knowledge"].pop("graph")
    shape["vision"].pop("weights")
    return {
        "language": {"path": language.path, "revision": language.revision, "fingerprint": fingerprint(source)},
        "frame": language.frame, "graph_hash": checkpoint.graph.hash, "labels": list(checkpoint.labels),
        "shape": shape,
    }  # fmt: skip


def _compare(one: dict[str, Any], other: dict[str, Any], first: str, second: str) -> None:
    if one["language"]["fingerprint"] != other["language"]["fingerprint"]:
        raise InputError(f"{first}: was made for another language model than {second} ({one['language']['path']})")
    if one["graph_hash"] != other["graph_hash"]:
        shown = f"{one['graph_hash'][:12]}, not {other['graph_hash'][:12]}"
        raise InputError(f"{first}: was trained with another knowledge graph than {second} (hash {shown})")
    for key in ("labels", "frame", "shape"):
        if one[key] != other[key]:
            raise InputError(f"{first}: has another {key} than {second}: {_first_difference(one[key], other[key])}")


def _first_difference(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                return f"{key}: {_first_difference(one.get(key), other.get(key))}"
    return f"{str(one)[:80]}, not {str(other)[:80]}"


def _parts(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {n: t.detach().cpu() for n, t in checkpoint.model.state_dict().items() if not n.startswith("language.")}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / OWN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files, made = record["files"], record["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not an adapter's record; copy the folder again") from None
    if made != FORMAT:
        raise InputError(f"{path}: format {made}, this version reads {FORMAT}; use radscribe {record.get('radscribe')}")
    for name, digest in files.items():
        file = folder / Path(name).name
        if not file.is_file() or _sha256(file) != digest:
            raise InputError(f"{folder}: {name} is missing or altered; copy the folder again")
    return record  # type: ignore[no-any-return]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
