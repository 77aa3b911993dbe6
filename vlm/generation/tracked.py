"""The constraint state of beams and offers.

Shapes: `B` studies, `X` beams or offers of a study, `R` remembered sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TERMS, ASSERTION, MET, SENTENCE, FRAME, BEGUN, FIELDS = range(7)


class Tracked:
    """Constraint state of each beam or offer, as int64 fields of one tensor, so that beams are picked in one go.

    What is looked up for it is kept: a step asks for the same things several times, and small operations are what
    constraints cost.

    Args:
        fields: (B, X, 6) state of the study's term automaton, offset by the study's place in the stacked tables; of
            its negation automaton, offset likewise; bits of the sets that the text holds and of the soft rules that it
            broke; hash of the sentence being written; state of the template; sentences begun, times 4, and the phase
            of the last one.
        written: (B, X, R) hashes of the sentences before it, 0 where there is none; R is 0 where they don't count.
    """

    __slots__ = ("_fields", "columns", "ended", "meaning", "written")

    def __init__(self, fields: Tensor | Sequence[Tensor], written: Tensor) -> None:
        whole = isinstance(fields, Tensor)
        self._fields: Tensor | None = fields if whole else None  # type: ignore[assignment]
        self.columns: list[Tensor] = list(fields.unbind(-1) if whole else fields)  # type: ignore[union-attr]
        self.written = written
        self.ended: Tensor | None = None  # `Tracker.pending`, once it was asked for
        self.meaning: Tensor | None = None  # `Tracker._meaning`, likewise

    @property
    def fields(self) -> Tensor:
        if self._fields is None:
            self._fields = torch.stack(self.columns, -1)
        return self._fields

    def add_met(self, bits: Tensor) -> None:
        """Sets more bits of what is met."""
        self.columns[MET] = self.columns[MET] | bits
        self._fields = None

    @property
    def terms(self) -> Tensor:
        return self.columns[TERMS]

    @property
    def assertion(self) -> Tensor:
        return self.columns[ASSERTION]

    @property
    def met(self) -> Tensor:
        return self.columns[MET]

    @property
    def sentence(self) -> Tensor:
        return self.columns[SENTENCE]

    @property
    def frame(self) -> Tensor:
        return self.columns[FRAME]

    @property
    def begun(self) -> Tensor:
        return self.columns[BEGUN]

    def pick(self, index: Tensor) -> Tracked:
        """Entries `index` (B, C) of (B, X)."""
        wide = index[:, :, None]
        written = self.written
        if written.shape[-1]:
            written = written.gather(1, wide.expand(-1, -1, written.shape[-1]))
        return Tracked(self.fields.gather(1, wide.expand(-1, -1, FIELDS)), written)
