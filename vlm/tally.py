"""Adds up the memory that operations on tensors ask for, also on fake tensors, which ask for none.

oneDNN compiles an operation anew for every shape and type that it meets on the CPU and keeps the last 1024: in a run
whose batches differ in length that code takes more memory than a small model's weights, so it is counted too.
"""

from __future__ import annotations

import bisect
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KERNELS = 1024
"""Compiled operations that oneDNN keeps (its primitive cache)."""
KERNEL_BYTES = {("product", torch.bfloat16): 750 << 10, ("product", torch.float32): 32 << 10}
"""What one takes, by its kind and type; measured as the growth of a process over many shapes. A product in bf16 is
compiled anew for every length of a batch."""
CONVOLUTION_BYTES = 100 << 10
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class Watch(TorchDispatchMode):
    """Adds up the memory that operations ask for while it is on: `live` bytes now, `peak` the most so far.

    `kernels` are the operations that oneDNN compiles on the CPU, each shape once, with what they take.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, int] = {}  # storage -> number of its block
        self.sizes: list[int] = []  # of the blocks, in the order in which they were asked for
        self.events: list[tuple[int, int]] = []  # (block, size), (block, 0) let go, (-1, -size) compiled
        self.kernels: dict[tuple[object, ...], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks at what it returns."""
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, given)
        self._compiled(func.overloadpacket.__name__, args)
        return out

    def _compiled(self, name: str, args: Any) -> None:
        if name not in PRODUCTS and not name.startswith("convolution"):
            return
        tensors = [a for a in args if isinstance(a, Tensor)]
        kind = tensors[-1].dtype
        key = (name, kind, *(tuple(t.shape) for t in tensors))
        if key not in self.kernels:
            taken = KERNEL_BYTES.get(("product", kind), 0) if name in PRODUCTS else CONVOLUTION_BYTES
            self.kernels[key] = taken
            self.events.append((-1, -taken))

    def _add(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        size = storage.nbytes()
        if key in self.known or key in given or not size:
            return
        self.known[key] = len(self.sizes)
        self.events.append((len(self.sizes), size))
        self.sizes.append(size)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        block = self.known.pop(key, None)
        if block is not None:
            self.live -= self.sizes[block]
            self.events.append((block, 0))


MMAP_LEAST, MMAP_MOST = 128 << 10, 32 << 20
"""glibc maps blocks of at least the first size from the system at the start; each that is let go raises the bound to
its own size, up to the second. Smaller blocks come from the heap, which grows and shrinks at its end alone."""
ALIGNED = 96
"""A block on a boundary of 64 bytes is looked for with so many to spare, so that it does not fit into the hole that a
block of the same size left."""
PIECE = 64 << 10
"""Compiled code is laid down in pieces of about this size, which stay and divide the heap."""


class Heap:
    """What the C library's heap takes of the machine for a sequence of blocks: more than is live at any time, for
    batches of other lengths leave holes of other sizes.

    Best fit with neighbours joined, as glibc's malloc for blocks of these sizes.
    """

    def __init__(self) -> None:
        self.end = self.mapped = self.most = 0
        self.threshold = MMAP_LEAST
        self.holes: list[tuple[int, int]] = []  # (size, start), sorted
        self.starts: dict[int, int] = {}  # start -> size of a hole
        self.ends: dict[int, int] = {}  # end -> start of a hole

    def take(self, size: int) -> tuple[int, int]:
        """A block: (start, size), or (-1, size) where it was mapped by itself."""
        size = (size + 63) // 64 * 64 + 64
        if size >= self.threshold:
            self.mapped += size
            start = -1
        else:
            at = bisect.bisect_left(self.holes, (size + ALIGNED, 0))
            if at < len(self.holes):
                whole, start = self.holes.pop(at)
                del self.starts[start], self.ends[start + whole]
                if whole > size:
                    self._hole(start + size, whole - size)
            else:
                last = self.ends.get(self.end)
                start = self.end if last is None else last
                if last is not None:
                    self._fill(last)
                self.end = start + size
        self.most = max(self.most, self.end + self.mapped)
        return start, size

    def give(self, start: int, size: int) -> None:
        """Lets a block go."""
        if start < 0:
            self.mapped -= size
            self.threshold = max(self.threshold, min(size + 1, MMAP_MOST))
            return
        if start + size in self.starts:
            size += self._fill(start + size)
        if start in self.ends:
            before = self.ends[start]
            size += self._fill(before)
            start = before
        if start + size == self.end and size > 2 * self.threshold:
            self.end = start
        else:
            self._hole(start, size)

    def _hole(self, start: int, size: int) -> None:
        bisect.insort(self.holes, (size, start))
        self.starts[start], self.ends[start + size] = size, start

    def _fill(self, start: int) -> int:
        size = self.starts.pop(start)
        del self.ends[start + size]
        self.holes.pop(bisect.bisect_left(self.holes, (size, start)))
        return size


def heap_of(events: list[tuple[int, int]], scales: tuple[float, ...], fixed: set[int]) -> int:
    """The heap's growth over several batches of one kind, and what compiling leaves in it.

    Args:
        events: of `Watch.events`. scales: length of each batch, as a share of the one that was watched.
        fixed: sizes that do not depend on a batch, such as copies of weights.
    """
    heap = Heap()
    for scale in scales:
        live: dict[int, tuple[int, int]] = {}
        for key, size in events:
            if size > 0:
                live[key] = heap.take(size if size in fixed else int(size * scale))
            elif size == 0:
                if key in live:
                    heap.give(*live.pop(key))
            else:
                for _ in range(-size // PIECE):
                    heap.take(PIECE)
        for block in live.values():
            heap.give(*block)
    return heap.most
