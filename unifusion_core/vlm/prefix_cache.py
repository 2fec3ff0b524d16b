"""Keeps tiles and states of recent images for other prompts about the same images.

The VLM is causal and images come before the prompt in a chat, so their states do not depend on the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# bytes
STATES_LIMIT = 1 << 30
TILES_LIMIT = 1 << 26


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
