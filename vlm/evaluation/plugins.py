"""Metrics of other packages by entry point: RadGraph, CheXbert and the like, where installed with local weights.

A plug-in is a function that a distribution names under the group `radscribe.metrics`:

    [project.entry-points."radscribe.metrics"]
    mymetric = "mypackage.scoring:score"

    def score(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
        return {"mymetric_f1": [...]}          # score name -> one value a study, NaN where undefined, higher is better

`vlm evaluate ... --plugin mymetric` calls it once a system, with the texts as written and in one order, and adds the
mean with its interval to tables, JSON and CSV. Nothing is downloaded: Hugging Face's hub is told to stay offline while
a plug-in runs, and one whose weights are not on the disk raises `InputError`, which is shown as one line. `radgraph`
and `chexbert` are adapters that ship; an entry point of their name replaces them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util

import numpy as np

from vlm.evaluation.inputs import Joined
from vlm.evaluation.resampling import intervals, mean_score, subset
from vlm.evaluation.result import Evaluation
from vlm.evaluation.run import Settings
from vlm.types import InputError

GROUP = "radscribe.metrics"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
Plugin = Callable[[list[str], list[str]], Mapping[str, Sequence[float]]]


def load_plugin(name: str) -> Plugin:
    """Returns the function of a plug-in.

    Raises:
        InputError: no such plug-in is installed, or it can't be imported.
    """
    found = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in found and name not in BUILTIN:
        known = ", ".join(sorted({*found, *BUILTIN}))
        raise InputError(f"--plugin {name!r} is not installed; entry points of {GROUP}: {known}")
    if name not in found:
        return BUILTIN[name]
    try:
        function: Plugin = found[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"--plugin {name!r} is installed but can't be imported ({error}); reinstall its package"
        ) from error
    return function


def add_plugins(result: Evaluation, joined: Joined, names: Sequence[str], settings: Settings) -> None:
    """Adds the scores of plug-ins to the systems of an evaluation (floors are left out: such models are slow).

    Raises:
        InputError: a plug-in is absent, fails, or returns something else than one number a study.
    """
    for name in names:
        function = load_plugin(name)
        for system, texts in joined.systems.items():
            target = result.system(system)
            known = {score.name for score in target.scores}
            added = [
                mean_score(metric, per_study, f"{metric}|plugin:{name}|level:report mean")
                for metric, per_study in _call(name, function, list(texts), list(joined.references)).items()
            ]
            twice = [score.name for score in added if score.name in known]
            if twice:
                raise InputError(
                    f"--plugin {name!r}: there is a score {twice[0]!r} already; the plug-in must rename it"
                )
            target.scores.extend(added)
            result.plugin_scores.extend(s.name for s in added if s.name not in result.plugin_scores)
            result.signatures |= {score.name: f"{score.signature}|studies:{len(joined.ids)}" for score in added}
            if target.new is not None and result.is_new is not None:
                target.new.extend(subset(added, result.is_new))
            if settings.resamples and added:
                target.intervals |= intervals(added, settings.resamples, settings.seed, settings.level)


def _call(name: str, function: Plugin, predictions: list[str], references: list[str]) -> dict[str, np.ndarray]:
    """Runs a plug-in with the hub offline and checks what it returns."""
    before = {key: os.environ.get(key) for key in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    try:
        values = function(predictions, references)
        rows = {str(metric): np.asarray(row, dtype=float) for metric, row in values.items()}
    except InputError:
        raise
    except Exception as error:  # another package's code: whatever it raises is the plug-in's failure, not ours
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"--plugin {name!r} failed ({line}); it must return score name -> one number a study"
        ) from error
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
    for metric, row in rows.items():
        if row.shape != (len(predictions),):
            raise InputError(f"--plugin {name!r}: {metric} has {row.size} values for {len(predictions)} studies")
    return rows


def radgraph(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    """RadGraph F1 (Jain et al., 2021; Delbrouck et al., 2022) by the `radgraph` package and weights on the disk."""
    _need("radgraph", "radgraph")
    from radgraph import F1RadGraph

    try:
        rewards = F1RadGraph(reward_level="all")(hyps=predictions, refs=references)[1]
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--plugin 'radgraph': no weights on this machine ({str(error)[:80]}); fetch them once, online"
        ) from error
    simple, partial, complete = rewards
    return {"radgraph_simple": list(simple), "radgraph_partial": list(partial), "radgraph_complete": list(complete)}


def chexbert(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    """CheXbert agreement (Smit et al., 2020), the share of 14 classes on which both texts agree, by `f1chexbert`."""
    _need("f1chexbert", "chexbert")
    from f1chexbert import F1CheXbert

    try:
        labeler = F1CheXbert(device="cpu")
        said = np.array([labeler.get_label(text) for text in predictions])
        true = np.array([labeler.get_label(text) for text in references])
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--plugin 'chexbert': no weights on this machine ({str(error)[:80]}); fetch them once, online"
        ) from error
    return {"chexbert_agreement": (said == true).mean(axis=1).tolist()}


def _need(package: str, plugin: str) -> None:
    if util.find_spec(package) is None:
        raise InputError(f"--plugin {plugin!r} needs the package {package} and its weights: pip install {package}")


BUILTIN: dict[str, Plugin] = {"radgraph": radgraph, "chexbert": chexbert}
