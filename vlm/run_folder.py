"""The folder of a run: its configuration and versions, its log, its curve."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlm import __version__
from vlm.config import Config
from vlm.types import InputError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "timm", "bitsandbytes", "datasets", "numpy")


FREE = {f"training.{name}" for name in ("save_minutes", "log_every", "keep", "processes", "timeout_seconds", "shard")}
"""Settings that change nothing of what a run computes, and may differ when it is resumed."""


def own_folder(out: Path, config: Config, resume: bool, graph: str) -> None:
    """Keeps the resolved configuration and the versions beside the run, and the hash of its knowledge graph.

    Raises:
        InputError: the folder holds a run of another configuration, and what differs is listed, or of another graph.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    mine = config.model_dump(mode="json")
    if resume and path.is_file() and (out / "state" / "latest.json").is_file():
        theirs, ours = flat(_filled(json.loads(path.read_text(encoding="utf-8")))), flat(mine)
        different = sorted(k for k in {*theirs, *ours} - FREE if theirs.get(k) != ours.get(k))
        if different:
            shown = ", ".join(f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} here" for k in different[:5])
            more = f", and {len(different) - 5} more" if len(different) > 5 else ""
            raise InputError(
                f"{out}: holds a run with another configuration ({shown}{more}); "
                "choose another --out, or start anew with --no-resume"
            )
        before = _kept_graph(out)
        if before is not None and before != graph:
            raise InputError(
                f"{out}: was trained with another knowledge graph (hash {before[:12]}, now {graph[:12]}): "
                "put the graph back, choose another --out, or start anew with --no-resume"
            )
    path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    kept = {**versions(), "graph": graph}
    (out / "versions.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _filled(tree: Any) -> Any:
    """A kept configuration with the defaults of settings that came after it; as it is where it can't be read today."""
    try:
        return Config.model_validate(tree).model_dump(mode="json")
    except ValidationError:
        return tree


def _kept_graph(out: Path) -> str | None:
    """Hash of the graph that a run was begun with; None where it was not noted."""
    try:
        kept = json.loads((out / "versions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept.get("graph") if isinstance(kept, dict) else None


def versions() -> dict[str, str]:
    """Of Radscribe, Python and the packages that decide what a run computes."""
    found = {"radscribe": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree as dotted keys."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if pairs is None:
        return {prefix.rstrip("."): tree}
    return {k: v for key, sub in pairs for k, v in flat(sub, f"{prefix}{key}.").items()}


def read_log(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a killed process left half-written is passed over."""
    rows = []
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def draw_curve(out: Path) -> None:
    """Draws metrics.jsonl as `curve.png`: training terms by step, validation by epoch, stages side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_log(out)
    stages = list(dict.fromkeys(r["stage"] for r in rows))
    figure, axes = pyplot.subplots(1, max(1, len(stages)), figsize=(5 * max(1, len(stages)), 4), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=False):
        steps = [r for r in rows if r["stage"] == stage and "epoch" not in r]
        epochs = [r for r in rows if r["stage"] == stage and "epoch" in r]
        for name in sorted({k for r in steps for k in r} - {"stage", "step", "lr"}):
            axis.plot(
                [r["step"] for r in steps if name in r], [r[name] for r in steps if name in r], alpha=0.5, label=name
            )
        for name in ("loss", "auc", "map", "cider", "bleu4", "finding_f1", "old_loss", "old_auc", "old_map"):
            told = [r for r in epochs if name in r]
            if told:
                label, line = (
                    f"validation {name}".replace("_", " ", int("old" in name)),
                    "s--" if "old" in name else "o-",
                )
                axis.plot([r["step"] for r in told], [r[name] for r in told], line, label=label)
        axis.set(title=stage, xlabel="step", yscale="log")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "curve.png", dpi=110)
    pyplot.close(figure)
