"""Work on several processes that ends cleanly: on Ctrl-C, when a process is killed, and when the parent is.

Tasks are handed out a few at a time, so that a long list of them is never copied at once. One worker means none: the
work is done here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import TypeVar

from vlm.types import InputError

_Task = TypeVar("_Task")
_Done = TypeVar("_Done")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Workers:
    """A context that does tasks on `count` processes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            context = multiprocessing.get_context("spawn")  # a fork of a process with OpenCV's threads may hang
            self.pool = ProcessPoolExecutor(self.count, context, _begin)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def map(self, work: Callable[[_Task], _Done], tasks: Iterable[_Task]) -> Iterator[_Done]:
        """Yields the results as they are done, in any order.

        Raises:
            InputError: a process was killed. What `work` raises comes through.
        """
        if self.pool is None:
            yield from map(work, tasks)
            return
        left = iter(tasks)
        running: set[Future[_Done]] = {self.pool.submit(work, task) for task in islice(left, 2 * self.count)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                running |= {self.pool.submit(work, task) for task in islice(left, len(done))}
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, perhaps for want of memory; give fewer --workers and run it again"
            ) from None


def _begin() -> None:
    """Prepares a worker: one thread each, Ctrl-C is the parent's, and without a parent there is nothing to do."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    with contextlib.suppress(OSError):
        parent.join()
        os._exit(1)
