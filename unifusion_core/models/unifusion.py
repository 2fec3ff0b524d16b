"""UniFusion: LAP, refiner and DiT as one trainable module. Its forward is the architecture.

Parameter paths follow Krea 2's public checkpoint layout, so that its files and LoRAs apply as they are; the table of both
names stands in ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..contracts import Conditioning, VLMFeatures, VLMSpec
from ..errors import ConfigError, ShapeError
from .dit import (
    BlockCall,
    DiTBlock,
    DiTConfig,
    FinalLayer,
    KeysValues,
    from_patches,
    patch_positions,
    to_patches,
)
from .lap import LAPConfig, LayerwiseAttentionPooling
from .layers import Build, RMSNorm, Rotation, TransformerBlock, key_bias, rotation, time_embedding
from .refiner import Refiner


@dataclass(frozen=True, kw_only=True, slots=True)
class UniFusionConfig:
    """One architecture; every size is a preset of these numbers (presets.py)."""

    vlm: VLMSpec
    lap: LAPConfig
    dit: DiTConfig
    condition_attention: (
        str  # "prefix": conditions see only conditions, at t = 0; "joint": all see all at time t
    )
    text_positions: str = (
        "index"  # rotary index of text tokens: "index" counts them from 1, "zero" gives none
    )
    picture_positions: str = (
        "grid"  # picture tokens: "grid" at their place on the latent grid, "zero" gives none
    )
    latent_format: str = "unifusion-tiny"
    trained_sizes: tuple[
        tuple[int, int], ...
    ] = ()  # (width, height) in pixels; others are drawn with a warning

    def __post_init__(self) -> None:
        choices = {
            "condition_attention": ("prefix", "joint"),
            "text_positions": ("index", "zero"),
            "picture_positions": ("grid", "zero"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f'{name} is "{getattr(self, name)}"; choose {" or ".join(allowed)}')
        if self.vlm.hidden_size % self.lap.num_heads:
            raise ConfigError(
                f"VLM width {self.vlm.hidden_size} does not divide by LAP's {self.lap.num_heads} heads"
            )


@dataclass(frozen=True, kw_only=True)
class PreparedCondition:
    """A condition as far as it can be computed before sampling.

    prefix form: `keys_values` of every block, exact for all steps, seeds and latents; joint form: the tokens alone.
    """

    conditioning: Conditioning
    grid: tuple[int, int]  # rows and columns of the latents' patches
    has_padding: bool = True  # known without, steps need not look for it
    keys_values: KeysValues | None = None

    def repeat(self, count: int) -> PreparedCondition:
        """Each condition `count` times in a row, for several latents per condition."""
        c = self.conditioning
        c = Conditioning(
            **{k: getattr(c, k).repeat_interleave(count, 0) for k in ("tokens", "mask", "positions")}
        )
        keys_values = self.keys_values and [
            (k.repeat_interleave(count, 0), v.repeat_interleave(count, 0)) for k, v in self.keys_values
        ]
        return replace(self, conditioning=c, keys_values=keys_values)


class TextFusion(nn.Module):
    """LAP and refiner under the public checkpoint's names."""

    def __init__(self, config: UniFusionConfig, build: Build) -> None:
        super().__init__()
        size = config.vlm.hidden_size
        lap = LayerwiseAttentionPooling(config.lap, num_taps=len(config.vlm.taps), size=size, build=build)
        refiner = Refiner(config.lap, size=size, build=build)
        self.layerwise_blocks, self.projector, self.refiner_blocks = (
            lap.layerwise_blocks,
            lap.projector,
            refiner.blocks,
        )
        self.stages = (
            lap,
            refiner,
        )  # a tuple registers nothing: the layers above are theirs, under the public names

    def forward(
        self,
        states: Float[Tensor, "B T L D"],
        mask: Bool[Tensor, "B T"],
        layer_gains: Sequence[float] | None = None,
    ) -> Float[Tensor, "B T D"]:
        lap, refiner = self.stages
        return refiner(lap(states, layer_gains), mask)


