"""The training objective as one module whose `forward` is the loss, so that hooks of DDP, FSDP and compile see everything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Features
from ..flow.path import interpolate, velocity
from ..models.unifusion import UniFusion


@dataclass(frozen=True, kw_only=True)
class FlowBatch:
    """What one pass learns from.

    features   the condition, as the pipeline encodes it
    latents    of the target images
    noise, t   the points on the path; drawn outside, because wrapped modules cast the arguments of `forward`
    weights    of each latent cell in the loss, or None
    """

    features: Features
    latents: Float[Tensor, "B C h w"]
    noise: Float[Tensor, "B C h w"]
    t: Float[Tensor, " B"]
    weights: Float[Tensor, "B 1 h w"] | None = None

    def to(self, device: torch.device) -> FlowBatch:
        """The batch on another device."""
        return FlowBatch(
            features=self.features.to(device),
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            t=self.t.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )


class FlowMatching(nn.Module):
    """Squared error of the velocity that LAP, refiner and DiT predict (arXiv 2510.12789, section on training; 2209.03003)."""

    def __init__(self, unifusion: UniFusion) -> None:
        super().__init__()
        self.unifusion = unifusion

    def forward(self, batch: FlowBatch) -> Float[Tensor, " B"]:
        """The loss of each sample: the mean over its latent cells."""
        patch = self.unifusion.config.dit.patch_size
        grid = (batch.latents.shape[-2] // patch, batch.latents.shape[-1] // patch)
        condition = self.unifusion.prepare(self.unifusion.pool(batch.features), grid)
        predicted = self.unifusion(interpolate(batch.latents, batch.noise, batch.t), batch.t, condition)
        error = (predicted.float() - velocity(batch.latents, batch.noise)).square()
        if batch.weights is None:
            return error.mean((1, 2, 3))
        return (error * batch.weights).mean((1, 2, 3)) / batch.weights.mean((1, 2, 3))
