"""Bounded caches keyed by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
import xxhash
from torch import Tensor

# limits small entries too: after hundreds of images, the first ones are not used again
MAX_ENTRIES = 16


def digest(*tensors: Tensor) -> str:
    """Fast non-cryptographic hash (128 bits) over dtypes, shapes and bytes."""
    content = xxhash.xxh3_128()
    for tensor in tensors:
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous()
        # a tensor of one element may have any stride, which the bytes do not allow
        flat = values.as_strided((values.numel(),), (1,))
        content.update(flat.view(torch.uint8).numpy().data)
    return content.hexdigest()


@runtime_checkable
class HasBytes(Protocol):
    """A value whose size in memory is known."""

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        ...


V = TypeVar("V", bound=HasBytes)


class LRUCache(Generic[V]):
    """The most recently used values, up to `limit` bytes and `max_entries` values."""

    def __init__(self, limit: int, max_entries: int = MAX_ENTRIES) -> None:
        self.limit, self.max_entries = limit, max_entries
        self._entries: OrderedDict[Hashable, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Total size of the values."""
        return sum(value.num_bytes for value in self._entries.values())

    def clear(self) -> None:
        """Drops all values."""
        self._entries.clear()

    def get(self, key: Hashable) -> V | None:
        """The value, which becomes the most recently used one; None if it is not in the cache."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, value: V) -> V:
        """Stores and returns a value and drops the least recently used ones. A value above the limit is not stored."""
        if value.num_bytes <= self.limit:
            self._entries[key] = value
            while self.num_bytes > self.limit or len(self) > self.max_entries:
                self._entries.popitem(last=False)
        return value
