"""`unifusion train --dry-run`: checks a configuration with its data, and says what training it would take.

Generator and VLM are not loaded: their files' headers say enough.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..models.autoencoder import DOWNSCALE
from .config import TrainConfig
from .data import TrainingData
from .estimate import estimate_step, largest_block, sharded_memory
from .loop import DTYPES
from .trainer import build_pipeline, check_samples

# of an H100 in bfloat16, dense, and the share of it that trainings of such models reach
H100_FLOPS, REACHED = 989e12, 0.4
SECONDS_PER_DAY = 86_400


def dry_run(config: TrainConfig, say: Callable[[str], None] = print, *, gpus: int = 1) -> None:
    """Scans the data and prints sizes, memory per GPU and time on `gpus` of them; fills no cache and trains nothing.

    Raises what a run of the configuration would raise before its first step.
    """
    check_samples(config)
    pipeline = build_pipeline(config, "meta")
    data = TrainingData(config, pipeline)
    generator = pipeline.model.config
    # of the largest target and the longest condition
    side, tokens = max(config.resolution), data.longest_condition()
    size = (side, side)
    vlm = list(pipeline.backbone.parameters())
    vlm_bytes = sum(p.nbytes for p in vlm)
    # with cached states the VLM waits in main memory
    step = estimate_step(
        config,
        generator,
        vlm_bytes=0 if config.cache.states else vlm_bytes,
        condition_tokens=tokens,
        size=size,
    )
    per_step = config.batch_size * config.gradient_accumulation * gpus
    vlm_flops = 0 if config.cache.states else 2 * sum(p.numel() for p in vlm) * tokens
    flops = (step.flops / config.batch_size + vlm_flops) * per_step
    days = flops * config.steps / (gpus * H100_FLOPS * REACHED) / SECONDS_PER_DAY
    dtype = DTYPES[config.precision] if config.mode == "lora" else torch.float32
    latent_tokens = (side // DOWNSCALE // generator.dit.patch_size) ** 2
    parts = {
        "weights": step.weights,
        "gradients": step.gradients,
        "optimiser": step.optimizer,
        "average": step.average,
        "activations": step.activations,
    }
    lines = [
        *data.report.lines(),
        *data.describe_caches(),
        f"trained   {step.trained / 1e6:.2f} M parameters of the generator; {step.frozen / 1e6:.2f} M are frozen",
        f"VLM       {sum(p.numel() for p in vlm) / 1e6:.2f} M parameters, frozen",
        f"tokens    {tokens} of the condition and {latent_tokens} of the latents per sample, at {side} x {side} pixels",
        f"memory    {_size(step.memory)} on each GPU: {', '.join(f'{name} {_size(n)}' for name, n in parts.items())}",
    ]
    if config.shard:
        sharded = sharded_memory(
            step, 0 if config.cache.states else vlm_bytes, largest_block(generator, dtype), gpus
        )
        lines.append(f"sharded   {_size(sharded)} on each of {gpus} GPUs")
    lines += [
        f"steps     {config.steps} of {per_step} samples on {gpus} GPUs; "
        f"{config.steps * per_step / data.report.usable:.1f} epochs",
        f"time      {flops / 1e12:.4g} TFLOP per step; about {days:.3g} days on {gpus} H100s at {REACHED:.0%} of their peak",
    ]
    say("\n".join(lines))


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
