"""Other ways to condition a DiT on a VLM's layers, for comparison with LAP. All have the `prefix` form of attention.

`KeyValueFusion` and `HiddenStateInjection` are the alternatives in arXiv 2510.12789 (section on fusion designs).
`ConcatenatedLayers` is the way of FLUX.2 (three layers). `MeanOfLayers` has no learned pooling, `WithoutRefiner` and
`CausalRefiner` are LAP without the refiner's attention to all tokens, and `LAPPerModality` has separate LAP weights for image
tokens.

So that they can be compared, each has LAP's two stages in the place that the design gives them: blocks in which a token sees
itself alone, then blocks in which tokens see each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Conditioning, Features
from ..errors import ConfigError
from .lap import LayerwiseAttentionPooling
from .layers import LayerFactory, RMSNorm, apply_rope, key_bias, key_bias_if_padded
from .unifusion import PreparedCondition, UniFusion, UniFusionConfig


def _refuse_gains(gains: Sequence[float] | None) -> None:
    if gains is not None:
        raise ConfigError("Layer gains were given, and this design does not pool layers: leave them out.")


class _OnePool(UniFusion):
    """The condition is one vector for each token, as with LAP; `pool_tokens` makes it."""

    def pool(
        self,
        features: Features,
        layer_gains: Sequence[float] | None = None,
        *,
        weights: Hashable = None,
    ) -> Conditioning:
        """As `UniFusion.pool`; nothing is kept."""
        tokens = self.txtmlp(self.pool_tokens(features, layer_gains))
        return Conditioning(tokens=tokens, mask=features.mask, positions=features.positions)

    def pool_tokens(self, features: Features, gains: Sequence[float] | None) -> Float[Tensor, "B T D"]:
        """Pooled and refined tokens."""
        raise NotImplementedError


# One stage of LAP and refiner, replaced ---------------------------------------------------------------


class WithoutRefiner(_OnePool):
    """LAP, and the refiner's blocks with every token alone: the same parameters, and no token sees another."""

    def pool_tokens(self, features: Features, gains: Sequence[float] | None) -> Float[Tensor, "B T D"]:
        """Pooled tokens, each refined alone."""
        pooled = self.txtfusion.pool(features.states, gains)
        return _alone(self.txtfusion.refiner_blocks, pooled)


class CausalRefiner(_OnePool):
    """LAP, and a refiner in which a token sees itself and the tokens before it, as in the VLM."""

    def pool_tokens(self, features: Features, gains: Sequence[float] | None) -> Float[Tensor, "B T D"]:
        """Pooled tokens, refined in their order."""
        tokens = self.txtfusion.pool(features.states, gains)
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        bias = key_bias(features.mask, tokens.dtype).expand(-1, -1, length, -1)
        bias = bias.masked_fill(later, torch.finfo(tokens.dtype).min)
        for block in self.txtfusion.refiner_blocks:
            tokens = block(tokens, bias)
        return tokens


class MeanOfLayers(_OnePool):
    """The mean of the taps, then LAP's blocks with every token alone, and the refiner."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        del self.txtfusion.projector

    def pool_tokens(self, features: Features, gains: Sequence[float] | None) -> Float[Tensor, "B T D"]:
        """The taps' mean, refined."""
        _refuse_gains(gains)
        tokens = _scaled(self, features).mean(2)
        return self.txtfusion.refiner_blocks(_alone(self.txtfusion.layerwise_blocks, tokens), features.mask)


class ConcatenatedLayers(_OnePool):
    """The taps side by side, mapped to the VLM's width by one matrix, then the refiner."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        del self.txtfusion.projector
        size = config.vlm.hidden_size
        self.join = nn.Linear(len(config.vlm.taps) * size, size, bias=False)

    def pool_tokens(self, features: Features, gains: Sequence[float] | None) -> Float[Tensor, "B T D"]:
        """The joined taps, refined."""
        _refuse_gains(gains)
        tokens = self.join(_scaled(self, features).flatten(2))
        return self.txtfusion.refiner_blocks(_alone(self.txtfusion.layerwise_blocks, tokens), features.mask)


class LAPPerModality(_OnePool):
    """One LAP for text tokens and one for image tokens, with a shared refiner and DiT."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        taps, size = len(config.vlm.taps), config.vlm.hidden_size
        self.image_lap = LayerwiseAttentionPooling(
            config.lap, num_taps=taps, size=size, factory=LayerFactory()
        )

    def pool_tokens(self, features: Features, gains: Sequence[float] | None) -> Float[Tensor, "B T D"]:
        """Pooled and refined tokens, with `image_lap` for image tokens; `gains` apply to both LAPs."""
        is_image = features.positions[..., :1] > 0
        of_images = self.image_lap(features.states, gains)
        pooled = torch.where(is_image, of_images, self.txtfusion.pool(features.states, gains))
        return self.txtfusion.refiner_blocks(pooled, features.mask)


