"""Tiles and states of pictures that were read once, for other instructions about the same pictures.

The VLM is causal and pictures stand before everything that a user changes often, so what they became does not depend on it.
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

STATES_LIMIT = 1 << 30  # bytes
TILES_LIMIT = 1 << 26
MOST_KEPT = (
    16  # however small: who draws hundreds of pictures of their own does not go back to the first ones
)


def digest(*tensors: Tensor) -> str:
    """128 bits over the content of tensors: against chance, not against an enemy, at the speed of memory."""
    content = xxhash.xxh3_128()
    for tensor in tensors:
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


@dataclass(frozen=True)
class CachedPrefix:
    """Tapped states of a chat's pictures and what stands before them, and their keys and values, layer by layer."""

    states: Float[Tensor, "1 T L D"] | None
    keys_values: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, states: Tensor | None, cache: DynamicCache) -> CachedPrefix:
        """What a pass left."""
        # layers without keys and values belong to linear attention, which none of the families has
        layers = cast(list[DynamicLayer], cache.layers)
        pairs = [(layer.keys, layer.values) for layer in layers if layer.is_initialized]
        return cls(states, tuple((k, v) for k, v in pairs if k is not None and v is not None))

    @property
    def num_bytes(self) -> int:
        tensors = [tensor for pair in self.keys_values for tensor in pair]
        return sum(t.nbytes for t in [*tensors, *([] if self.states is None else [self.states])])

    def continued(self, cache: DynamicCache) -> DynamicCache:
        """An empty cache filled with these keys and values, which stay as they are."""
        for layer, (keys, values) in enumerate(self.keys_values):
            cache.update(keys, values, layer)
        return cache


class HasBytes(Protocol):
    """What can be kept: it says how large it is."""

    @property
    def num_bytes(self) -> int: ...


V = TypeVar("V", bound=HasBytes)


class LRUCache(Generic[V]):
    """The latest values, up to a limit in bytes and `most` of them; whatever is used goes to the front."""

    def __init__(self, limit: int, most: int = MOST_KEPT) -> None:
        self.limit, self.most = limit, most
        self._kept: OrderedDict[Hashable, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return sum(value.num_bytes for value in self._kept.values())

    def clear(self) -> None:
        """Let all of it go."""
        self._kept.clear()

    def get(self, key: Hashable) -> V | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Hashable, value: V) -> V:
        """Keep a value and let the oldest go; what is larger than the limit by itself is only handed back."""
        if value.num_bytes <= self.limit:
            self._kept[key] = value
            while self.num_bytes > self.limit or len(self) > self.most:
                self._kept.popitem(last=False)
        return value
