"""The training objective as one module whose `forward` is the loss, so that hooks of DDP, FSDP and compile see everything."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..contracts import Features
from ..flow.path import interpolate, velocity
from ..models.unifusion import UniFusion

# edges of the quarters of time in which the loss is logged
TIME_EDGES = (0.25, 0.5, 0.75)
QUARTERS = ("0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")


@dataclass(frozen=True, kw_only=True)
class FlowBatch:
    """What one pass learns from.

    features   the condition, as the pipeline encodes it
    latents    of the target images
    noise, t   n points on the path for each image; drawn outside, because wrapped modules cast the arguments of `forward`
    weights    of each latent cell in the loss, or None
    """

    features: Features
    latents: Float[Tensor, "B C h w"]
    noise: Float[Tensor, "B n C h w"]
    t: Float[Tensor, "B n"]
    weights: Float[Tensor, "B 1 h w"] | None = None

    def to(self, device: torch.device, **_: Any) -> FlowBatch:
        """The batch on another device; accelerate calls it."""
        return FlowBatch(
            features=self.features.to(device),
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            t=self.t.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )


class FlowMatching(nn.Module):
    """Squared error of the velocity that LAP, refiner and DiT predict (arXiv 2510.12789, section on training; 2209.03003)."""

    def __init__(self, unifusion: UniFusion, *, checkpointing: bool = False) -> None:
        """`checkpointing`: recompute the activations of all blocks in the backward pass."""
        super().__init__()
        self.unifusion, self.checkpointing = unifusion, checkpointing
        if checkpointing:
            # inside the blocks, so that hooks of FSDP are outside and gather weights for the recomputation, too
            for block in unifusion.dit_blocks:
                _checkpoint(block, "forward")
                _checkpoint(block, "with_keys_values")
            for block in (*unifusion.txtfusion.layerwise_blocks, *unifusion.txtfusion.refiner_blocks):
                _checkpoint(block, "forward")

    def forward(self, batch: FlowBatch, number: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of the batch, and its values in each quarter of time. `number` belongs to the loop's interface."""
        # recomputed activations are computed outside of this choice, and must find the kernel of the first time
        with nullcontext() if self.checkpointing else attention_for_training(batch.latents.device):
            losses = self.losses(batch)
        return losses.mean(), loss_by_time(losses.detach(), batch.t)

    def losses(self, batch: FlowBatch) -> Float[Tensor, "B n"]:
        """The loss of each point on the path: the mean over the latent cells."""
        patch = self.unifusion.config.dit.patch_size
        grid = (batch.latents.shape[-2] // patch, batch.latents.shape[-1] // patch)
        condition = self.unifusion.prepare(self.unifusion.pool(batch.features), grid)
        points = batch.t.shape[1]
        latents = batch.latents.repeat_interleave(points, 0)
        noise, t = batch.noise.flatten(0, 1), batch.t.flatten()
        predicted = self.unifusion(interpolate(latents, noise, t), t, condition.repeat(points))
        error = (predicted.float() - velocity(latents, noise)).square()
        if batch.weights is not None:
            # a crop may have left nothing of a mask
            weights = batch.weights / batch.weights.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
            error = error * weights.repeat_interleave(points, 0)
        return error.mean((1, 2, 3)).unflatten(0, (-1, points))


def attention_for_training(device: torch.device) -> AbstractContextManager[object]:
    """The choice of attention's kernels in a pass with gradients: torch's own, but not the fused one in 16 bits on a CPU, whose
    backward pass takes four times as long as in 32 bits."""
    sixteen_bits_on_cpu = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return sdpa_kernel(SDPBackend.MATH) if sixteen_bits_on_cpu else nullcontext()


def loss_by_time(losses: Float[Tensor, "B n"], times: Float[Tensor, "B n"]) -> dict[str, Tensor]:
    """The losses in each quarter of time that has some."""
    quarter = torch.bucketize(times.flatten(), times.new_tensor(TIME_EDGES))
    # one comparison of numbers outside of the device for all quarters
    present = set(quarter.tolist())
    return {
        f"loss_t_{name}": losses.flatten()[quarter == index]
        for index, name in enumerate(QUARTERS)
        if index in present
    }


def _checkpoint(block: nn.Module, method: str) -> None:
    """Makes a method keep its inputs alone for the backward pass."""
    setattr(block, method, partial(checkpoint, getattr(block, method), use_reentrant=False))
