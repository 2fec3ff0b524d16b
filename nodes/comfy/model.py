"""The generator as a ComfyUI MODEL, which stock samplers, guiders, LoRA loaders and saving nodes take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...unifusion_core.checkpoints.generator_file import CONFIG_KEY, GeneratorContent, config_to_json
from ...unifusion_core.contracts import GENERATOR_REMEDY, Features, check_finite
from ...unifusion_core.errors import ConfigError, ShapeError
from ...unifusion_core.flow.schedule import build_schedule
from ...unifusion_core.images import untrained_size, warn_of_other_size
from ...unifusion_core.inspection import reading
from ...unifusion_core.inspection.table import lines_of, write_table
from ...unifusion_core.models.lap import parse_layer_gains
from ...unifusion_core.sampling import work_of_step
from ...unifusion_core.zoo.krea_2 import KREA_2
from ..sockets import Encoded
from .conditions import (
    EDITED,
    EMPTY,
    MASK,
    POSITIONS,
    ConditionInBatch,
    ContextInBatch,
    PooledTokens,
    Rows,
    SamplingCondition,
    check_spec,
    too_few_latents,
)
from .host import SMALL, warn_once, wrong_type
from .module import CONDITIONS, WEIGHTS, HostedUniFusion
from .ops import Options
from .unused import check_patches, warn_of_unused

logger = logging.getLogger(__name__)


# Latents ------------------------------------------------------------------------------------------


class TinyLatents(comfy.latent_formats.LatentFormat):
    """Latents of the tiny VAE, unscaled. The preview colours are fitted in training and stored in the generator file."""

    latent_channels = 16

    def __init__(self, training: dict[str, Any]) -> None:
        self.latent_rgb_factors = training.get("latent_rgb_factors") or _NEUTRAL_FACTORS
        self.latent_rgb_factors_bias = training.get("latent_rgb_bias")


# gray previews, for files that store no colours
_NEUTRAL_FACTORS = [[0.3, 0.3, 0.3]] * 4 + [[0.0, 0.0, 0.0]] * 12


def latent_format_of(content: GeneratorContent) -> Callable[[], comfy.latent_formats.LatentFormat]:
    """ComfyUI's latent format for the generator."""
    name = content.spec.comfy_latent_format
    return getattr(comfy.latent_formats, name) if name else partial(TinyLatents, content.training)


def shift_of(schedule: str) -> float:
    """The shift that turns ComfyUI's uniform schedules into a schedule of the core. For a schedule that depends on the image's
    size it is the shift at 1024 x 1024 pixels."""
    middle = float(build_schedule(schedule, 2, num_tokens=4096)[1])
    return middle / (1 - middle)


# The model ----------------------------------------------------------------------------------------


class NoUNet(dict[str, Any]):
    """The settings of a model that is no U-Net."""

    def copy(self) -> NoUNet:
        return NoUNet(self)

    def __missing__(self, key: str) -> Any:
        """Nodes for U-Nets ask for the number of their channels. Raises ConfigError."""
        raise ConfigError(
            f'A node asks this MODEL for "{key}", a setting of U-Nets such as SDXL; this model is a diffusion transformer: take '
            "the node out."
        )


class HostConfig(comfy.supported_models_base.BASE):
    """ComfyUI's description of a model, made before the model."""

    unet_config: ClassVar = {"image_model": "unifusion"}
    # the base class would pass num_heads and more to the module
    unet_extra_config: ClassVar = {}
    # as stock Krea 2, whose blocks have the same form
    memory_usage_factor = 2.2

    def __init__(self, content: GeneratorContent, parameters: int) -> None:
        config = content.config
        # a factory, which the base class calls
        self.latent_format = latent_format_of(content)
        self.spec = content.spec
        self.sampling_settings = {
            "shift": shift_of(self.spec.default_sampling.schedule),
            "multiplier": 1000,
        }
        self.supported_inference_dtypes = (
            [torch.float32] if parameters < SMALL else [torch.bfloat16, torch.float16, torch.float32]
        )
        self.unifusion, self.training_record = config, content.training
        # the module takes "unifusion"; ComfyUI needs "layers" to map the names in Krea 2's LoRAs
        super().__init__(NoUNet(image_model="unifusion", unifusion=config, layers=config.dit.num_blocks))

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> HostModel:
        return HostModel(self, device)