class UniFusion(nn.Module):
    """LAP + refiner + DiT. `pool` once per condition, `prepare` once per sampling, `forward` once per step."""

    def __init__(self, config: UniFusionConfig, build: Build | None = None) -> None:
        super().__init__()
        build = build or Build()
        self.config = config
        dit = config.dit
        size = dit.hidden_size
        self.first = build.linear(dit.latent_channels * dit.patch_size**2, size, bias=True)
        self.blocks = nn.ModuleList(DiTBlock(dit, build) for _ in range(dit.num_blocks))
        self.tmlp = nn.Sequential(
            build.linear(dit.time_size, size, bias=True), nn.GELU("tanh"), build.linear(size, size, bias=True)
        )
        self.txtfusion = TextFusion(config, build)
        self.txtmlp = nn.Sequential(
            RMSNorm(config.vlm.hidden_size, build),
            build.linear(config.vlm.hidden_size, size, bias=True),
            nn.GELU("tanh"),
            build.linear(size, size, bias=True),
        )
        self.last = FinalLayer(dit, build)
        self.tproj = nn.Sequential(nn.GELU("tanh"), build.linear(size, 6 * size, bias=True))

    @property
    def lap(self) -> LayerwiseAttentionPooling:
        """The pooling alone, for looking inside."""
        return self.txtfusion.stages[0]

    def pool(self, features: VLMFeatures, layer_gains: Sequence[float] | None = None) -> Conditioning:
        """VLM features to the condition that the DiT reads: LAP, refiner, projection to the DiT's width. `layer_gains`, one for
        each tap, multiply LAP's pooling weights; None is as trained.

        Raises ShapeError for features of another width or number of taps, ConfigError for another number of gains.
        """
        self.check_features(features)
        tokens = self.txtmlp(self.txtfusion(features.states, features.mask, layer_gains))
        return Conditioning(tokens=tokens, mask=features.mask, positions=features.positions)

    def check_features(self, features: VLMFeatures) -> None:
        """Refuse features of another VLM (ShapeError)."""
        taps, width = features.states.shape[-2:]
        spec = self.config.vlm
        if (taps, width) != (len(spec.taps), spec.hidden_size):
            raise ShapeError(
                f"the features have {taps} layers of width {width}, this model reads {len(spec.taps)} layers of width "
                f"{spec.hidden_size}: encode with the VLM it was trained with ({spec.family}, taps {spec.taps})"
            )

    def prepare(self, conditioning: Conditioning, grid: tuple[int, int]) -> PreparedCondition:
        """All of the condition that does not depend on the latents, for a latent grid of (rows, columns) patches."""
        x, has_padding = conditioning.tokens, not bool(conditioning.mask.all())
        if self.config.condition_attention == "joint":
            return PreparedCondition(conditioning=conditioning, grid=grid, has_padding=has_padding)
        _, shared = self._time(x.new_zeros(1), x.dtype)
        turn = self._rotation(self._condition_positions(conditioning, grid))
        bias = key_bias(conditioning.mask, x.dtype)
        keys_values: list[tuple[Tensor, Tensor]] = []
        for block in self.blocks:
            x, offered = block.with_keys_values(x, shared, rotation=turn, bias=bias)
            keys_values.append(offered)
        return PreparedCondition(
            conditioning=conditioning, grid=grid, has_padding=has_padding, keys_values=keys_values
        )

    def forward(
        self,
        latents: Float[Tensor, "B C h w"],
        t: Float[Tensor, " B"],
        condition: PreparedCondition,
        block_call: BlockCall = lambda index, block: block,
    ) -> Float[Tensor, "B C h w"]:
        """The velocity (noise minus clean) of latents at time t, t = 1 noise, t = 0 clean. `block_call` may put a host's own
        call in the place of a block's."""
        patch = self.config.dit.patch_size
        rows, columns = latents.shape[-2] // patch, latents.shape[-1] // patch
        if condition.grid != (rows, columns):
            raise ShapeError(
                f"the condition was prepared for {condition.grid} patches, the latents have {(rows, columns)}: "
                "prepare it again for this size"
            )
        x = self.first(to_patches(latents, patch))
        time, shared = self._time(t, x.dtype)
        conditioning = condition.conditioning
        num_condition = conditioning.tokens.shape[1]
        positions = patch_positions(rows, columns, x.device).expand(len(x), -1, -1)
        bias = None
        if condition.has_padding:
            bias = key_bias(
                torch.cat([conditioning.mask, conditioning.mask.new_ones(x.shape[:2])], 1), x.dtype
            )
        if condition.keys_values is not None:
            turn = self._rotation(positions)
            for index, (block, offered) in enumerate(zip(self.blocks, condition.keys_values, strict=True)):
                x = block_call(index, block)(x, shared, rotation=turn, bias=bias, prefix=offered)
        else:
            own = self._condition_positions(conditioning, (rows, columns))
            turn = self._rotation(torch.cat([own, positions], 1))
            x = torch.cat([conditioning.tokens.to(x.dtype), x], 1)
            *early, last = self.blocks
            for index, block in enumerate(early):
                x = block_call(index, block)(x, shared, rotation=turn, bias=bias)
            # what the last block would make of the condition is not read
            offered = last.offered(x[:, :num_condition], shared, turn[:, :, :num_condition])
            x = block_call(len(early), last)(
                x[:, num_condition:], shared, rotation=turn[:, :, num_condition:], bias=bias, prefix=offered
            )
        return from_patches(self.last(x, time), patch, rows, columns)

    def _time(
        self, t: Float[Tensor, " B"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "B 1 M"], Float[Tensor, "B 1 M6"]]:
        """The time vector (for the final layer) and the adaLN vector shared by all blocks. 16 bits would round t itself."""
        time = self.tmlp(time_embedding(t, self.config.dit.time_size).to(dtype))[:, None]
        return time, self.tproj(time)

    def _rotation(self, positions: Float[Tensor, "B S 3"]) -> Rotation:
        return rotation(positions, self.config.dit.head_size, self.config.dit.rope_theta)

    def _condition_positions(
        self, conditioning: Conditioning, grid: tuple[int, int]
    ) -> Float[Tensor, "B T 3"]:
        """Rotary positions of condition tokens: text counted along the index axis, pictures on the latent grid with their
        number (negative, apart from text) as index."""
        picture = conditioning.positions[..., :1] > 0
        index = torch.cumsum(conditioning.mask & ~picture[..., 0], 1)[..., None].float()
        if self.config.text_positions == "zero":
            index = torch.zeros_like(index)
        text = torch.cat([index, torch.zeros_like(index), torch.zeros_like(index)], -1)
        if self.config.picture_positions == "zero":
            return torch.where(picture, torch.zeros_like(text), text)
        scale = conditioning.positions.new_tensor(grid)
        place = (
            conditioning.positions[..., 1:] * scale - 0.5
        )  # a patch's centre has its row and column as coordinates
        return torch.where(picture, torch.cat([-conditioning.positions[..., :1], place], -1), text)


@torch.no_grad()
def initialize(model: UniFusion, generator: torch.Generator | None = None) -> None:
    """Start values for training from scratch: every block starts as the identity (output projections zero) with open gates
    (1), the pooling as the average of the taps, the velocity as zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not name.endswith("modulation.lin"):
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        else:
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, DiTBlock | TransformerBlock):
            module.attn.wo.weight.zero_()
            module.mlp.down.weight.zero_()
    for block in model.blocks:
        gates = block.mod.lin.view(6, -1)
        gates[2].fill_(1)
        gates[5].fill_(1)
    model.tproj[1].weight.zero_()
    model.last.linear.weight.zero_()
    for name, parameter in model.named_parameters():
        if name.endswith("projector.weight"):
            parameter.fill_(1 / len(model.config.vlm.taps))
