"""`unifusion train --dry-run`: checks a configuration with its data, and says what training it would take."""

from __future__ import annotations

from collections.abc import Callable

from accelerate import Accelerator

from .config import TrainConfig
from .trainer import Run, build_optimizer, start_optimizer


def dry_run(config: TrainConfig, say: Callable[[str], None] = print) -> None:
    """Loads the models, scans the data and prints sizes; fills no cache and trains nothing.

    Raises what a run of the configuration would raise before its first step.
    """
    run = Run(config, Accelerator(cpu=True), say)
    lines = [*run.data.report.lines(), *run.data.describe_caches()]
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.model.parameters() if not p.requires_grad)
    vlm = sum(p.numel() for p in run.pipeline.backbone.parameters())
    lines += [
        f"trained   {trained / 1e6:.2f} M parameters of the generator; {frozen / 1e6:.2f} M are frozen",
        f"VLM       {vlm / 1e6:.2f} M parameters, frozen",
        f"memory    {memory(run) / 1e6:.1f} MB for weights, gradients, optimiser and average, without activations",
        f"steps     {config.steps} of {run.samples_per_process} samples per process; "
        f"{config.steps * run.samples_per_process / run.data.report.usable:.1f} epochs in one process",
    ]
    say("\n".join(lines))


def memory(run: Run) -> int:
    """Bytes of all that stays between the steps of an unsharded run."""
    optimizer = build_optimizer(run.config, run.model)
    start_optimizer(optimizer)
    states = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if hasattr(value, "nbytes")
    )
    weights = sum(p.nbytes for p in run.model.parameters())
    weights += sum(p.nbytes for p in run.pipeline.backbone.parameters())
    trained = sum(p.nbytes for p in run.model.parameters() if p.requires_grad)
    return weights + trained + states + (trained if run.config.ema else 0)