class HostModel(comfy.model_base.Krea2):
    """The generator with ComfyUI's sampling around it.

    It is a subclass of ComfyUI's Krea 2, whose parameter names UniFusion shares, so that LoRAs in every layout that ComfyUI
    supports for Krea 2 apply, and nodes of others that are made for Krea 2 do what they do there.
    """

    def __init__(self, model_config: HostConfig, device: torch.device | None = None) -> None:
        # Krea 2's own __init__ would build ComfyUI's module
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostedUniFusion
        )
        if model_config.spec.name == KREA_2.name:
            # as fine as the grid of ComfyUI's own Krea 2, so that every scheduler gives the same sigmas
            settings = model_config.sampling_settings
            self.model_sampling.set_parameters(
                shift=settings["shift"], timesteps=10_000, multiplier=settings["multiplier"]
            )
        # a condition's token takes as much memory as a latent token, which is one patch
        patch = model_config.unifusion.dit.patch_size
        self.memory_usage_factor_conds = (CONDITIONS, "ref_latents")
        self.memory_usage_shape_process = {CONDITIONS: lambda s: [s[0], s[2], s[1] * patch**2]}
        self.edit_warned: tuple[tuple[int, int], tuple[int, int]] | None = None

    def process_timestep(self, timestep: Tensor, **kwargs: Any) -> Tensor:
        """ComfyUI's timestep as the core's time in 0..1. The factor depends on the sampling node before the sampler: 1000 for
        ModelSamplingSD3, 1 for ModelSamplingAuraFlow and ModelSamplingFlux."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        """The latent in the model's scale. Raises ShapeError for a latent of another model."""
        self._check_axes(latent)
        self._check_channels(latent)
        return super().process_latent_in(latent)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The keyword arguments for one condition. ComfyUI calls this once per condition when sampling begins."""
        config = self.model_config.unifusion
        self._check_latents(kwargs["noise"], kwargs.get(EDITED))
        if kwargs.get("latent_image") is not None:
            check_finite(kwargs["latent_image"], "Latent", "check the node that it comes from")
        if kwargs.get("cross_attn") is None:
            raise ShapeError(
                "A conditioning holds no tokens: encode the prompt with Encode for UniFusion, Rewrite for UniFusion (VERIFI) or "
                "CLIP Text Encode; for no prompt, encode an empty text."
            )
        joint = config.condition_attention == "joint"
        method = kwargs.get("reference_latents_method") or self.diffusion_model.default_ref_method
        warn_of_unused(kwargs | {"reference_latents_method": method}, takes_references=joint)
        condition = SamplingCondition(config, kwargs["cross_attn"], kwargs)
        prompts, latents = len(condition.tokens), len(kwargs["noise"])
        if prompts > latents:
            raise ShapeError(too_few_latents(prompts, latents))
        self.model_config.spec.warn_of_long_condition(int(condition.mask.sum(1).max()))
        if not joint:
            kwargs.pop("reference_latents", None)
        return super().extra_conds(**kwargs) | {
            "c_crossattn": ContextInBatch(condition.tokens),
            CONDITIONS: ConditionInBatch([Rows(condition, 1)]),
        }

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, Any]:
        tokens = kwargs.get("cross_attn")
        shapes = super().extra_conds_shapes(**kwargs)
        return shapes if tokens is None else shapes | {CONDITIONS: list(tokens.shape)}

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Options = {},  # noqa: B006  (ComfyUI's convention)
        **kwargs: Any,
    ) -> Tensor:
        self._check_step_reuse(transformer_options)
        check_patches(transformer_options)
        options = transformer_options | {WEIGHTS: self._hooked_weights()}
        clean = super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)
        check_finite(clean, "Image predicted in a sampling step", GENERATOR_REMEDY)
        return clean

    def _check_step_reuse(self, options: Options) -> None:
        """Warns of an EasyCache that leaves out steps which this model needs."""
        limit = self.model_config.spec.comfy_easy_cache
        cache: Any = options.get("easycache")
        # LazyCache has the same entry
        if limit is None or getattr(cache, "name", "") != "EasyCache" or cache.reuse_threshold <= limit:
            return
        warn_once(
            f"EasyCache with reuse_threshold {cache.reuse_threshold:g} draws wrong images with this model: set it to {limit:g} "
            "or less, or use LazyCache, which is right at its default."
        )

    def _hooked_weights(self) -> Hashable:
        """The active LoRA hooks with their strengths. Hooks change the weights during sampling."""
        hooks = getattr(self.current_patcher, "current_hooks", None)
        return None if hooks is None else tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks)

    def _check_axes(self, latent: Tensor) -> None:
        if latent.ndim not in (4, 5):
            raise ShapeError(
                f"The latent has {latent.ndim} axes ({', '.join(map(str, latent.shape))}), as of audio, and this model draws "
                "images, whose latents have 4: use EmptySD3LatentImage, or VAE Encode on an image."
            )

    def _check_channels(self, latent: Tensor) -> None:
        needed = self.model_config.unifusion.dit.latent_channels
        if latent.shape[1] != needed:
            raise ShapeError(
                f"The latent has {latent.shape[1]} channels, this model needs {needed}: use EmptySD3LatentImage, or encode the "
                "image with this model's own VAE."
            )

    def _check_latents(self, noise: Tensor, edited: tuple[int, int] | None) -> None:
        """Warns of a size that the model was not trained on, and of an edit in another size than its image's.

        Raises ShapeError for latents of another model, of several frames, or without content.
        """
        config = self.model_config.unifusion
        self._check_axes(noise)
        if 0 in noise.shape:
            raise ShapeError(
                f"The latent holds no image (its shape is {tuple(noise.shape)}): give one of at least one image and 16 x 16 "
                "pixels."
            )
        if noise.ndim == 5 and noise.shape[2] != 1:
            raise ShapeError(
                f"The latent has {noise.shape[2]} frames; this model draws single images: set the length to 1, or take one frame."
            )
        self._check_channels(noise)
        cell = self.latent_format.spacial_downscale_ratio
        size = (noise.shape[-1] * cell, noise.shape[-2] * cell)
        if told := untrained_size(size, config.trained_sizes):
            own = config.trained_sizes[0]
            work = work_of_step(self.diffusion_model, size) / work_of_step(self.diffusion_model, own)
            longer = (
                f" A step takes about {work:.0f} times as long as at {own[0]}x{own[1]}." if work >= 2 else ""
            )
            warn_once(f"{told}{longer}")
        if edited is not None and (size, edited) != self.edit_warned:
            warn_of_other_size(size, edited)
            self.edit_warned = (size, edited)

    def state_dict_for_saving(
        self, unet_state_dict: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """The weights with the configuration, so that Load UniFusion Model opens the files of ModelSave."""
        saved = super().state_dict_for_saving(unet_state_dict, *args, **kwargs)
        text = config_to_json(
            self.model_config.unifusion, self.model_config.training_record, self.model_config.spec
        )
        saved[CONFIG_KEY] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        return saved


# Pooling and inspection ---------------------------------------------------------------------------


def hosted(model: Any) -> HostModel:
    """The UniFusion model of a MODEL. Raises ConfigError for a model of another kind."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, HostModel):
        raise ConfigError(wrong_type("MODEL", type(inner).__name__, "Load UniFusion Model"))
    return inner


