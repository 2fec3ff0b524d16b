"""Every run of this repository as a function: what is trained, on what, how long. `unifusion train NAME` runs it."""

from __future__ import annotations

from collections.abc import Callable

from .autoencoder import AutoencoderTask
from .loop import LoopConfig, Task
from .vlm import VLMTask

Recipe = tuple[Task, LoopConfig]


def tiny_vae() -> Recipe:
    """The embedded autoencoder. Small crops and small batches: on two cores steps are the scarce thing."""
    config = LoopConfig(
        num_steps=4200,
        batch_size=4,
        learning_rate=1e-3,
        muon_learning_rate=0.004,
        decay_steps=2200,
        evaluate_every=500,
        checkpoint_every=250,
        ema_decay=0.998,
    )
    return AutoencoderTask(seed=1, crop=48), config


def tiny_vlm() -> Recipe:
    """The embedded VLM, all tasks from the first step."""
    config = LoopConfig(num_steps=12000, batch_size=16, decay_steps=3000, evaluate_every=1000, checkpoint_every=250)
    mix = {"rewrite": 0.45, "describe": 0.25, "edit": 0.2, "reference": 0.1}
    return VLMTask(seed=1, batch_size=config.batch_size, mix=mix), config


RECIPES: dict[str, Callable[[], Recipe]] = {"tiny-vae": tiny_vae, "tiny-vlm": tiny_vlm}
