"""Other ways to condition a DiT on several VLM layers, for comparison with LAP. All have the `prefix` form of attention.

`KeyValueFusion` and `HiddenStateInjection` are the alternatives in arXiv 2510.12789 (section on fusion designs), without LAP and
refiner. `LAPPerModality` has separate LAP weights for image tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Conditioning, Features
from ..errors import ConfigError
from .lap import LayerwiseAttentionPooling
from .layers import LayerFactory, RMSNorm, apply_rope, key_bias_if_padded
from .unifusion import PreparedCondition, UniFusion, UniFusionConfig


class _WithoutPooling(UniFusion):
    """The condition is the states of all taps, concatenated."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        del self.txtfusion, self.txtmlp
        factory, size = LayerFactory(), config.vlm.hidden_size
        self.tap_norms = nn.ModuleList(RMSNorm(size, factory) for _ in config.vlm.taps)

    def pool(
        self,
        features: Features,
        layer_gains: Sequence[float] | None = None,
        *,
        weights: Hashable = None,
    ) -> Conditioning:
        """The states of all taps, each RMS-normed: the conditioning width E is L D. Raises ConfigError for layer gains."""
        if layer_gains is not None:
            raise ConfigError("Layer gains were given, and this design does not pool layers: leave them out.")
        states = [norm(features.states[:, :, tap]) for tap, norm in enumerate(self.tap_norms)]
        return Conditioning(tokens=torch.cat(states, -1), mask=features.mask, positions=features.positions)

    def taps_of(self, conditioning: Conditioning) -> list[Float[Tensor, "B T D"]]:
        """The states of each tap, split from the output of `pool`."""
        return list(conditioning.tokens.chunk(len(self.tap_norms), -1))

    def tap_of_block(self, block: int) -> int:
        """The index of the tap for a DiT block: the first block gets the first, the last block the last."""
        return round(block * (len(self.tap_norms) - 1) / max(1, len(self.blocks) - 1))


class KeyValueFusion(_WithoutPooling):
    """Each DiT block attends to latent tokens and to keys and values that its own matrices project from one VLM layer."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        width = config.dit.num_kv_heads * config.dit.head_size
        self.key_maps, self.value_maps = (
            nn.ModuleList(nn.Linear(config.vlm.hidden_size, width, bias=False) for _ in self.blocks)
            for _ in range(2)
        )

    def prepare(self, conditioning: Conditioning, grid: tuple[int, int]) -> PreparedCondition:
        """Keys and values of every block, projected from the block's tap."""
        states = self.taps_of(conditioning)
        rope = self._rope(self._condition_positions(conditioning, grid))
        size = self.config.dit.head_size
        keys_values = []
        for index, block in enumerate(self.dit_blocks):
            state = states[self.tap_of_block(index)]
            keys, values = (
                rearrange(maps[index](state), "B T (kv_heads K) -> B kv_heads T K", K=size)
                for maps in (self.key_maps, self.value_maps)
            )
            keys_values.append((apply_rope(block.attn.qknorm.knorm(keys), rope), values))
        return PreparedCondition(conditioning=conditioning, grid=grid, keys_values=keys_values)


class HiddenStateInjection(_WithoutPooling):
    """The first tap's states are the condition tokens; those of later taps are added to them before later blocks."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        self.injections = nn.ModuleList(
            nn.Linear(config.vlm.hidden_size, config.dit.hidden_size, bias=False) for _ in config.vlm.taps
        )

    def prepare(self, conditioning: Conditioning, grid: tuple[int, int]) -> PreparedCondition:
        """Keys and values of the condition tokens in every block, with the states of later taps added between blocks."""
        states = self.taps_of(conditioning)
        rope = self._rope(self._condition_positions(conditioning, grid))
        x = self.injections[0](states[0])
        bias = key_bias_if_padded(conditioning.mask, x.dtype)
        _, modulation = self._time(x.new_zeros(1), x.dtype)
        keys_values, injected = [], 0
        for index, block in enumerate(self.dit_blocks):
            while injected < self.tap_of_block(index):
                injected += 1
                x = x + self.injections[injected](states[injected])
            x, of_block = block.with_keys_values(x, modulation, rope, bias)
            keys_values.append(of_block)
        return PreparedCondition(conditioning=conditioning, grid=grid, keys_values=keys_values)


class LAPPerModality(UniFusion):
    """One LAP for text tokens and one for image tokens, with a shared refiner and DiT."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        taps, size = len(config.vlm.taps), config.vlm.hidden_size
        self.image_lap = LayerwiseAttentionPooling(
            config.lap, num_taps=taps, size=size, factory=LayerFactory()
        )

    def pool(
        self,
        features: Features,
        layer_gains: Sequence[float] | None = None,
        *,
        weights: Hashable = None,
    ) -> Conditioning:
        """As `UniFusion.pool`, with `image_lap` for image tokens; `layer_gains` apply to both LAPs. Nothing is kept."""
        is_image = features.positions[..., :1] > 0
        of_images = self.image_lap(features.states, layer_gains)
        pooled = torch.where(is_image, of_images, self.txtfusion.pool(features.states, layer_gains))
        return Conditioning(
            tokens=self.txtmlp(self.txtfusion.refiner_blocks(pooled, features.mask)),
            mask=features.mask,
            positions=features.positions,
        )


# name in a training recipe -> class
FUSIONS: dict[str, type[UniFusion]] = {
    "lap": UniFusion,
    "key-value fusion": KeyValueFusion,
    "hidden-state injection": HiddenStateInjection,
    "lap per modality": LAPPerModality,
}
