"""Keeps what LAP and refiner made of recent images and chats.

LAP works per token, and the VLM is causal with images before the prompt: what LAP makes of an image's tokens holds for every
prompt about the image. The refiner is bidirectional, so its output holds for one whole chat only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..caching import LRUCache, digest

# bytes; ten tiles of Krea 2 are about 11 MB
LIMIT = 1 << 28
MAX_ENTRIES = 64


@dataclass(frozen=True)
class _Kept:
    """Tokens in main memory, so that a graphics card holds nothing for a model that is not loaded."""

    tokens: Tensor

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return self.tokens.nbytes


class PooledTokens:
    """LAP's output for the tokens of each image, and the refined tokens of whole chats, by the content of their states."""

    def __init__(self, limit: int = LIMIT) -> None:
        """`limit`: bytes."""
        self.kept: LRUCache[_Kept] = LRUCache(limit, MAX_ENTRIES)

    def pool(
        self,
        states: Float[Tensor, "B T L D"],
        mask: Bool[Tensor, "B T"],
        images: Int[Tensor, "B T"],
        *,
        weights: Hashable,
        pool_layers: Callable[[Tensor], Tensor],
        refine: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "B T D"]:
        """`refine(pool_layers(states))`, from what was kept where it is the same. An image that several chats of the batch have
        is pooled once.

        images        the number of each token's image from 1, 0 for text
        weights       identifies the weights of both functions; equal content under other weights is another entry
        pool_layers   B T L D -> B T D, for each token alone
        refine        B T D -> B T D
        """
        # key of an image's content -> its tokens in each chat that has it, as masks of B T
        places: dict[Hashable, list[Tensor]] = defaultdict(list)
        order: list[Hashable] = []
        for row, numbers in enumerate(images):
            for number in numbers[numbers > 0].unique():
                place = torch.zeros_like(mask)
                place[row] = numbers == number
                order.append((weights, digest(states[place])))
                places[order[-1]].append(place)
        text = images == 0
        chat = (weights, digest(states[text], mask, images), *order)
        if refined := self.kept.get(chat):
            # a copy, because who gets the tokens may change them
            return refined.tokens.to(states.device, copy=True)
        return self._put(chat, refine(self._pool(states, text, places, pool_layers)))

    def _pool(
        self,
        states: Tensor,
        text: Tensor,
        images: dict[Hashable, list[Tensor]],
        pool_layers: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "B T D"]:
        found = {key: self.kept.get(key) for key in images}
        missing = text
        for key, places in images.items():
            if found[key] is None:
                missing = missing | places[0]
        pooled_now = pool_layers(states[missing][None])[0]
        pooled = pooled_now.new_empty(*states.shape[:2], pooled_now.shape[-1])
        pooled[missing] = pooled_now
        for key, places in images.items():
            kept = found[key]
            tokens = self._put(key, pooled[places[0]]) if kept is None else kept.tokens.to(pooled)
            for place in places:
                pooled[place] = tokens
        return pooled

    def _put(self, key: Hashable, tokens: Tensor) -> Tensor:
        self.kept.put(key, _Kept(tokens.detach().to("cpu", copy=True)))
        return tokens
