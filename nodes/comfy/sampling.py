"""The core's schedules and guidance in ComfyUI's own sampling, with its previews, progress, interrupts and noise masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...unifusion_core.errors import ConfigError, ShapeError
from ...unifusion_core.flow.guidance import OFF_IS_ONE
from ...unifusion_core.flow.schedule import SCHEDULES, build_schedule
from ..sockets import Encoded
from .conditions import EMPTY, too_few_latents
from .host import AUTOMATIC
from .latents import Latent
from .model import hosted, pool

# seeds of ComfyUI's samplers are below it
SEED_LIMIT = 2**64
# "automatic" is the model's default schedule, which stock KSampler's "simple" also gives
SCHEDULE_NAMES = (AUTOMATIC, *SCHEDULES)
# whose noise the images of a batch have: that of one seed, or each that of its own
BatchSeeds = Literal["one for all", "counted up"]


def fitting_latent(model: Any, latent: Latent) -> Tensor:
    """The latent's samples (B C h w); an empty latent gets the channels and scale of the model's format."""
    return comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )


def sigmas_for(model: Any, latent: Latent, steps: int, name: str, denoise: float = 1.0) -> Tensor:
    """The sigmas of a schedule for `latent`: `steps` + 1 values to 0, from 1, or from later in a longer schedule if `denoise` is
    below 1, as KSampler does. Raises ConfigError for a model of another kind."""
    config = hosted(model).model_config
    patch = config.unifusion.dit.patch_size
    name = config.spec.default_sampling.schedule if name == AUTOMATIC else name
    height, width = fitting_latent(model, latent).shape[-2:]
    if denoise <= 0:
        return torch.empty(0)
    whole = build_schedule(name, int(steps / denoise), -(-height // patch) * -(-width // patch))
    return whole[-(steps + 1) :]


class TextImageGuider(comfy.samplers.CFGGuider):
    """Separate guidance scales for text and images.

    negative + image_cfg (picture_only - negative) + cfg (positive - picture_only)

    `flow.guidance` has the same formula for velocities; it holds for predictions of the clean latents, too. Stock DualCFGGuider
    (regular) computes the same.
    """

    def __init__(self, model: Any, image_cfg: float) -> None:
        super().__init__(model)
        self.image_cfg = image_cfg

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None
    ) -> Tensor:
        options = model_options or {}
        conditions = [self.conds[name] for name in ("positive", "picture_only", "negative")]
        positive, images, negative = comfy.samplers.calc_cond_batch(
            self.inner_model, conditions, x, timestep, options
        )
        # ComfyUI's own function, so that guidance-patching nodes apply
        guided = comfy.samplers.cfg_function(
            self.inner_model,
            images,
            negative,
            self.image_cfg,
            x,
            timestep,
            model_options=options,
            cond=conditions[1],
            uncond=conditions[2],
        )
        return guided + self.cfg * (positive - images)


def _pooled(model: Any, condition: Any) -> Any:
    """A conditioning; features are pooled to one."""
    return pool(model, condition) if isinstance(condition, Encoded) else condition


def _empty_prompt(model: Any, positive: Any) -> Any:
    """The conditioning of the empty prompt, by the VLM that encoded `positive`. Raises ConfigError if it is unknown."""
    empty = next((rest[EMPTY] for _, rest in positive if EMPTY in rest), None)
    if empty is None:
        raise ConfigError(
            "Guidance needs a negative, and the positive does not say which VLM encoded it: connect the empty prompt to "
            "`negative`, or set cfg to 1."
        )
    return pool(model, empty.encoded())


def noise_of(samples: Tensor, seed: int, numbers: Sequence[int] | None, batch_seeds: BatchSeeds) -> Tensor:
    """Noise for a batch. `numbers`: which images of a larger batch these are; None = 0, 1, 2 ..."""
    if batch_seeds == "one for all":
        return comfy.sample.prepare_noise(samples, seed, numbers)
    numbers = range(len(samples)) if numbers is None else numbers
    return torch.cat(
        [comfy.sample.prepare_noise(samples[:1], (seed + number) % SEED_LIMIT) for number in numbers]
    )


def _for_prompts(latent: Latent, samples: Tensor, positive: Any) -> tuple[Tensor, Sequence[int] | None]:
    """The latent's samples and their numbers in a batch. A latent of one image is repeated for each prompt of the positive.

    Raises ShapeError for several images that are fewer than the prompts.
    """
    count, numbers = max((len(tokens) for tokens, _ in positive), default=1), latent.get("batch_index")
    if len(samples) >= count:
        return samples, numbers
    if len(samples) > 1:
        raise ShapeError(too_few_latents(count, len(samples)))
    first = numbers[0] if numbers else 0
    return samples.repeat(count, *[1] * (samples.ndim - 1)), range(first, first + count)


def draw(
    model: Any,
    positive: Any,
    negative: Any,
    image_only: Any,
    latent: Latent,
    *,
    seed: int,
    sigmas: Tensor,
    cfg: float,
    image_cfg: float,
    batch_seeds: BatchSeeds = "one for all",
) -> Latent:
    """A latent sampled with Euler steps. With `image_only`, text and images have separate guidance scales. Conditions may be
    features, which are pooled here. Without `negative`, guidance leads away from the empty prompt.

    A latent of one image is repeated for each prompt of `positive`.

    Raises ConfigError for a model of another kind, or for guidance without a negative if the VLM behind `positive` is unknown;
    ShapeError for a latent or conditioning that the model does not take.
    """
    hosted(model)
    if cfg == 0 and image_only is None:
        raise ConfigError(f"{OFF_IS_ONE}.")
    positive, negative, image_only = (_pooled(model, each) for each in (positive, negative, image_only))
    if negative is None and (cfg != 1 or image_only is not None):
        negative = _empty_prompt(model, positive)
    guider = comfy.samplers.CFGGuider(model) if image_only is None else TextImageGuider(model, image_cfg)
    conditions = {"positive": positive, "picture_only": image_only, "negative": negative}
    guider.inner_set_conds({name: value for name, value in conditions.items() if value is not None})
    guider.set_cfg(cfg)
    samples, numbers = _for_prompts(latent, fitting_latent(model, latent), positive)
    sampled = guider.sample(
        noise_of(samples, seed, numbers, batch_seeds),
        samples,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    kept = {name: value for name, value in latent.items() if not name.startswith("downscale_ratio")}
    return kept | {"samples": sampled.to(mm.intermediate_device(), mm.intermediate_dtype())}
