"""Keeps tiles and states of recent images for other prompts about the same images.

The VLM is causal and images come before the prompt in a chat, so their states do not depend on the prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# bytes
STATES_LIMIT = 1 << 30
TILES_LIMIT = 1 << 26
# limits small entries too: after hundreds of images, the first ones are not used again
MAX_ENTRIES = 16


def digest(*tensors: Tensor) -> str:
    """Fast non-cryptographic hash (128 bits) over dtypes, shapes and bytes."""
    content = xxhash.xxh3_128()
    for tensor in tensors:
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


@dataclass(frozen=True)
class CachedPrefix:
    """States of the tokens up to the end of a chat's images.

    states        tapped states, None without taps
    keys_values   per decoder layer
    """

    states: Float[Tensor, "1 T L D"] | None
    keys_values: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, states: Tensor | None, cache: DynamicCache) -> CachedPrefix:
        """From the result of a pass."""
        # the narrower type is safe: no family has linear attention, whose layers have no keys and values
        layers = cast(list[DynamicLayer], cache.layers)
        pairs = [(layer.keys, layer.values) for layer in layers if layer.is_initialized]
        return cls(states, tuple((k, v) for k, v in pairs if k is not None and v is not None))

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        tensors = [tensor for pair in self.keys_values for tensor in pair]
        return sum(t.nbytes for t in [*tensors, *([] if self.states is None else [self.states])])

    def fill(self, cache: DynamicCache, rows: int = 1) -> DynamicCache:
        """Fills an empty cache with these keys and values, the same in each of `rows` chats. They are not changed when the cache
        grows."""
        for layer, (keys, values) in enumerate(self.keys_values):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache


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
