"""Layerwise Attention Pooling (LAP) and the bidirectional refiner (arXiv 2510.12789, sections on LAP and on the refiner).

LAP pools the states of several VLM layers into one vector per token. The refiner then lets every token attend to every other,
which removes the position bias of the VLM's causal attention.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import LayerFactory, TransformerBlock, key_bias_if_padded
from .pooled_tokens import PooledTokens

# Elements of the states that are pooled at a time without gradients. A block needs about ten times as many.
CHUNK = 8_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class LAPConfig:
    """Size of LAP (attention over the layers) and of the refiner (attention over the tokens). Both are as wide as the VLM.

    num_heads            attention heads of either; they divide the VLM's width
    mlp_size             inner width of the MLPs
    num_layer_blocks     blocks of LAP
    num_refiner_blocks   blocks of the refiner
    tap_scales           the states of each tap are divided by its scale; empty = unchanged

    Raises ConfigError for heads or an MLP size below 1, or a negative number of blocks.
    """

    num_heads: int
    mlp_size: int
    num_layer_blocks: int = 2
    num_refiner_blocks: int = 2
    tap_scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.mlp_size < 1:
            raise ConfigError(
                f"LAP has {self.num_heads} heads and MLP size {self.mlp_size}: both must be at least 1"
            )
        if self.num_layer_blocks < 0 or self.num_refiner_blocks < 0:
            raise ConfigError(
                f"LAP with {self.num_layer_blocks} blocks and refiner with {self.num_refiner_blocks} blocks: "
                "neither may be below 0"
            )


class LayerwiseAttentionPooling(nn.Module):
    """Self-attention over the tapped layers of each token, then a learned weighted sum over the layers (L -> 1).

    Source: arXiv 2510.12789, section on Layerwise Attention Pooling. Raises ConfigError for a width below 1 or another number of
    tap scales than taps.
    """

    def __init__(self, config: LAPConfig, *, num_taps: int, size: int, factory: LayerFactory) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"the VLM's width is {size}: it must be at least 1")
        self.layerwise_blocks = nn.ModuleList(
            TransformerBlock(size, config.num_heads, config.mlp_size, factory)
            for _ in range(config.num_layer_blocks)
        )
        self.num_taps = num_taps
        self.projector = factory.linear(num_taps, 1)
        if config.tap_scales and len(config.tap_scales) != num_taps:
            raise ConfigError(
                f"{len(config.tap_scales)} tap scales for {num_taps} taps: give one for each, or none"
            )
        self.tap_scales = config.tap_scales

    def forward(
        self, states: Float[Tensor, "B T L D"], gains: Sequence[float] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Pooled tokens, as `pool`."""
        return self.pool(states, gains)

    def pool(
        self, states: Float[Tensor, "B T L D"], gains: Sequence[float] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Pools each token's layers.

        `gains`, one for each tap, multiply the projector's weights: 1 is as trained, 0 leaves a tap out of the sum. The blocks
        before the projector attend to all taps in any case. Without gradients, tokens are pooled in chunks to save memory.

        Raises ConfigError for another number of gains than taps.
        """
        tokens = rearrange(states, "B T L D -> (B T) L D")
        if gains is not None and len(gains) != self.num_taps:
            raise ConfigError(
                f"{len(gains)} layer gains were given for {self.num_taps} layers: give one for each layer"
            )
        if torch.is_grad_enabled():
            pooled = self._pool(tokens, gains)
        else:
            at_a_time = max(1, CHUNK // (states.shape[2] * states.shape[3]))
            pooled = torch.cat([self._pool(chunk, gains) for chunk in tokens.split(at_a_time)])
        return rearrange(pooled, "(B T) D -> B T D", B=states.shape[0])

    def _pool(self, tokens: Float[Tensor, "BT L D"], gains: Sequence[float] | None) -> Float[Tensor, "BT D"]:
        # keeps only the last element in memory
        (last,) = deque(self.block_states(tokens[None]), maxlen=1)
        x = rearrange(last, "BT L D -> BT D L")
        if gains is not None:
            x = x * x.new_tensor(gains)
        return self.projector(x)[..., 0]

    def block_states(self, states: Float[Tensor, "B T L D"]) -> Iterator[Float[Tensor, "BT L D"]]:
        """The input of each block, then the input of the projector."""
        if self.tap_scales:
            states = states / states.new_tensor(self.tap_scales)[:, None]
        x = rearrange(states, "B T L D -> (B T) L D")
        yield x
        for block in self.layerwise_blocks:
            x = block(x)
            yield x

    def pooling_weights(self, like: Tensor) -> Float[Tensor, " L"]:
        """The projector's weights, in the type and on the device of `like`."""
        # Calls the layer, because ComfyUI may keep its weights on another device and patch them.
        return self.projector(torch.eye(self.num_taps, dtype=like.dtype, device=like.device))[:, 0]


class Refiner(nn.ModuleList):
    """Transformer blocks over the token axis: every token attends to every real token. No positions, no time.

    Source: arXiv 2510.12789, section on the refiner.
    """

    def __init__(self, config: LAPConfig, *, size: int, factory: LayerFactory) -> None:
        super().__init__(
            TransformerBlock(size, config.num_heads, config.mlp_size, factory)
            for _ in range(config.num_refiner_blocks)
        )

    def forward(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Refined tokens. `mask`: True = a real token. The output for padding is undefined."""
        bias = key_bias_if_padded(mask, tokens.dtype)
        for block in self:
            tokens = block(tokens, bias)
        return tokens


class TextFusion(LayerwiseAttentionPooling):
    """LAP, then the refiner. A subclass of LAP, because Krea 2's public checkpoint holds both under one path (`txtfusion`)."""

    def __init__(self, config: LAPConfig, *, num_taps: int, size: int, factory: LayerFactory) -> None:
        super().__init__(config, num_taps=num_taps, size=size, factory=factory)
        self.refiner_blocks = Refiner(config, size=size, factory=factory)
        # released with the model
        self.pooled_before = PooledTokens()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the refiner needs the mask, too)
        self,
        states: Float[Tensor, "B T L D"],
        mask: Bool[Tensor, "B T"],
        gains: Sequence[float] | None = None,
        *,
        images: Int[Tensor, "B T"] | None = None,
        weights: Hashable = None,
    ) -> Float[Tensor, "B T D"]:
        """Pooled and refined tokens.

        gains     as in `pool`
        mask      as in `Refiner`
        images    the number of each token's image from 1, 0 for text
        weights   identifies the present weights and patches: with it and `images`, what was pooled before is not pooled again.
                  With gradients everything is
        """
        if images is None or weights is None or torch.is_grad_enabled():
            return self.refiner_blocks(self.pool(states, gains), mask)
        return self.pooled_before.pool(
            states,
            mask,
            images,
            weights=(weights, None if gains is None else tuple(gains)),
            pool_layers=lambda tokens: self.pool(tokens, gains),
            refine=lambda tokens: self.refiner_blocks(tokens, mask),
        )

    def extra_repr(self) -> str:
        """The paper's terms, for print(model)."""
        return f"LayerwiseAttentionPooling of {self.num_taps} taps, then Refiner"


