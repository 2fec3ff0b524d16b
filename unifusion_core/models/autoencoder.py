"""The small autoencoder with 16 latent channels, in the layout of TAESD (github.com/madebyollin/taesd).

Layers, parameter paths and the tanh clamp before decoding are TAESD's, so that ComfyUI's stock VAELoader, VAEEncode and VAEDecode
run the file. The weights are trained from scratch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTH = 64
LATENT_CHANNELS = 16
# pixels per latent cell and axis
DOWNSCALE = 8
# the decoder squashes latents into +-LATENT_LIMIT
LATENT_LIMIT = 3.0


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class ResidualBlock(nn.Module):
    """Three convolutions with a skip connection, at any resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH)
        )

    def forward(self, x: Float[Tensor, "B width rows columns"]) -> Float[Tensor, "B width rows columns"]:
        """relu(convolutions of `x` + `x`); width = `WIDTH`."""
        return torch.relu(self.conv(x) + x)


class LatentClamp(nn.Module):
    """Squashes latents smoothly into +-LATENT_LIMIT."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """The squashed latents; small values are nearly unchanged."""
        return torch.tanh(x / LATENT_LIMIT) * LATENT_LIMIT


def _blocks(count: int) -> list[nn.Module]:
    return [ResidualBlock() for _ in range(count)]


class Autoencoder(nn.Module):
    """Encodes RGB images in 0..1 to latents, eight pixels per cell and axis, and decodes latents to images."""

    latent_format = "unifusion-tiny"

    def __init__(self, latent_channels: int = LATENT_CHANNELS) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        down = [_conv(3, WIDTH), *_blocks(1)]
        for _ in range(3):
            down += [_conv(WIDTH, WIDTH, stride=2, bias=False), *_blocks(3)]
        self.taesd_encoder = nn.Sequential(*down, _conv(WIDTH, latent_channels))
        up: list[nn.Module] = [LatentClamp(), _conv(latent_channels, WIDTH), nn.ReLU()]
        for _ in range(3):
            up += [*_blocks(3), nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
        self.taesd_decoder = nn.Sequential(*up, *_blocks(1), _conv(WIDTH, 3))
        # part of ComfyUI's layout; 1 and 0 in this repository's files
        self.vae_scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.vae_shift = nn.Parameter(torch.zeros(()), requires_grad=False)

    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Latents of RGB images in 0..1 whose sides are multiples of 8."""
        return self.taesd_encoder(pixels) / self.vae_scale + self.vae_shift

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """RGB images, not clamped to 0..1, so that a training loss acts on values outside."""
        return self.taesd_decoder((latents - self.vae_shift) * self.vae_scale)
