"""Other ways to condition a DiT on many VLM layers, for comparisons alone: two that the paper compared LAP with (its section on
fusion designs), which know nothing of LAP and refiner, and LAP with weights of its own for pictures. All in the `prefix` form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Conditioning, VLMFeatures
from ..errors import ConfigError
from ..models.lap import LayerwiseAttentionPooling
from ..models.layers import Build, RMSNorm, key_bias, rotate
from ..models.unifusion import PreparedCondition, UniFusion, UniFusionConfig


class _WithoutPooling(UniFusion):
    """What the two have in common: the condition is the tapped states themselves, side by side."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        del self.txtfusion, self.txtmlp
        build, size = Build(), config.vlm.hidden_size
        self.tap_norms = nn.ModuleList(RMSNorm(size, build) for _ in config.vlm.taps)

    def pool(self, features: VLMFeatures, layer_gains: Sequence[float] | None = None) -> Conditioning:
        """Nothing is pooled: tokens "B T LD" are the states of all taps, each brought to unit size."""
        if layer_gains is not None:
            raise ConfigError("This design pools no layers: leave the layer gains away.")
        states = [norm(features.states[:, :, tap]) for tap, norm in enumerate(self.tap_norms)]
        return Conditioning(tokens=torch.cat(states, -1), mask=features.mask, positions=features.positions)

    def taps_of(self, conditioning: Conditioning) -> list[Float[Tensor, "B T D"]]:
        """The states of the taps again, one by one."""
        return list(conditioning.tokens.chunk(len(self.tap_norms), -1))

    def tap_of_block(self, block: int) -> int:
        """Which tap a block reads: the first block the first, the last block the last."""
        return round(block * (len(self.tap_norms) - 1) / max(1, len(self.blocks) - 1))


class KeyValueFusion(_WithoutPooling):
    """Each block attends, beside the latents, to keys and values made from one VLM layer by a matrix of its own (the VLM's own
    keys and values are such a product, too)."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        width = config.dit.num_kv_heads * config.dit.head_size
        self.key_maps, self.value_maps = (
            nn.ModuleList(nn.Linear(config.vlm.hidden_size, width, bias=False) for _ in self.blocks)
            for _ in range(2)
        )

    def prepare(self, conditioning: Conditioning, grid: tuple[int, int]) -> PreparedCondition:
        states = self.taps_of(conditioning)
        turn = self._rotation(self._condition_positions(conditioning, grid))
        size = self.config.dit.head_size
        keys_values = []
        for index, block in enumerate(self.blocks):
            state = states[self.tap_of_block(index)]
            keys, values = (
                rearrange(maps[index](state), "B T (A K) -> B A T K", K=size)
                for maps in (self.key_maps, self.value_maps)
            )
            keys_values.append((rotate(block.attn.qknorm.knorm(keys), turn), values))
        return PreparedCondition(conditioning=conditioning, grid=grid, keys_values=keys_values)


class HiddenStateInjection(_WithoutPooling):
    """The first tapped state goes in as condition tokens; the later ones are added to these tokens before later blocks."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        self.injections = nn.ModuleList(
            nn.Linear(config.vlm.hidden_size, config.dit.hidden_size, bias=False) for _ in config.vlm.taps
        )

    def prepare(self, conditioning: Conditioning, grid: tuple[int, int]) -> PreparedCondition:
        states = self.taps_of(conditioning)
        turn = self._rotation(self._condition_positions(conditioning, grid))
        x = self.injections[0](states[0])
        bias = key_bias(conditioning.mask, x.dtype)
        _, shared = self._time(x.new_zeros(1), x.dtype)
        keys_values, injected = [], 0
        for index, block in enumerate(self.blocks):
            while injected < self.tap_of_block(index):
                injected += 1
                x = x + self.injections[injected](states[injected])
            x, offered = block.with_keys_values(x, shared, rotation=turn, bias=bias)
            keys_values.append(offered)
        return PreparedCondition(conditioning=conditioning, grid=grid, keys_values=keys_values)


class LAPPerModality(UniFusion):
    """Text and pictures pooled by a LAP of their own each; refiner and DiT are shared."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        taps, size = len(config.vlm.taps), config.vlm.hidden_size
        self.picture_lap = LayerwiseAttentionPooling(config.lap, num_taps=taps, size=size, build=Build())

    def pool(self, features: VLMFeatures, layer_gains: Sequence[float] | None = None) -> Conditioning:
        lap, refiner = self.txtfusion.stages
        pictures = features.positions[..., :1] > 0
        pooled = torch.where(
            pictures, self.picture_lap(features.states, layer_gains), lap(features.states, layer_gains)
        )
        return Conditioning(
            tokens=self.txtmlp(refiner(pooled, features.mask)),
            mask=features.mask,
            positions=features.positions,
        )


FUSIONS: dict[str, type[UniFusion]] = {
    "lap": UniFusion,
    "key-value fusion": KeyValueFusion,
    "hidden-state injection": HiddenStateInjection,
    "lap per modality": LAPPerModality,
}
