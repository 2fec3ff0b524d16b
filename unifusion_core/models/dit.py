"""Parts of the flow-matching diffusion transformer (DiT): one stream of condition and latent tokens.

Blocks as in Krea 2's public checkpoints: pre-RMSNorm, grouped-query attention with QK-norm and gate, SwiGLU, one adaLN vector
shared by all blocks plus a learned bias per block, rotary positions over (index, row, column), patches of 2 x 2 latent cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import Attention, LayerFactory, Prefix, RMSNorm, Rope, SwiGLU, apply_rope

# per block
KeysValues = Iterable[Prefix]
# (index, block) -> the function to call instead of the block
BlockCall = Callable[[int, nn.Module], Callable[..., Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """Size of the DiT.

    hidden_size       M, the width of the stream
    num_kv_heads      key heads, each shared by num_heads / num_kv_heads query heads
    mlp_size          inner width of the MLPs
    latent_channels   C of the autoencoder
    patch_size        latent cells per patch and axis
    time_size         width of the sinusoidal time embedding
    rope_theta        base of the rotary frequencies

    Raises ConfigError for numbers that are not above 0, a head size that is not a multiple of 16, or query heads that key
    heads cannot share evenly.
    """

    hidden_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int
    latent_channels: int
    patch_size: int = 2
    time_size: int = 256
    rope_theta: float = 1000.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ConfigError(f"the DiT's {name} is {value}: it must be above 0")
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 16:
            raise ConfigError(
                f"hidden size {self.hidden_size} over {self.num_heads} heads: the head size must be a multiple of 16"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} heads cannot share {self.num_kv_heads} key heads evenly")

    @property
    def head_size(self) -> int:
        """K, the channels of one head."""
        return self.hidden_size // self.num_heads


class BlockModulation(nn.Module):
    """adaLN of one block: the vector that all blocks share plus the block's own bias."""

    def __init__(self, size: int, factory: LayerFactory) -> None:
        super().__init__()
        self.lin = factory.parameter(6 * size)

    def forward(self, modulation: Float[Tensor, "#B #S M6"]) -> tuple[Tensor, ...]:
        """Scale, shift and gate of the attention, then those of the MLP, each as wide as the stream."""
        return (modulation + self.lin.to(modulation)).chunk(6, -1)


class DiTBlock(nn.Module):
    """One block of the DiT. `modulation` is the adaLN vector (`UniFusion` computes it from the time), M6 = 6 M."""

    def __init__(self, config: DiTConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.mod = BlockModulation(config.hidden_size, factory)
        self.prenorm = RMSNorm(config.hidden_size, factory)
        self.postnorm = RMSNorm(config.hidden_size, factory)
        self.attn = Attention(config.hidden_size, config.num_heads, config.num_kv_heads, factory)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_size, factory)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        modulation: Float[Tensor, "#B #S M6"],
        rope: Rope,
        bias: Float[Tensor, "#B 1 #S keys"] | None = None,
        **more: Any,
    ) -> Float[Tensor, "B S M"]:
        """The block's output for `x`. `more` are keyword arguments of the attention, such as the `prefix` of condition tokens,
        which are attended to but not updated."""
        pre_scale, pre_shift, pre_gate, *after = self.mod(modulation)
        x = x + pre_gate * self.attn((1 + pre_scale) * self.prenorm(x) + pre_shift, rope, bias, **more)
        return self._with_mlp(x, *after)

    def with_keys_values(
        self,
        x: Float[Tensor, "B S M"],
        modulation: Float[Tensor, "#B #S M6"],
        rope: Rope,
        bias: Float[Tensor, "#B 1 #S keys"] | None = None,
    ) -> tuple[Float[Tensor, "B S M"], Prefix]:
        """`forward`, and the tokens `x` as the prefix of other tokens."""
        pre_scale, pre_shift, pre_gate, *after = self.mod(modulation)
        normed = (1 + pre_scale) * self.prenorm(x) + pre_shift
        k, v = self.attn.keys_values(normed)
        x = x + pre_gate * self.attn.attend_to(normed, k, v, rope, bias)
        return self._with_mlp(x, *after), (apply_rope(k, rope), v)

    def keys_values(
        self, x: Float[Tensor, "B S M"], modulation: Float[Tensor, "#B #S M6"], rope: Rope
    ) -> Prefix:
        """The tokens `x` as the prefix of other tokens, where their own output is not needed."""
        pre_scale, pre_shift, *_ = self.mod(modulation)
        k, v = self.attn.keys_values((1 + pre_scale) * self.prenorm(x) + pre_shift)
        return apply_rope(k, rope), v

    def _with_mlp(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.mlp((1 + scale) * self.postnorm(x) + shift)


class FinalModulation(nn.Module):
    """adaLN of the final layer: scale and shift from the time vector."""

    def __init__(self, size: int, factory: LayerFactory) -> None:
        super().__init__()
        self.lin = factory.parameter(2, size)

    def forward(self, time: Float[Tensor, "B 1 M"]) -> tuple[Float[Tensor, "B 1 M"], Float[Tensor, "B 1 M"]]:
        """(scale, shift)."""
        scale, shift = (time + self.lin.to(time)).chunk(2, 1)
        return scale, shift


class FinalLayer(nn.Module):
    """Projects latent tokens to the velocity of their patches, CPP = C P P numbers each."""

    def __init__(self, config: DiTConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, factory)
        self.linear = factory.linear(
            config.hidden_size, config.patch_size**2 * config.latent_channels, bias=True
        )
        self.modulation = FinalModulation(config.hidden_size, factory)

    def forward(self, x: Float[Tensor, "B N M"], time: Float[Tensor, "B 1 M"]) -> Float[Tensor, "B N CPP"]:
        """The velocity per patch, in the layout of `to_patches`."""
        scale, shift = self.modulation(time)
        return self.linear((1 + scale) * self.norm(x) + shift)


def to_patches(latents: Float[Tensor, "B C h w"], patch_size: int) -> Float[Tensor, "B N CPP"]:
    """One token per patch, in raster order; channels first inside a patch."""
    return rearrange(
        latents, "B C (rows P1) (columns P2) -> B (rows columns) (C P1 P2)", P1=patch_size, P2=patch_size
    )


def from_patches(
    patches: Float[Tensor, "B N CPP"], patch_size: int, rows: int, columns: int
) -> Float[Tensor, "B C h w"]:
    """The inverse of `to_patches` for a grid of `rows` x `columns` patches."""
    return rearrange(
        patches,
        "B (rows columns) (C P1 P2) -> B C (rows P1) (columns P2)",
        rows=rows,
        columns=columns,
        P1=patch_size,
        P2=patch_size,
    )


def patch_positions(rows: int, columns: int, device: torch.device) -> Float[Tensor, "1 N 3"]:
    """(0, row, column) of each patch, in raster order."""
    row, column = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1)[None].float()