# Layers that reach the DiT apart ----------------------------------------------------------------------


class _LayersApart(UniFusion):
    """Blocks of the DiT get different taps, so the condition is the states of the taps that they use, side by side.

    The blocks of LAP and refiner refine each tap for itself, with the same weights.
    """

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        del self.txtfusion.projector, self.txtmlp
        factory, last = LayerFactory(), len(config.vlm.taps) - 1
        # the first block gets the first tap, the last block the last
        blocks = max(1, config.dit.num_blocks - 1)
        of_blocks = [round(block * last / blocks) for block in range(config.dit.num_blocks)]
        self.used_taps = sorted(set(of_blocks))
        # by block: the index among `used_taps`
        self.tap_of_block = [self.used_taps.index(tap) for tap in of_blocks]
        self.tap_norms = nn.ModuleList(RMSNorm(config.vlm.hidden_size, factory) for _ in self.used_taps)

    def pool(
        self,
        features: Features,
        layer_gains: Sequence[float] | None = None,
        *,
        weights: Hashable = None,
    ) -> Conditioning:
        """The refined states of the used taps: the conditioning width E is L D. Raises ConfigError for layer gains."""
        _refuse_gains(layer_gains)
        states = _scaled(self, features)[:, :, self.used_taps]
        taps = states.shape[2]
        tokens = rearrange(states, "B T L D -> (B L) T D")
        tokens = _alone(self.txtfusion.layerwise_blocks, tokens)
        tokens = self.txtfusion.refiner_blocks(tokens, repeat(features.mask, "B T -> (B L) T", L=taps))
        tokens = rearrange(tokens, "(B L) T D -> B T L D", L=taps)
        normed = [norm(tokens[:, :, index]) for index, norm in enumerate(self.tap_norms)]
        return Conditioning(tokens=torch.cat(normed, -1), mask=features.mask, positions=features.positions)

    def taps_of(self, conditioning: Conditioning) -> list[Float[Tensor, "B T D"]]:
        """The states of each used tap, split from the output of `pool`."""
        return list(conditioning.tokens.chunk(len(self.used_taps), -1))


class KeyValueFusion(_LayersApart):
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
            state = states[self.tap_of_block[index]]
            keys, values = (
                rearrange(maps[index](state), "B T (kv_heads K) -> B kv_heads T K", K=size)
                for maps in (self.key_maps, self.value_maps)
            )
            keys_values.append((apply_rope(block.attn.qknorm.knorm(keys), rope), values))
        return PreparedCondition(conditioning=conditioning, grid=grid, keys_values=keys_values)


class HiddenStateInjection(_LayersApart):
    """The first tap's states are the condition tokens; those of later taps are added to them before later blocks."""

    def __init__(self, config: UniFusionConfig) -> None:
        super().__init__(config)
        self.injections = nn.ModuleList(
            nn.Linear(config.vlm.hidden_size, config.dit.hidden_size, bias=False) for _ in self.used_taps
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
            while injected < self.tap_of_block[index]:
                injected += 1
                x = x + self.injections[injected](states[injected])
            x, of_block = block.with_keys_values(x, modulation, rope, bias)
            keys_values.append(of_block)
        return PreparedCondition(conditioning=conditioning, grid=grid, keys_values=keys_values)


def _scaled(model: UniFusion, features: Features) -> Float[Tensor, "B T L D"]:
    """The states, each tap divided by its scale, as LAP does it."""
    model.check_features(features)
    return next(iter(model.txtfusion.block_states(features.states))).view_as(features.states)


def _alone(blocks: nn.ModuleList, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """The blocks' output if every token attends to itself alone."""
    x = rearrange(tokens, "B T D -> (B T) 1 D")
    for block in blocks:
        x = block(x)
    return x.view_as(tokens)


# name in a training recipe -> class
FUSIONS: dict[str, type[UniFusion]] = {
    "lap": UniFusion,
    "without refiner": WithoutRefiner,
    "causal refiner": CausalRefiner,
    "mean of layers": MeanOfLayers,
    "concatenated layers": ConcatenatedLayers,
    "key-value fusion": KeyValueFusion,
    "hidden-state injection": HiddenStateInjection,
    "lap per modality": LAPPerModality,
}
