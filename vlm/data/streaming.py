"""Examples of prepared sets, made when a step asks for them; and the order of an epoch over several sets.

An epoch that holds a prepared set is cut into pools. A pool takes its share of every set: of a prepared one whole
shards, in an order drawn anew each epoch, of one in memory any examples. Batches are drawn within a pool, so at a time
only a pool's shards are read, and the mixture is the same from the first step to the last. The order follows from the
seed and the index alone: a resumed run computes it again and reads nothing of what it has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import compute

from vlm.data.batches import bucketed, bucketed_by
from vlm.data.examples import Example, ExampleBuilder
from vlm.data.prepared import PreparedSet
from vlm.data.shards import CACHE_BYTES
from vlm.types import InputError, Modality

MAX_KNOWN = 20_000
"""Of a set, at most so many studies are asked what is known of them."""
_CHARACTERS = 4  # about so many make a token: lengths only sort


class StreamedExamples(Sequence[Example]):
    """The examples of a prepared set.

    Args:
        studies: the set. builder: makes examples.
        chosen: (n,) numbers of the studies, rising. rename: what an example is called; default its study's id.
    """

    def __init__(
        self,
        studies: PreparedSet,
        builder: ExampleBuilder,
        chosen: np.ndarray,
        rename: Callable[[str], str] | None = None,
    ) -> None:
        self.studies, self.builder, self.chosen, self.rename = studies, builder, chosen, rename
        config = builder.config
        if config.windows and studies.shards and not studies.manifest["packing"]["hu"]:
            raise InputError(f"{studies.name}: has lost what data.windows would show of CT; prepare it with --hu")
        sections = [s for s in config.report_sections if f"{s}_chars" in studies.table.schema_arrow.names]
        table = studies.columns("modality", *(f"{s}_chars" for s in sections)).take(chosen)
        default = config.image_size.get("default", 256)
        # As codes of a few names: a million texts would take a tenth of a gigabyte.
        codes = table["modality"].fill_null(config.default_modality).combine_chunks().dictionary_encode()
        size_of = np.array([config.image_size.get(m, default) for m in codes.dictionary.to_pylist()], np.int32)
        self.sizes = size_of[codes.indices.to_numpy()] if len(chosen) else np.zeros(0, np.int32)
        columns = [table[f"{s}_chars"].to_numpy() for s in sections]
        characters = np.sum(columns, axis=0) if columns else np.zeros(len(chosen), np.int64)
        self.lengths = np.minimum(np.ceil(characters / _CHARACTERS), config.max_report_tokens).astype(np.int32)
        self.blocks = np.searchsorted(studies.starts, chosen, side="right") - 1

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, at: int) -> Example:  # type: ignore[override]
        if not 0 <= at < len(self):
            raise IndexError(at)
        study = self.studies.study(int(self.chosen[at]))
        try:
            example = self.builder.build(study)
        except InputError as error:
            raise InputError(f"{self.studies.name}: study {study.id}: {error}") from None
        if example.size != self.sizes[at]:
            raise InputError(
                f"{self.studies.name}: study {study.id} is {example.modality.value} by its image, and its list says "
                'nothing; give "modality" there'
            )
        if self.rename is not None:
            example.id = self.rename(example.id)
        return example

    def with_reports(self) -> StreamedExamples:
        """Those that have a report."""
        return StreamedExamples(self.studies, self.builder, self.chosen[self.lengths > 0], self.rename)

    def renamed(self, rename: Callable[[str], str]) -> StreamedExamples:
        """The same under other names."""
        return StreamedExamples(self.studies, self.builder, self.chosen, rename)

    def ids(self) -> list[str]:
        """What the examples are called."""
        found = self.studies.columns("id").take(self.chosen)["id"].to_pylist()
        return [self.rename(i) for i in found] if self.rename else found

    def known(self) -> Iterator[tuple[Modality, np.ndarray]]:
        """Modality and finding targets (F,), without reading an image; of an even sample where there are many."""
        step = max(1, math.ceil(len(self) / MAX_KNOWN))
        for number in self.chosen[::step]:
            study = self.studies.study(int(number), pixels=False)
            stated = next((i.modality for i in study.images if i.modality), None)
            yield stated or Modality(self.builder.config.default_modality), self.builder.targets(study)

    def pool_size(self, wanted: int) -> int:
        """How many studies a pool takes so that their images stay in the cache."""
        fitting = int(0.75 * CACHE_BYTES / max(1.0, self.studies.bytes_a_study()))
        return max(1, min(wanted, fitting))


def choose(studies: PreparedSet, splits: Iterable[str] | None, limit: int | None) -> np.ndarray:
    """Numbers of the studies of some splits, the first `limit` of them.

    Raises:
        InputError: there are none; the splits that exist are listed.
    """
    if splits is None:
        return np.arange(len(studies))[:limit]
    wanted = sorted(set(splits))
    mask = compute.is_in(studies.columns("split")["split"], value_set=pa.array(wanted, pa.string()))
    chosen = np.flatnonzero(mask.to_numpy())
    if not len(chosen):
        there = ", ".join(f"{k or 'without'} ({v['studies']})" for k, v in studies.manifest["splits"].items())
        raise InputError(f"{studies.name}: has no study in split {', '.join(wanted)}; it has {there}")
    return chosen[:limit]


class Mixture(Sequence[Example]):
    """An epoch's examples by number, each made when it is asked for.

    Args:
        sets: what is mixed. which, at: (n,) set and index in it.
    """

    def __init__(self, sets: Sequence[Sequence[Example]], which: np.ndarray, at: np.ndarray) -> None:
        self.sets, self.which, self.at = sets, which, at

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, number: int) -> Example:  # type: ignore[override]
        return self.sets[self.which[number]][int(self.at[number])]


def epoch_plan(
    sets: Sequence[tuple[float, Sequence[Example]]], batch_size: int, rng: np.random.Generator, pool: int
) -> tuple[Sequence[Example], list[list[int]]]:
    """One epoch: each set `weight` times, a fraction drawn anew.

    Args:
        sets: (weight, examples) each. batch_size: of each size of image and pool the last may be smaller.
        rng: decides everything. pool: studies of prepared sets in play at a time.

    Returns:
        Examples, and batches of their numbers in the order in which they are to be taken.
    """
    if not any(isinstance(examples, StreamedExamples) for _, examples in sets):
        drawn = [examples[i] for weight, examples in sets for i in _drawn(len(examples), weight, rng)]
        return drawn, list(bucketed(drawn, batch_size, rng))
    orders = []
    for weight, examples in sets:
        if isinstance(examples, StreamedExamples):
            orders.append(_by_blocks(examples.blocks, weight, rng))
        else:
            orders.append(rng.permutation(_drawn(len(examples), weight, rng)))
    streamed = [(len(o), e) for o, (_, e) in zip(orders, sets, strict=True) if isinstance(e, StreamedExamples)]
    # So many pools that the sets' parts of one together fit into memory.
    most = min(e.pool_size(pool) for _, e in streamed)
    count = max(1, math.ceil(sum(n for n, _ in streamed) / most))
    which, at, batches, start = [], [], [], 0
    parts = [np.array_split(order, count) for order in orders]
    facts = [_facts(examples) for _, examples in sets]
    for number in range(count):
        own = [part[number] for part in parts]
        which.append(np.concatenate([np.full(len(o), k) for k, o in enumerate(own)]))
        at.append(np.concatenate(own))
        sizes, lengths = (np.concatenate([f[k][o] for f, o in zip(facts, own, strict=True)]) for k in (0, 1))
        batches += [[start + i for i in batch] for batch in bucketed_by(sizes, lengths, batch_size, rng)]
        start += len(sizes)
    chosen = np.concatenate(at).astype(np.int64)
    return Mixture([e for _, e in sets], np.concatenate(which).astype(np.int64), chosen), batches


def _drawn(count: int, weight: float, rng: np.random.Generator) -> list[int]:
    """Indices of an epoch's draw from a set in memory."""
    whole, part = divmod(weight, 1.0)
    return list(range(count)) * int(whole) + rng.permutation(count)[: round(part * count)].tolist()


def _by_blocks(blocks: np.ndarray, weight: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of an epoch's draw from a prepared set: shard after shard in a random order, anew for each pass."""
    out: list[np.ndarray] = []
    left = round(weight * len(blocks))
    while left > 0:
        # Numbers of one block are one run: blocks rise.
        runs = np.split(np.arange(len(blocks)), np.flatnonzero(np.diff(blocks)) + 1)
        order = np.concatenate([rng.permutation(runs[i]) for i in rng.permutation(len(runs))])[:left]
        out.append(order)
        left -= len(order)
    return np.concatenate(out) if out else np.zeros(0, np.int64)


def sizes_of(examples: Sequence[Example]) -> np.ndarray:
    """(n,) pixels of the examples' squares; of a prepared set without reading an image."""
    if isinstance(examples, Mixture):
        own = [sizes_of(part) for part in examples.sets]
        return np.array([own[k][i] for k, i in zip(examples.which, examples.at, strict=True)], int)
    return _facts(examples)[0]


def _facts(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(examples, StreamedExamples):
        return examples.sizes, examples.lengths
    return np.array([e.size for e in examples]), np.array([len(e.report_ids) for e in examples])
