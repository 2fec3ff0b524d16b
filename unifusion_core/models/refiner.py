"""The bidirectional refiner: undoes the position bias that the VLM's causal attention leaves (arXiv 2510.12789, figure 4)."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from .lap import LAPConfig
from .layers import Build, TransformerBlock, key_bias


class Refiner(nn.Module):
    """Transformer blocks over the token axis, every token seeing every real token; no positions, no time."""

    def __init__(self, config: LAPConfig, *, size: int, build: Build) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(size, config.num_heads, config.mlp_size, build)
            for _ in range(config.num_refiner_blocks)
        )

    def forward(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        bias = key_bias(mask, tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, bias)
        return tokens
