"""From noise to latents: the library's own denoising loop. ComfyUI's stock samplers do the same with the pack's MODEL."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .contracts import GENERATOR_REMEDY, Conditioning, check_finite
from .errors import ShapeError
from .flow.guidance import guide
from .flow.path import clean_from_velocity, interpolate
from .flow.solver import SolverName, find_solver
from .models.autoencoder import DOWNSCALE
from .models.unifusion import PreparedCondition, UniFusion

# (steps done, number of steps, predicted clean latents); an exception ends the sampling
OnStep = Callable[[int, int, Tensor], None]


def make_noise(
    seeds: list[int], channels: int, height: int, width: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "B C h w"]:
    """Standard normal noise, one seed per image, for latents of `height` x `width` cells.

    Drawn on the CPU, so that an image depends neither on its neighbours in the batch nor on the device.
    """
    shape = (channels, height, width)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(device)


@torch.no_grad()
def sample(
    model: UniFusion,
    positive: Conditioning | PreparedCondition,
    noise: Float[Tensor, "B C h w"],
    schedule: Float[Tensor, " times"],
    *,
    negative: Conditioning | PreparedCondition | None = None,
    cfg: float = 1.0,
    image_only: Conditioning | PreparedCondition | None = None,
    image_cfg: float = 1.0,
    solver: SolverName = "euler",
    start: Float[Tensor, "B C h w"] | None = None,
    mask: Float[Tensor, "B 1 h w"] | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C h w"]:
    """Clean latents in float32. The model computes in the type of `noise`.

    positive, negative, image_only   conditions for the request, the empty prompt, and the images without a prompt; each has one
                                     row, shared by all latents, or one per latent
    schedule                         falling times from 1 to 0 (`flow.schedule.build_schedule`)
    cfg, image_cfg                   guidance scales (`flow.guidance.guide`). At cfg 1 without `image_only` there is no guidance,
                                     and `negative` is not used
    start                            clean latents of an image to start from, at the schedule's first time; None = noise alone
    mask                             0..1, 1 = generated; 0 = `start` stays
    on_step                          called after each step with its number from 1, the number of steps and the predicted clean
                                     latents

    Raises ShapeError if channels or batches do not fit, latents do not divide into patches, the noise is not finite or guidance
    has no `negative`, and for a mask without `start`; ConfigError for an unknown solver; NumericsError if a condition or the
    velocity is NaN or infinite.
    """
    patch = model.config.dit.patch_size
    height, width = noise.shape[-2:]
    if noise.shape[1] != model.config.dit.latent_channels:
        raise ShapeError(
            f"the latents have {noise.shape[1]} channels, this model generates {model.config.dit.latent_channels}: "
            "take the latents of its autoencoder"
        )
    if height % patch or width % patch:
        raise ShapeError(
            f"latents of {width} x {height} do not divide into patches of {patch}: pad them to a multiple"
        )
    if not torch.isfinite(noise).all():
        raise ShapeError("the latents hold values that are not finite numbers: check where they come from")
    grid = (height // patch, width // patch)

    def ready(condition: Conditioning | PreparedCondition) -> PreparedCondition:
        prepared = condition if isinstance(condition, PreparedCondition) else model.prepare(condition, grid)
        check_finite(prepared.conditioning.tokens, "Condition", GENERATOR_REMEDY)
        rows = len(prepared.conditioning.tokens)
        if rows not in (1, len(noise)):
            raise ShapeError(f"{rows} conditions for {len(noise)} latents: give one, or as many as latents")
        return prepared.repeat(len(noise)) if rows == 1 and len(noise) > 1 else prepared

    guided = cfg != 1 or image_only is not None
    if guided and negative is None:
        raise ShapeError(
            f"guidance (cfg {cfg:g}) needs a negative condition (the empty prompt): give one, or set cfg to 1 "
            "and leave image_only out"
        )
    main = ready(positive)
    other = ready(negative) if guided and negative is not None else None
    images = ready(image_only) if image_only is not None else None
    step = find_solver(solver)

    # The solver state stays in float32: bf16 accumulation silently degrades the image.
    dtype = noise.dtype
    exact = torch.promote_types(dtype, torch.float32)

    def velocity(x: Tensor, t: float) -> Tensor:
        time = x.new_full((len(x),), t)

        def call(condition: PreparedCondition) -> Tensor:
            return model(x.to(dtype), time, condition).to(exact)

        v = call(main)
        if other is None:
            return v
        only = None if images is None else call(images)
        return guide(v, call(other), cfg, only, image_cfg)

    if mask is not None and start is None:
        raise ShapeError("a mask says what of an image stays, and no image to start from is given: give one")
    x, times = noise.to(exact), schedule.tolist()
    kept = None if start is None else start.to(exact)

    def kept_at(t: float) -> Tensor:
        """The image to start from at time t, with its own noise."""
        assert kept is not None
        return interpolate(kept, noise.to(exact), noise.new_full((len(noise),), t, dtype=exact))

    if kept is not None:
        x = kept_at(times[0])
    for number, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True), start=1):
        before = x
        x, v = step(velocity, x, t, t_next)
        if mask is not None:
            x = mask * x + (1 - mask) * kept_at(t_next)
        check_finite(x, f"Latents after step {number} of {len(times) - 1}", GENERATOR_REMEDY)
        if on_step is not None:
            on_step(number, len(times) - 1, clean_from_velocity(before, v, t))
    return x


def work_of_step(model: UniFusion, size: tuple[int, int]) -> float:
    """The work of a sampling step at a size (width, height) in pixels, to compare sizes: multiplications in the DiT's blocks."""
    dit = model.config.dit
    weights = sum(p.numel() for p in model.blocks.parameters())
    tokens = size[0] * size[1] / (DOWNSCALE * dit.patch_size) ** 2
    # products with weights, and attention of every token to every other
    return tokens * (weights + 2 * tokens * dit.hidden_size * dit.num_blocks)
