"""The processes of one run that share its studies: who this one is, and what they tell one another.

`torchrun` and `accelerate launch` say it in the environment (RANK, WORLD_SIZE). Messages are few and small: they pass
through gloo, on CPUs and beside GPUs alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed as dist

from vlm.types import InputError

Value = TypeVar("Value")
PATIENCE = timedelta(days=2)
"""The first process may have to wait for another's share; one that is gone is noticed at once."""


class Team:
    """This process among those of its run; alone unless `join` says otherwise."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls) -> Team:
        """The processes that a launcher started; this one alone where none did.

        Raises:
            InputError: the launcher's variables make no sense, or the processes cannot reach one another.
        """
        try:
            rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError:
            raise InputError("RANK and WORLD_SIZE must be whole numbers; let a launcher set them") from None
        if size < 2:
            return cls()
        if not dist.is_initialized():
            try:
                dist.init_process_group("gloo", timeout=PATIENCE)
            except (RuntimeError, ValueError) as error:
                line = " ".join(str(error).split())[:200]
                raise InputError(f"the {size} processes of this run cannot reach one another: {line}") from None
        return cls(rank, size)

    def first(self, act: Callable[[], Value]) -> Value:
        """What `act` returns in the first process, in every process; the others wait.

        Raises:
            InputError: `act` raised it.
        """
        if self.size == 1:
            return act()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = act()
            except (InputError, OSError) as error:
                said[1] = str(error)
        self._speak(lambda: dist.broadcast_object_list(said, src=0))
        if said[1] is not None:
            raise InputError(said[1])
        return said[0]  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._speak(lambda: dist.all_gather_object(found, value))
        return found

    def _speak(self, act: Callable[[], None]) -> None:
        try:
            act()
        except RuntimeError as error:
            raise InputError(
                f"process {self.rank} of {self.size}: another process of this run is gone; what was written is whole, "
                "run the same command again to go on"
            ) from error

    def leave(self) -> None:
        """Ends the connections."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
