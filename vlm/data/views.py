"""Which images of a study are looked at, when there are more than a model takes."""

from __future__ import annotations

from collections.abc import Sequence

from vlm.types import StudyImage, View


def choose_views(images: Sequence[StudyImage], most: int) -> tuple[int, ...]:
    """Indices of up to `most` images: one of each view first, then the rest spread evenly, in the study's order.

    Worked example: 8 axial slices and most = 2 give the third and the seventh, not the two at the end of the series.
    """
    first: dict[View | None, int] = {}
    for index, image in enumerate(images):
        first.setdefault(image.view, index)
    if len(first) == 1 and len(images) > most:
        return tuple(int((i + 0.5) * len(images) / most) for i in range(most))
    chosen = list(first.values())[:most]
    rest = [i for i in range(len(images)) if i not in chosen]
    spare = min(most - len(chosen), len(rest))
    return tuple(sorted(chosen + [rest[int((i + 0.5) * len(rest) / spare)] for i in range(spare)]))
