"""What a training step needs, found by running it on tensors without content: memory and floating-point operations.

The step is the trainer's own, so that nothing has to be counted by hand, and a model of any size can be tried on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..contracts import Features
from ..live_bytes import LiveBytes
from ..models.autoencoder import DOWNSCALE
from ..models.layers import LayerFactory
from ..models.unifusion import UniFusion, UniFusionConfig
from .config import TrainConfig
from .loop import DTYPES
from .objective import FlowBatch, FlowMatching
from .trainer import build_optimizer, choose_trained


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """What one process needs, in bytes, and what it computes.

    trained, frozen   numbers of the generator's parameters
    weights           of generator and VLM
    gradients         of the trained parameters
    optimizer         its state
    average           the averaged weights
    activations       the rest of the peak
    flops             of a pass of `batch_size` samples: forward, backward, and what checkpointing computes again
    """

    trained: int
    frozen: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    flops: int

    @property
    def memory(self) -> int:
        """The peak of an unsharded process."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def estimate_step(
    config: TrainConfig,
    generator: UniFusionConfig,
    *,
    vlm_bytes: int,
    condition_tokens: int,
    size: tuple[int, int],
) -> StepEstimate:
    """A step of `config.batch_size` samples with `condition_tokens` tokens each and targets of `size` (width, height) pixels.

    Raises ConfigError as `build_optimizer` does.
    """
    dtype = DTYPES[config.precision] if config.mode in ("lora", "connector") else torch.float32
    model = UniFusion(generator, LayerFactory(device="meta", dtype=dtype))
    choose_trained(model, config)
    mode = FakeTensorMode()
    _place(model, mode)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    # rounded weights have a scale for each output
    weights = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    gradients = sum(p.nbytes for p in trained)
    objective = FlowMatching(model, checkpointing=config.checkpointing)
    with mode:
        batch = _batch(config, generator, condition_tokens, size)
        optimizer = build_optimizer(config, model)
        with _Answer(), LiveBytes() as live:
            # the first step makes the optimiser's state, the second is like all others
            _step(objective, batch, config)
            optimizer.step()
            optimizer.zero_grad()
            state = live.peak = live.now
            _step(objective, batch, config)
            optimizer.step()
            peak = live.peak
            optimizer.zero_grad()
        # apart, since the counter keeps what it has seen
        counter = FlopCounterMode(display=False)
        with _Answer(), counter:
            _step(objective, batch, config)
    return StepEstimate(
        trained=sum(p.numel() for p in trained),
        frozen=frozen,
        weights=weights + vlm_bytes,
        gradients=gradients,
        optimizer=state,
        average=gradients if config.ema else 0,
        activations=peak - state - gradients,
        flops=counter.get_total_flops(),
    )


def sharded_memory(estimate: StepEstimate, vlm_bytes: int, largest_block: int, processes: int) -> int:
    """The peak of one of several processes that divide generator, gradients, optimiser and average (FSDP2). Two blocks are whole
    at a time: that which computes, and the next."""
    divided = estimate.weights - vlm_bytes + estimate.gradients + estimate.optimizer + estimate.average
    return vlm_bytes + -(-divided // processes) + 2 * largest_block + estimate.activations


def largest_block(generator: UniFusionConfig, dtype: torch.dtype) -> int:
    """Bytes of the largest block of a generator."""
    model = UniFusion(generator, LayerFactory(device="meta", dtype=dtype))
    blocks = (*model.dit_blocks, *model.txtfusion.layerwise_blocks, *model.txtfusion.refiner_blocks)
    return max(sum(p.nbytes for p in block.parameters()) for block in blocks)


def _step(objective: FlowMatching, batch: FlowBatch, config: TrainConfig) -> None:
    dtype = DTYPES[config.precision]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = objective.losses(batch).mean()
    loss.backward()


def _batch(config: TrainConfig, generator: UniFusionConfig, tokens: int, size: tuple[int, int]) -> FlowBatch:
    count, vlm, channels = config.batch_size, generator.vlm, generator.dit.latent_channels
    height, width = size[1] // DOWNSCALE, size[0] // DOWNSCALE
    features = Features(
        states=torch.zeros(count, tokens, len(vlm.taps), vlm.hidden_size),
        mask=torch.ones(count, tokens, dtype=torch.bool),
        positions=torch.zeros(count, tokens, 3),
    )
    return FlowBatch(
        features=features,
        latents=torch.zeros(count, channels, height, width),
        noise=torch.zeros(count, config.noises, channels, height, width),
        t=torch.zeros(count, config.noises),
    )


def _place(model: nn.Module, mode: FakeTensorMode) -> None:
    """Parameters of the meta device become those of a CPU that computes nothing, so that autocast applies to them."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = FakeTensor(mode, parameter.detach(), torch.device("cpu"))
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer, torch.device("cpu"))


class _Answer(TorchDispatchMode):
    """Gives 1 where code asks for the value of a tensor: masks are whole, and the optimiser counts its first step."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))
