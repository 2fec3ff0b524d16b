"""Layerwise Attention Pooling (LAP): one vector per VLM token out of many VLM layers (paper, section on LAP; paper.md 1.3)."""

from __future__ import annotations

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


class LayerwiseAttentionPooling(nn.Module):
    """Full self-attention over the tapped layers of each token alone, then a learned weighted sum L -> 1."""

    def __init__(self, config: LAPConfig, *, num_taps: int, size: int, build: Build) -> None:
        super().__init__()
        self.layerwise_blocks = nn.ModuleList(
            TransformerBlock(size, config.num_heads, config.mlp_size, build)
            for _ in range(config.num_layer_blocks)
        )
        self.projector = build.linear(num_taps, 1)
        if config.tap_scales and len(config.tap_scales) != num_taps:
            raise ConfigError(
                f"{len(config.tap_scales)} tap scales for {num_taps} taps: give one each, or none"
            )
        self.tap_scales = config.tap_scales

    def forward(self, states: Float[Tensor, "B T L D"]) -> Float[Tensor, "B T D"]:
        """Tokens do not see each other, so that without gradients they go through in chunks, for less memory."""
        tokens = rearrange(states, "B T L D -> (B T) L D")
        if torch.is_grad_enabled():
            pooled = self._pool(tokens)
        else:
            at_a_time = max(1, CHUNK // (states.shape[2] * states.shape[3]))
            pooled = torch.cat([self._pool(chunk) for chunk in tokens.split(at_a_time)])
        return rearrange(pooled, "(B T) D -> B T D", B=states.shape[0])

    def _pool(self, x: Float[Tensor, "N L D"]) -> Float[Tensor, "N D"]:
        if self.tap_scales:
            x = x / x.new_tensor(self.tap_scales)[:, None]
        for block in self.layerwise_blocks:
            x = block(x)
        return self.projector(rearrange(x, "N L D -> N D L"))[..., 0]
