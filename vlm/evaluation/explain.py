"""One report under both profiles, so that a reader sees what each does to it."""

from __future__ import annotations

from rich.console import Console

from vlm.evaluation.inputs import Joined
from vlm.evaluation.text import index_texts, text_scores
from vlm.evaluation.tokens import make_profile
from vlm.types import InputError

EXPLAINED = ("canonical", "r2gen-compat")


def row_of(joined: Joined, study: str) -> int:
    """Returns the place of a study, given by its id or as "first".

    Raises:
        InputError: no such study.
    """
    if study == "first":
        return 0
    if study not in joined.ids:
        raise InputError(
            f"--explain: no study {study!r} among the {len(joined.ids)} scored; the first is {joined.ids[0]!r}"
        )
    return joined.ids.index(study)


def print_explanation(joined: Joined, study: str, console: Console) -> None:
    """Prints a study's reference and predictions as written, then their tokens and scores under each profile.

    Args:
        study: its id, or "first".

    Raises:
        InputError: no such study.
    """
    row = row_of(joined, study)
    study = joined.ids[row]
    console.print(f"Study {study} as written", style="bold", markup=False, highlight=False)
    console.print(f"reference: {joined.references[row]}", markup=False, highlight=False)
    for name, texts in joined.systems.items():
        console.print(f"{name}: {texts[row]}", markup=False, highlight=False)
    for kind in EXPLAINED:
        profile = make_profile(kind)
        references = [profile.reference(text) for text in joined.references]
        tokens = {name: [profile.prediction(text) for text in texts] for name, texts in joined.systems.items()}
        index, systems = index_texts(references, tokens)
        console.print(f"\nUnder {profile.signature}", style="bold", markup=False, highlight=False)
        console.print(f"reference: {references[row]}", markup=False, highlight=False)
        for name in joined.systems:
            scores = [s for s in text_scores(index, systems[name]) if s.name in ("bleu1", "bleu4", "rougeL", "cider")]
            console.print(f"{name}: {tokens[name][row]}", markup=False, highlight=False)
            shown = ", ".join(f"{s.name} {s.per_study[row]:.3f} (all studies {s.value:.3f})" for s in scores)
            console.print(f"  {shown}", markup=False, highlight=False)
    console.print()
