"""Metrics of other packages by entry point: RadGraph, CheXbert and the like, where installed with local weights.

A plug-in is an entry point of the group `radscribe.metrics` that names a function
`(predictions: list[str], references: list[str]) -> dict[str, list[float]]`: score name -> one value a study. Nothing is
downloaded: an adapter raises `InputError` when its weights are not on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util

import numpy as np

from vlm.evaluation.inputs import Joined
from vlm.evaluation.resampling import intervals, mean_score, subset
from vlm.evaluation.result import Evaluation
from vlm.evaluation.run import Settings
from vlm.types import InputError

GROUP = "radscribe.metrics"
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
            values = function(list(texts), list(joined.references))
            target = result.system(system)
            added = []
            for metric, row in values.items():
                per_study = np.asarray(row, dtype=float)
                if per_study.shape != (len(joined.ids),):
                    raise InputError(
                        f"--plugin {name!r}: {metric} has {per_study.size} values for {len(joined.ids)} studies"
                    )
                added.append(mean_score(metric, per_study, f"{metric}|plugin:{name}|level:report mean"))
            target.scores.extend(added)
            result.signatures |= {score.name: f"{score.signature}|studies:{len(joined.ids)}" for score in added}
            if target.new is not None and result.is_new is not None:
                target.new.extend(subset(added, result.is_new))
            if settings.resamples and added:
                target.intervals |= intervals(added, settings.resamples, settings.seed, settings.level)


def radgraph(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    """RadGraph F1 (Jain et al., 2021; Delbrouck et al., 2022) by the `radgraph` package and weights on the disk."""
    _need("radgraph", "radgraph")
    from radgraph import F1RadGraph

    try:
        rewards = F1RadGraph(reward_level="all")(hyps=predictions, refs=references)[1]
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--plugin 'radgraph': no weights on this machine ({str(error)[:100]}); fetch them once"
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
            f"--plugin 'chexbert': no weights on this machine ({str(error)[:100]}); fetch them once"
        ) from error
    return {"chexbert_agreement": (said == true).mean(axis=1).tolist()}


def _need(package: str, plugin: str) -> None:
    if util.find_spec(package) is None:
        raise InputError(f"--plugin {plugin!r} needs the package {package} and its weights: pip install {package}")


BUILTIN: dict[str, Plugin] = {"radgraph": radgraph, "chexbert": chexbert}
