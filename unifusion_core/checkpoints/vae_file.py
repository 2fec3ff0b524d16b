"""VAE files: the TAESD layout as one safetensors file, the Qwen-Image VAE as a folder of diffusers."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import zoo
from ..errors import CheckpointError
from ..models.autoencoder import Autoencoder
from ..models.qwen_image_vae import QwenImageAutoencoder, load_qwen_image_vae
from ..models.unifusion import UniFusionConfig
from .safetensors_file import read_tensors

AnyAutoencoder = Autoencoder | QwenImageAutoencoder


def load_vae(name: str | Path, device: torch.device | str = "cpu") -> AnyAutoencoder:
    """A VAE, frozen and in eval mode: "tiny" (the embedded one), a file in the TAESD layout, or a diffusers folder of the
    Qwen-Image VAE.

    Raises CheckpointError for anything else, and for files that are missing or damaged.
    """
    path = zoo.path_of(name, "vae")
    return load_qwen_image_vae(path, device) if path.is_dir() else load_autoencoder(path, device=device)


def check_decodes(autoencoder: AnyAutoencoder, config: UniFusionConfig) -> None:
    """Raises CheckpointError if the VAE's channels or latent format are not those of the generator."""
    channels, latent_format = config.dit.latent_channels, config.latent_format
    if (channels, latent_format) != (autoencoder.latent_channels, autoencoder.latent_format):
        hint = zoo.spec_for(config).vae_hint
        raise CheckpointError(
            f'This VAE decodes {autoencoder.latent_channels} channels of the format "{autoencoder.latent_format}", '
            f'the generator produces {channels} of "{latent_format}": choose its own VAE (--vae; {hint}).'
        )


def load_autoencoder(path: Path, *, device: torch.device | str = "cpu") -> Autoencoder:
    """A VAE in the TAESD layout, in float32, frozen and in eval mode. Raises CheckpointError for anything else."""
    tensors, _ = read_tensors(path)
    first = tensors.get("taesd_decoder.1.weight")
    if first is None or first.ndim != 4:
        raise CheckpointError(
            f"{path.name} is not an autoencoder in the TAESD layout (taesd_decoder.1.weight is missing): choose such a VAE"
        )
    model = Autoencoder(first.shape[1])
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != given:
        odd = sorted(k for k in expected.keys() | given.keys() if expected.get(k) != given.get(k))
        raise CheckpointError(
            f"{path.name} does not fit the TAESD layout, for example at {odd[:3]}: choose another VAE"
        )
    model.load_state_dict({k: v.float() for k, v in tensors.items()})
    return model.to(device).eval().requires_grad_(False)
