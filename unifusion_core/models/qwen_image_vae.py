"""The Qwen-Image VAE, which decodes Krea 2's latents, as implemented in diffusers.

ComfyUI does not need it: its stock VAELoader opens the same weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import CheckpointError

CLASS_NAME = "AutoencoderKLQwenImage"


class QwenImageAutoencoder(nn.Module):
    """Between RGB images in 0..1 and normalised latents (mean 0, standard deviation 1 per channel)."""

    latent_format = "qwen-image"

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.latent_channels: int = vae.config.z_dim

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """RGB images, eight pixels per cell and axis, not clamped to 0..1."""
        mean, std = self._statistics(latents)
        # a video of one frame
        video = (latents * std + mean)[:, :, None]
        return self.vae.decode(video).sample[:, :, 0] / 2 + 0.5

    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The mean of the latents' distribution, for RGB images in 0..1 whose sides are multiples of 8."""
        latents = self.vae.encode((2 * pixels - 1)[:, :, None]).latent_dist.mode()[:, :, 0]
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, 1 C 1 1."""
        mean, std = self.vae.config.latents_mean, self.vae.config.latents_std
        return latents.new_tensor(mean).view(1, -1, 1, 1), latents.new_tensor(std).view(1, -1, 1, 1)


def load_qwen_image_vae(folder: Path, device: torch.device | str = "cpu") -> QwenImageAutoencoder:
    """The VAE in a folder of diffusers' layout (`vae/` in the repositories of Qwen-Image and Krea 2), frozen and in eval mode.

    Raises CheckpointError if the folder is not such a VAE, a file is missing or damaged, diffusers is not installed or there is
    not enough memory.
    """
    config = folder / "config.json"
    try:
        name = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not a VAE folder of diffusers (config.json names no class): give the folder vae/ of Qwen-Image"
        ) from error
    if name != CLASS_NAME:
        raise CheckpointError(
            f"{folder} has a {name} and {CLASS_NAME} is needed: give the folder vae/ of Qwen-Image"
        )
    try:
        from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (  # noqa: PLC0415  (optional)
            AutoencoderKLQwenImage,
        )
    except ImportError as error:
        raise CheckpointError(
            'the Qwen-Image VAE needs the package diffusers: pip install "unifusion[krea]", or use ComfyUI'
        ) from error
    try:
        vae = AutoencoderKLQwenImage.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        if re.search("allocate memory|out of memory", str(error)):
            raise CheckpointError(
                f"the VAE in {folder} needs more memory than is available ({error}): close other programs"
            ) from error
        raise CheckpointError(
            f"the weights in {folder} are missing, damaged or of another size ({error}): copy the files again"
        ) from error
    return QwenImageAutoencoder(vae).to(device).eval().requires_grad_(False)
