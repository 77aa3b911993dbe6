"""What a search did, step by step: the beams with the state of each constraint, and what which rule cut.

    recorder = Recorder(tokenizer, studies=2)
    beam_search(model, settings, ..., trace=recorder)
    recorder.traces[0]      # plain JSON values, one a study

    {"steps": [{"step": 1, "beams": [{"text": "No", "score": -0.7, "state": {"effusion": "open"}, "bank": 0}],
                "cut": [{"text": "Effusion.", "rule": "must_not_assert"}]}]}

`state` says of each constraint that it is "open" (still to be met), "held", or "banned" (a set that may not be
asserted). `bank` is the stage of meeting required terms (`banks.py`). Of what was cut the best of each step are kept.
Without a recorder the search does none of this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm.generation.tokens import TokenTable
from vlm.generation.tracked import Tracked
from vlm.generation.tracker import Tracker

MOST_CUT = 8
"""Cuts of a step that are kept, the most probable ones."""


class Recorder:
    """Collects the traces of one call of `beam_search`.

    Args:
        tokenizer: of the model.
        studies: number of prompts.
    """

    def __init__(self, tokenizer: Any, studies: int) -> None:
        self.table = TokenTable.of(tokenizer)
        self.traces: list[dict[str, Any]] = [{"steps": []} for _ in range(studies)]
        self._cut: list[list[dict[str, str]]] = [[] for _ in range(studies)]

    def refused(
        self, written: Tensor, step: int, beams: Tensor, tokens: Tensor, scores: Tensor, reasons: dict[str, Tensor]
    ) -> None:
        """Notes the best offers (B, X) that a rule refused.

        Args:
            written: (B, K, T) tokens of the beams, `step` of them.
            beams, tokens, scores: (B, X) of the offers.
            reasons: by rule, (B, X) bool.
        """
        if not reasons:
            return
        alive = scores > -1.0e8
        names = list(reasons)
        which = torch.stack([reasons[name].expand(tokens.shape) & alive for name in names])  # (R, B, X)
        worth = scores.masked_fill(~which.any(0), float("-inf"))
        best, order = worth.topk(min(MOST_CUT, worth.shape[1]))
        for study, (row, values) in enumerate(zip(order.tolist(), best.tolist(), strict=True)):
            for place, value in zip(row, values, strict=True):
                if value == float("-inf"):
                    break
                rule = names[int(which[:, study, place].float().argmax())]
                prefix = written[study, int(beams[study, place]), :step].tolist()
                self._cut[study].append({"text": self._text([*prefix, int(tokens[study, place])]), "rule": rule})

    def step(
        self, written: Tensor, scores: Tensor, step: int, tracked: Tracked | None, tracker: Tracker | None
    ) -> None:
        """Notes the beams (B, K) that go on."""
        met = levels = None
        if tracker is not None and tracked is not None:
            met = (tracked.met | tracker.pending(tracked)).tolist()
            levels = tracker.levels(tracked).tolist() if tracker.has_must else None
        for study, trace in enumerate(self.traces):
            rows = []
            for beam, score in enumerate(scores[study].tolist()):
                if score <= -1.0e8:
                    continue
                state = {} if met is None or tracker is None else _state(tracker, study, met[study][beam])
                bank = 0 if levels is None else int(levels[study][beam])
                text = self._text(written[study, beam, :step].tolist())
                rows.append({"text": text, "score": round(score, 4), "state": state, "bank": bank})
            trace["steps"].append({"step": step, "beams": rows, "cut": self._cut[study]})
        self._cut = [[] for _ in self.traces]

    def _text(self, tokens: list[int]) -> str:
        known = [token for token in tokens if token < len(self.table.pieces)]
        return self.table.write(known).decode("utf-8", "replace")


def _state(tracker: Tracker, study: int, met: int) -> dict[str, str]:
    entry = tracker.constraints[study]
    if entry is None:
        return {}
    state = {name: "held" if met >> bit & 1 else "open" for bit, name in enumerate(entry.names[: entry.must])}
    for group in entry.source.must_not_assert:
        state.setdefault(group.name if group.name not in state else f"not {group.name}", "banned")
    return state