@contextmanager
def _at_work(model: Any, encoded: Encoded) -> Iterator[tuple[HostedUniFusion, Features]]:
    """The module of a MODEL with its patches, loaded on its device, and the features there.

    Raises ConfigError for a model of another kind, ShapeError for features that were encoded for another model.
    """
    inner, features = hosted(model), encoded.features
    check_spec(inner.model_config.unifusion, encoded.spec)
    mm.load_models_gpu([model], memory_required=8 * features.states.numel() * mm.dtype_size(torch.float32))
    module: HostedUniFusion = inner.diffusion_model
    options = model.model_options.get("transformer_options", {})
    with module.attention.during(options):
        yield module, features.to(model.load_device, inner.get_dtype_inference())


@torch.no_grad()
def read_layers(model: Any, encoded: Encoded) -> reading.LayerReading:
    """The share of each VLM layer in every pooled token of one chat. Raises as `pool` does."""
    with _at_work(model, encoded) as (module, features):
        return reading.read_layers(module, features)


def layer_map(model: Any, encoded: Encoded) -> tuple[Tensor, str]:
    """`read_layers` as an IMAGE (1 H W 3) and as a table. Raises as `pool` does."""
    # matplotlib is imported with it
    from ...unifusion_core.inspection.layer_map import draw_layer_map

    features, taps = encoded.features, encoded.spec.taps
    shares = read_layers(model, encoded)
    texts = [encoded.texts[number] for number in features.token_info.ids[0].tolist()]
    lines = lines_of(features, texts)
    pixels = draw_layer_map(shares, features, lines, taps, encoded.images)
    return torch.from_numpy(pixels)[None].float() / 255, write_table(shares, lines, taps)


def _pooling_weights(model: Any) -> Hashable:
    """Identifies the weights and patches of LAP and refiner; None if patches change more than weights."""
    options = model.model_options.get("transformer_options", {})
    replaced = any(name.startswith("diffusion_model") for name in model.object_patches)
    if options or replaced or model.weight_wrapper_patches:
        return None
    return model.patches_uuid, model.model.get_dtype_inference()


@torch.no_grad()
def pool(model: Any, encoded: Encoded, layer_gains: str = "") -> list[list[Any]]:
    """VLM features as a CONDITIONING of the DiT's width, by LAP and refiner with the patches of the MODEL. `layer_gains` as in
    `parse_layer_gains`.

    Raises ConfigError for a model of another kind or for gains that cannot be parsed, ShapeError for features that were encoded
    for another model.
    """
    with _at_work(model, encoded) as (module, features):
        gains = parse_layer_gains(layer_gains, encoded.spec.taps)
        pooled = module.pool(features, gains, weights=_pooling_weights(model))
        check_finite(pooled.tokens, "Pooled condition", GENERATOR_REMEDY)
    hosted(model).model_config.spec.warn_of_long_condition(pooled.mask.shape[1])
    device = mm.intermediate_device()
    tokens = pooled.tokens.to(device, torch.float32).as_subclass(PooledTokens)
    rest = {MASK: pooled.mask.long().to(device), POSITIONS: pooled.positions.to(device)}
    more = {EDITED: encoded.edited, EMPTY: encoded.empty}
    return [[tokens, rest | {name: value for name, value in more.items() if value is not None}]]
