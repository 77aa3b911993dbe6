"""An epoch of new studies in which every batch holds a share of old ones: experience replay against forgetting.

Batches of B studies hold k = `old` ones (Rolnick et al. 2019, arXiv:1811.11682, mix half and half; Chaudhry et al.
2019, arXiv:1902.10486, show that a small memory is enough). New studies are planned as without replay, B - k at a time,
and all of them are seen; of the old ones as many are drawn as that takes, anew each epoch. An epoch is longer by 1 / (1
- share), and its order follows from the seed alone, as `streaming.epoch_plan`'s does.

A batch has one size of image. Old studies of a size that no new one has cannot stand beside them: they get batches of
their own, spread over the epoch, so that the share holds over the epoch if not in each batch.

Worked example, B = 4 and k = 1: seven new studies make batches of 3, 3 and 1; with the old ones they are 4, 4 and 1
(a third of an old study is none).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlm.data.examples import Example
from vlm.data.streaming import Mixture, epoch_plan, sizes_of

Sets = Sequence[tuple[float, Sequence[Example]]]


def replay_plan(
    new: Sets, kept: Sets, old: int, batch_size: int, rng: np.random.Generator, pool: int
) -> tuple[Sequence[Example], list[list[int]]]:
    """One epoch of new studies with old ones among them.

    Args:
        new, kept: (weight, examples) of each set; weights of new ones count epochs, those of old ones only compare.
        old: studies of a full batch that are old, 1 to batch_size - 1.
        batch_size, rng, pool: as in `streaming.epoch_plan`.

    Returns:
        Examples, and batches of their numbers in the order in which they are to be taken.
    """
    fresh, batches = epoch_plan(new, batch_size - old, rng, pool)
    wanted = [round(len(batch) * old / (batch_size - old)) for batch in batches]
    drawn = shares([weight * len(examples) for weight, examples in kept], sum(wanted))
    sets = [(count / max(1, len(examples)), examples) for count, (_, examples) in zip(drawn, kept, strict=True)]
    again, parts = epoch_plan(sets, old, rng, pool)
    sizes, old_sizes = sizes_of(fresh), sizes_of(again)
    waiting: dict[int, list[int]] = {}
    for number in (i for part in parts for i in part):
        waiting.setdefault(int(old_sizes[number]), []).append(number)
    mixed = []
    for batch, count in zip(batches, wanted, strict=True):
        queue = waiting.get(int(sizes[batch[0]]), [])
        mixed.append([*batch, *(len(fresh) + i for i in queue[:count])])
        del queue[:count]
    apart = [
        [len(fresh) + i for i in q[at : at + batch_size]]
        for q in waiting.values()
        for at in range(0, len(q), batch_size)
    ]
    # From the back, so that earlier places stay what they were drawn for.
    places = sorted(rng.integers(0, len(mixed) + 1, len(apart)).tolist(), reverse=True)
    for place, batch in zip(places, reversed(apart), strict=True):
        mixed.insert(place, batch)
    which = np.repeat([0, 1], [len(fresh), len(again)])
    at = np.concatenate([np.arange(len(fresh)), np.arange(len(again))])
    return Mixture([fresh, again], which, at), mixed


def shares(parts: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total` and compare as `parts`, by largest remainder."""
    exact = np.asarray(parts, float) / max(sum(parts), 1e-12) * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return [int(c) for c in counts]