# Layer gains as text -----------------------------------------------------------------------

# a larger gain makes the other layers negligible and overflows in 16 bits
LARGEST_GAIN = 100.0


def parse_layer_gains(text: str, taps: Sequence[int]) -> tuple[float, ...] | None:
    """One gain for each tap, from -100 to 100; None for an empty text (as trained).

    Two notations: "1, 1, 0.5, 1, 1" gives one number for each tap in order; "3: 0.5, 5: 0" names layers, and the others get 1.
    Raises ConfigError for anything else.
    """
    if not text.strip():
        return None
    entries = [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]
    named = [entry for entry in entries if ":" in entry]
    if named and len(named) < len(entries):
        raise ConfigError(
            f"The layer gains mix two notations: give one number for each of the {len(taps)} layers, or name the layer of every "
            f"number, such as {taps[-1]}: 0.5."
        )
    if named:
        if len({entry.partition(":")[0].strip() for entry in named}) < len(named):
            raise ConfigError("A layer has two gains: name each layer once.")
        gains = dict.fromkeys(taps, 1.0)
        for entry in named:
            layer, _, gain = entry.partition(":")
            gains[_tap(layer.strip(), taps)] = _gain(gain.strip())
        found = tuple(gains.values())
    else:
        found = tuple(_gain(entry) for entry in entries)
    if len(found) != len(taps):
        raise ConfigError(
            f"{len(found)} layer gains were given, this model reads {len(taps)} layers ({_list_taps(taps)}): give one for "
            f"each, or name those to change, such as {taps[-1]}: 0.5."
        )
    if not any(found):
        raise ConfigError(
            "All layer gains are 0, which removes the whole condition: give at least one layer another gain."
        )
    return found


def _tap(text: str, taps: Sequence[int]) -> int:
    known = {str(tap): tap for tap in taps}
    if text not in known:
        raise ConfigError(
            f'There is no layer "{text:.40}": this model reads {_list_taps(taps)}. Name one of these.'
        )
    return known[text]


def _gain(text: str) -> float:
    try:
        gain = float(text)
    except ValueError:
        gain = math.nan
    if not -LARGEST_GAIN <= gain <= LARGEST_GAIN:
        raise ConfigError(
            f'The layer gain "{text:.40}" is not a number from {-LARGEST_GAIN:g} to {LARGEST_GAIN:g}: 1 is as trained, '
            "0 leaves a layer out."
        )
    return gain


def _list_taps(taps: Sequence[int]) -> str:
    return ", ".join(map(str, taps))
