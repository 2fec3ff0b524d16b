"""Latents for edits of an image: empty ones in its size, and its own, in which a mask limits what is drawn."""

from __future__ import annotations

import logging
from typing import Any, Literal, get_args

import comfy.model_management as mm
import torch
from torch import Tensor

from ...unifusion_core.errors import ConfigError, ShapeError
from ...unifusion_core.images import size_for_image
from ...unifusion_core.models.autoencoder import DOWNSCALE, LATENT_CHANNELS
from ...unifusion_core.vlm.tiling import resize
from .host import warn_once

logger = logging.getLogger(__name__)

Latent = dict[str, Any]
SizePolicy = Literal["own size", "at most max_megapixels"]
SIZE_POLICIES: tuple[SizePolicy, ...] = get_args(SizePolicy)


def latent_from_reference(
    images: Tensor,
    policy: SizePolicy,
    max_megapixels: float,
    vae: Any = None,
    mask: Tensor | None = None,
) -> tuple[Latent, int, int]:
    """A latent, its width and its height in pixels, in the size of the images (B H W C): empty and for the first image alone, or
    with a `vae` the images' own. A `mask` (B H W, 1 = drawn anew) limits what a sampler draws.

    Raises ShapeError for a size that the model cannot generate or a mask of another shape, ConfigError for a mask without a VAE.
    """
    max_pixels = None if policy == "own size" else max_megapixels * 1e6
    latent, (width, height) = empty_latent_for(images[0].movedim(-1, 0), max_pixels)
    if vae is None and mask is not None:
        raise ConfigError(
            "The mask limits the edit, and what it leaves alone is the image's own latent, which needs a VAE: connect one to "
            "`vae`, or disconnect the mask."
        )
    if vae is not None:
        scaled = [resize(image.movedim(-1, 0), height, width).movedim(0, -1) for image in images]
        # one at a time: to a VAE that also knows videos a batch is the frames of one
        latent = {"samples": torch.cat([vae.encode(image[None, ..., :3]) for image in scaled])}
    if mask is not None:
        latent["noise_mask"] = _region(mask, images)
    return latent, width, height


def _region(mask: Tensor, images: Tensor) -> Tensor:
    """The noise mask (B 1 H W) that stock Set Latent Noise Mask makes. Raises ShapeError for a mask of another shape."""
    (height, width), (mask_height, mask_width) = images.shape[1:3], mask.shape[-2:]
    if abs(width * mask_height - height * mask_width) > DOWNSCALE * max(width, height):
        raise ShapeError(
            f"The mask is {mask_width}x{mask_height} and the image {width}x{height}: give a mask of the image's shape. (Load "
            "Image gives an empty one of 64x64 for an image without a mask.)"
        )
    if not mask.any():
        warn_once("The mask covers nothing, so the image stays as it is: paint what may change.")
    return mask.reshape(-1, 1, mask_height, mask_width)


def empty_latent_for(image: Tensor, max_pixels: float | None = None) -> tuple[Latent, tuple[int, int]]:
    """An empty latent in the size of an image (C H W), and that size (width, height). ComfyUI fits its channels when sampling
    starts. Raises ShapeError for a size that the model cannot generate."""
    width, height = size_for_image(image, max_pixels)
    given = (image.shape[2], image.shape[1])
    if given != (width, height):
        logger.warning(
            "UniFusion: the image is %d x %d and the latent %d x %d, so outlines may shift by a few pixels. Crop or scale the "
            "image to the latent's size to avoid it.", *given, width, height
        )  # fmt: skip
    samples = torch.zeros(
        1, LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE, device=mm.intermediate_device()
    )
    return {"samples": samples, "downscale_ratio_spacial": DOWNSCALE}, (width, height)
