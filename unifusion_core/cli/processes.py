"""The processes of one call: one, or several under `accelerate launch` or `torchrun`, which share the lines of a prompt file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    # for annotations alone
    from accelerate import PartialState

T = TypeVar("T")
# one process may need far longer than another for its share
PATIENCE = datetime.timedelta(days=7)


class Processes:
    """This process among those of its call."""

    def __init__(self) -> None:
        self._state: PartialState | None = None
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            import torch
            from accelerate import PartialState

            # without a GPU for each, all compute on the CPU
            cpu = torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
            self._state = PartialState(cpu=cpu, timeout=PATIENCE)

    @property
    def count(self) -> int:
        """How many there are."""
        return 1 if self._state is None else self._state.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self._state is None or self._state.is_main_process

    @property
    def device(self) -> str | None:
        """This process's device; None leaves the choice open."""
        return None if self._state is None else str(self._state.device)

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """This process's part of the items: every n-th."""
        start = 0 if self._state is None else self._state.process_index
        return islice(items, start, None, self.count)

    def wait(self) -> None:
        """Waits until all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def total(self, counts: list[int]) -> list[int]:
        """The sums over all processes, which wait for each other."""
        if self._state is None:
            return counts
        from accelerate.utils import gather_object

        return [sum(column) for column in zip(*gather_object([counts]), strict=True)]

    def end(self) -> None:
        """Leaves the group; a process that ends inside it is aborted."""
        if self._state is not None:
            self._state.destroy_process_group()
