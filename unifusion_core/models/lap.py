"""Layerwise Attention Pooling (LAP): one vector per VLM token out of many VLM layers (arXiv 2510.12789, section on LAP)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import Build, TransformerBlock

CHUNK = 8_000_000
"""How many numbers of the states are pooled at a time where no gradient is wanted: a block holds some ten times as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LAPConfig:
    """Blocks of LAP and of the refiner, both as wide as the VLM."""

    num_heads: int
    mlp_size: int
    num_layer_blocks: int = 2  # over the layer axis
    num_refiner_blocks: int = 2  # over the token axis
    tap_scales: tuple[float, ...] = ()  # each tap's states are divided by its own; empty = read as they are

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.mlp_size < 1:
            raise ConfigError(
                f"LAP with {self.num_heads} heads and MLP size {self.mlp_size}: both must be at least 1"
            )
        if self.num_layer_blocks < 0 or self.num_refiner_blocks < 0:
            raise ConfigError(
                f"LAP with {self.num_layer_blocks} blocks and a refiner with {self.num_refiner_blocks}: give at least 0"
            )


class LayerwiseAttentionPooling(nn.Module):
    """Full self-attention over the tapped layers of each token alone, then a learned weighted sum L -> 1."""

    def __init__(self, config: LAPConfig, *, num_taps: int, size: int, build: Build) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"LAP for a VLM of width {size}: it must be at least 1")
        self.layerwise_blocks = nn.ModuleList(
            TransformerBlock(size, config.num_heads, config.mlp_size, build)
            for _ in range(config.num_layer_blocks)
        )
        self.num_taps = num_taps
        self.projector = build.linear(num_taps, 1)
        if config.tap_scales and len(config.tap_scales) != num_taps:
            raise ConfigError(
                f"{len(config.tap_scales)} tap scales for {num_taps} taps: give one each, or none"
            )
        self.tap_scales = config.tap_scales

    def forward(
        self, states: Float[Tensor, "B T L D"], gains: Sequence[float] | None = None
    ) -> Float[Tensor, "B T D"]:
        """`gains` multiply the projector's weights, one for each tap: 1 is as trained, 0 leaves a tap out of the sum, as in the
        paper's study of layers. The blocks before it see all taps all the same. Raises ConfigError for another number of gains.

        Tokens do not see each other, so that without gradients they go through in chunks, for less memory."""
        tokens = rearrange(states, "B T L D -> (B T) L D")
        if gains is not None and len(gains) != self.num_taps:
            raise ConfigError(
                f"{len(gains)} layer gains were given for {self.num_taps} layers: give one for each"
            )
        if torch.is_grad_enabled():
            pooled = self._pool(tokens, gains)
        else:
            at_a_time = max(1, CHUNK // (states.shape[2] * states.shape[3]))
            pooled = torch.cat([self._pool(chunk, gains) for chunk in tokens.split(at_a_time)])
        return rearrange(pooled, "(B T) D -> B T D", B=states.shape[0])

    def _pool(self, tokens: Float[Tensor, "N L D"], gains: Sequence[float] | None) -> Float[Tensor, "N D"]:
        (last,) = deque(self.block_states(tokens[None]), maxlen=1)  # those before it need no memory
        x = rearrange(last, "N L D -> N D L")
        if gains is not None:
            x = x * x.new_tensor(gains)
        return self.projector(x)[..., 0]

    def block_states(self, states: Float[Tensor, "B T L D"]) -> Iterator[Float[Tensor, "BT L D"]]:
        """What each block over the layers reads, and at last what the projector sums up; every token by itself."""
        if self.tap_scales:
            states = states / states.new_tensor(self.tap_scales)[:, None]
        x = rearrange(states, "B T L D -> (B T) L D")
        yield x
        for block in self.layerwise_blocks:
            x = block(x)
            yield x

    def pooling_weights(self, like: Tensor) -> Float[Tensor, " L"]:
        """The projector's weights in the type and on the device of `like`, asked of the layer itself, which a host may keep
        elsewhere and patch."""
        return self.projector(torch.eye(self.num_taps, dtype=like.dtype, device=like.device))[:, 0]
