"""UniFusion: LAP, refiner and DiT as one trainable module. Its `forward` is the architecture.

Parameter paths follow Krea 2's public checkpoint layout, so that its files and LoRAs apply unchanged. ARCHITECTURE.md lists paths
and classes. The architecture is that of arXiv 2510.12789.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Conditioning, Features, VLMSpec
from ..errors import ConfigError, ShapeError
from .dit import (
    BlockCall,
    BlockModulation,
    DiTBlock,
    DiTConfig,
    FinalLayer,
    FinalModulation,
    KeysValues,
    from_patches,
    patch_positions,
    to_patches,
)
from .lap import LAPConfig, TextFusion
from .layers import (
    LayerFactory,
    Prefix,
    RMSNorm,
    Rope,
    TransformerBlock,
    key_bias,
    rope_angles,
    time_embedding,
)

ConditionAttention = Literal["prefix", "joint"]
TextPositions = Literal["index", "zero"]
ImagePositions = Literal["grid", "zero"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UniFusionConfig:
    """The configuration of one generator. All generators share one code path; `zoo/` has their configurations.

    vlm, lap, dit         sizes of the parts
    condition_attention   "prefix": condition tokens attend to condition tokens only and are modulated at t = 0;
                          "joint": all tokens attend to all and share the latents' time
    text_positions        rotary index of text tokens: "index" = count from 1, "zero" = 0 for all
    image_positions       rotary position of image tokens: "grid" = place on the latent grid, "zero" = 0 for all
    latent_format         name of the autoencoder's latents; an autoencoder with another `latent_format` is refused
    trained_sizes         (width, height) in pixels; other sizes give a warning

    Raises ConfigError for an unknown choice, or a VLM width that LAP's heads do not divide.
    """

    vlm: VLMSpec
    lap: LAPConfig
    dit: DiTConfig
    condition_attention: ConditionAttention
    text_positions: TextPositions = "index"
    image_positions: ImagePositions = "grid"
    latent_format: str = "unifusion-tiny"
    trained_sizes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        choices = {
            "condition_attention": get_args(ConditionAttention),
            "text_positions": get_args(TextPositions),
            "image_positions": get_args(ImagePositions),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f'{name} is "{getattr(self, name)}"; choose {" or ".join(allowed)}')
        if self.vlm.hidden_size % self.lap.num_heads:
            raise ConfigError(
                f"the VLM's width {self.vlm.hidden_size} is not divisible by LAP's {self.lap.num_heads} heads: give another "
                "number of heads"
            )


@dataclass(frozen=True, kw_only=True)
class PreparedCondition:
    """A condition with everything that can be computed before sampling.

    grid          (rows, columns) of the latents' patches
    has_padding   whether any token is masked. Computed once, because the check waits for the device
    keys_values   prefix form: keys and values of every block, exact for all steps, seeds and latents. Joint form: None
    """

    conditioning: Conditioning
    grid: tuple[int, int]
    has_padding: bool = True
    keys_values: KeysValues | None = None

    def repeat(self, count: int) -> PreparedCondition:
        """Each row `count` times in succession, for several latents per condition."""
        keys_values = self.keys_values and [
            (k.repeat_interleave(count, 0), v.repeat_interleave(count, 0)) for k, v in self.keys_values
        ]
        return replace(self, conditioning=self.conditioning.repeat(count), keys_values=keys_values)


class UniFusion(nn.Module):
    """LAP, refiner and DiT. `pool` runs once per condition, `prepare` once per sampling, `forward` once per step."""

    def __init__(self, config: UniFusionConfig, factory: LayerFactory | None = None) -> None:
        super().__init__()
        factory = factory or LayerFactory()
        self.config = config
        dit, vlm = config.dit, config.vlm
        size = dit.hidden_size
        self.first = factory.linear(dit.latent_channels * dit.patch_size**2, size, bias=True)
        self.blocks = nn.ModuleList(DiTBlock(dit, factory) for _ in range(dit.num_blocks))
        self.tmlp = nn.Sequential(
            factory.linear(dit.time_size, size, bias=True),
            nn.GELU("tanh"),
            factory.linear(size, size, bias=True),
        )
        self.txtfusion = TextFusion(config.lap, num_taps=len(vlm.taps), size=vlm.hidden_size, factory=factory)
        self.txtmlp = nn.Sequential(
            RMSNorm(vlm.hidden_size, factory),
            factory.linear(vlm.hidden_size, size, bias=True),
            nn.GELU("tanh"),
            factory.linear(size, size, bias=True),
        )
        self.last = FinalLayer(dit, factory)
        self.tproj = nn.Sequential(nn.GELU("tanh"), factory.linear(size, 6 * size, bias=True))

    @property
    def dit_blocks(self) -> list[DiTBlock]:
        """`blocks`, typed: a ModuleList does not keep the type of its modules."""
        return cast(list[DiTBlock], list(self.blocks))

    def pool(
        self,
        features: Features,
        layer_gains: Sequence[float] | None = None,
        *,
        weights: Hashable = None,
    ) -> Conditioning:
        """The DiT's condition: LAP, refiner, then the projection to the DiT's width.

        `layer_gains`, one for each tap, multiply LAP's pooling weights; None = as trained. `weights` identifies the present
        weights and patches of LAP and refiner: with it, image tokens and whole chats that were pooled before are not pooled
        again.

        Raises ShapeError for features of another width or number of taps, ConfigError for another number of gains.
        """
        self.check_features(features)
        # a foreign part in LAP's place (ComfyUI's patches) may take states and mask alone
        further: dict[str, Any] = {} if layer_gains is None else {"gains": layer_gains}
        if weights is not None:
            further |= {"images": features.positions[..., 0].long(), "weights": weights}
        tokens = self.txtmlp(self.txtfusion(features.states, features.mask, **further))
        return Conditioning(tokens=tokens, mask=features.mask, positions=features.positions)

    def check_features(self, features: Features) -> None:
        """Raises ShapeError if width or number of taps are not those of the VLM that the model was trained with."""
        taps, width = features.states.shape[-2:]
        spec = self.config.vlm
        if (taps, width) != (len(spec.taps), spec.hidden_size):
            raise ShapeError(
                f"the features have {taps} layers of width {width}, this model reads {len(spec.taps)} layers of width "
                f"{spec.hidden_size}: encode with the VLM it was trained with ({spec.family}, taps {spec.taps})"
            )

    def prepare(self, conditioning: Conditioning, grid: tuple[int, int]) -> PreparedCondition:
        """Computes what does not depend on the latents: in the prefix form, keys and values of every block.

        `grid`: (rows, columns) of the latents' patches; the positions of image tokens depend on it.
        """
        x, has_padding = conditioning.tokens, not bool(conditioning.mask.all())
        if self.config.condition_attention == "joint":
            return PreparedCondition(conditioning=conditioning, grid=grid, has_padding=has_padding)
        _, modulation = self._time(x.new_zeros(1), x.dtype)
        rope = self._rope(self._condition_positions(conditioning, grid))
        bias = key_bias(conditioning.mask, x.dtype) if has_padding else None
        keys_values: list[Prefix] = []
        for block in self.dit_blocks:
            x, of_block = block.with_keys_values(x, modulation, rope, bias)
            keys_values.append(of_block)
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
        """The velocity (noise minus clean) of latents at time t; t = 1 is noise, t = 0 is clean.

        `block_call` returns the function to call instead of a block, for training that recomputes activations.

        Raises ShapeError if `condition` was prepared for another grid.
        """
        patch = self.config.dit.patch_size
        rows, columns = latents.shape[-2] // patch, latents.shape[-1] // patch
        if condition.grid != (rows, columns):
            raise ShapeError(
                f"the condition was prepared for {condition.grid} patches, the latents have {(rows, columns)}: "
                "prepare it again for this size"
            )
        x = self.first(to_patches(latents, patch))
        time, modulation = self._time(t, x.dtype)
        conditioning = condition.conditioning
        num_condition = conditioning.tokens.shape[1]
        positions = patch_positions(rows, columns, x.device).expand(len(x), -1, -1)
        bias = None
        if condition.has_padding:
            bias = key_bias(
                torch.cat([conditioning.mask, conditioning.mask.new_ones(x.shape[:2])], 1), x.dtype
            )
        if condition.keys_values is not None:
            rope = self._rope(positions)
            for index, (block, prefix) in enumerate(zip(self.dit_blocks, condition.keys_values, strict=True)):
                x = block_call(index, block)(x, modulation, rope, bias, prefix=prefix)
        else:
            own = self._condition_positions(conditioning, (rows, columns))
            rope = self._rope(torch.cat([own, positions], 1))
            x = torch.cat([conditioning.tokens.to(x.dtype), x], 1)
            *early, last = self.dit_blocks
            for index, block in enumerate(early):
                x = block_call(index, block)(x, modulation, rope, bias)
            # the last block's output for condition tokens is not used
            prefix = last.keys_values(x[:, :num_condition], modulation, rope[:, :, :num_condition])
            x = block_call(len(early), last)(
                x[:, num_condition:], modulation, rope[:, :, num_condition:], bias, prefix=prefix
            )
        return from_patches(self.last(x, time), patch, rows, columns)

    def _time(
        self, t: Float[Tensor, " B"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "B 1 M"], Float[Tensor, "B 1 M6"]]:
        """The time vector of the final layer, and the adaLN vector that all blocks share (M6 = 6 M)."""
        time = self.tmlp(time_embedding(t, self.config.dit.time_size).to(dtype))[:, None]
        return time, self.tproj(time)

    def _rope(self, positions: Float[Tensor, "B S 3"]) -> Rope:
        return rope_angles(positions, self.config.dit.head_size, self.config.dit.rope_theta)

    def _condition_positions(
        self, conditioning: Conditioning, grid: tuple[int, int]
    ) -> Float[Tensor, "B T 3"]:
        """Rotary positions (index, row, column) of condition tokens. Text: its count as index. Images: their place on the latent
        grid, and minus the image's number as index, which keeps them apart from text."""
        image = conditioning.positions[..., :1] > 0
        index = torch.cumsum(conditioning.mask & ~image[..., 0], 1)[..., None].float()
        if self.config.text_positions == "zero":
            index = torch.zeros_like(index)
        text = torch.cat([index, torch.zeros_like(index), torch.zeros_like(index)], -1)
        if self.config.image_positions == "zero":
            return torch.where(image, torch.zeros_like(text), text)
        scale = conditioning.positions.new_tensor(grid)
        # row and column are the coordinates of a patch's centre
        place = conditioning.positions[..., 1:] * scale - 0.5
        return torch.where(image, torch.cat([-conditioning.positions[..., :1], place], -1), text)


@torch.no_grad()
def initialize(model: UniFusion, generator: torch.Generator | None = None) -> None:
    """Initialises a model in place, for training from scratch.

    Every block is the identity (output projections 0) with open gates (1), the pooling is the mean of the taps, the velocity
    is 0. All other matrices are normal with standard deviation 1 / sqrt(inputs).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, RMSNorm):
            module.scale.zero_()
        elif isinstance(module, BlockModulation | FinalModulation):
            module.lin.zero_()
    for module in model.modules():
        if isinstance(module, DiTBlock | TransformerBlock):
            module.attn.wo.weight.zero_()
            module.mlp.down.weight.zero_()
        if isinstance(module, DiTBlock):
            # the chunks of `BlockModulation`: scale, shift, gate of attention, then those of the MLP
            chunks = module.mod.lin.view(6, -1)
            chunks[2].fill_(1)
            chunks[5].fill_(1)
        if isinstance(module, TextFusion) and "projector" in dict(module.named_children()):
            module.projector.weight.fill_(1 / module.num_taps)
    for layer in (cast(nn.Linear, model.tproj[-1]), model.last.linear):
        layer.weight.zero_()
