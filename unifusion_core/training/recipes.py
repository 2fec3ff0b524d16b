"""Every run of this repository as a function: what is trained, on what, how long. `unifusion train NAME` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..checkpoint import load_autoencoder
from ..embedded import VAE, VLM
from ..models.unifusion import UniFusionConfig
from ..presets import TINY
from ..vlm.backbone import load_vlm
from .autoencoder import AutoencoderTask
from .generator import GeneratorTask
from .loop import LoopConfig, Task
from .vlm import VLMTask

Recipe = tuple[Task, LoopConfig]


AUTOENCODER_LOOP = LoopConfig(
    num_steps=4200,
    batch_size=4,
    learning_rate=1e-3,
    muon_learning_rate=0.004,
    decay_steps=2200,
    evaluate_every=500,
    checkpoint_every=250,
    ema_decay=0.998,
)


def tiny_vae() -> Recipe:
    """The embedded autoencoder. Small crops and small batches: on two cores steps are the scarce thing."""
    return AutoencoderTask(seed=1, crop=48), AUTOENCODER_LOOP


def tiny_vae_decoder() -> Recipe:
    """Sharpen the embedded autoencoder's decoder; the latents stay as they are."""
    task = AutoencoderTask(seed=2, crop=48, start=VAE, decoder_only=True)
    return task, replace(AUTOENCODER_LOOP, num_steps=6000, decay_steps=3000)


def tiny_vlm() -> Recipe:
    """The embedded VLM. Once it read pictures (after 6000 steps), rewrites and references got a larger share of the mix."""
    config = LoopConfig(
        num_steps=9500,
        batch_size=16,
        learning_rate=1e-3,
        muon_learning_rate=0.005,
        weight_decay=0.1,
        decay_steps=2500,
        evaluate_every=1000,
        checkpoint_every=250,
    )
    mix = {"rewrite": 0.5, "describe": 0.08, "edit": 0.24, "reference": 0.18}
    tokenizer = Path("runs/tiny-vlm/tokenizer")
    return VLMTask(seed=1, batch_size=config.batch_size, mix=mix, tokenizer=tokenizer), config


def tiny() -> Recipe:
    """The embedded generator, on the embedded VLM and VAE: train those first, and put them into the package."""
    return _generator(TINY, num_steps=4200, decay_steps=1300)


def tiny_short() -> Recipe:
    """`tiny` on a small budget (about 20k samples): what the two below are compared with."""
    return _generator(TINY, num_steps=560, decay_steps=200)


def tiny_short_joint() -> Recipe:
    """Conditions and latents attend to each other, as in the paper's drawing and in Krea 2."""
    return _generator(replace(TINY, condition_attention="joint"), num_steps=560, decay_steps=200)


def tiny_short_last_layer() -> Recipe:
    """One VLM layer, the last that is tapped, instead of five: what most models read."""
    vlm = replace(TINY.vlm, taps=TINY.vlm.taps[-1:])
    return _generator(replace(TINY, vlm=vlm), num_steps=560, decay_steps=200)


def _generator(config: UniFusionConfig, *, num_steps: int, decay_steps: int) -> Recipe:
    loop = LoopConfig(
        num_steps=num_steps,
        batch_size=12,
        learning_rate=1e-3,
        muon_learning_rate=0.005,
        decay_steps=decay_steps,
        ema_decay=0.998,
        evaluate_every=500,
        checkpoint_every=250,
    )
    task = GeneratorTask(
        seed=1,
        batch_size=loop.batch_size,
        config=config,
        backbone=load_vlm(VLM),
        autoencoder=load_autoencoder(VAE),
        pool_path=Path("runs/latents.safetensors"),
        pool_size=3000,
        time_mean=1.0,
    )
    return task, loop


RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny-vae": tiny_vae,
    "tiny-vae-decoder": tiny_vae_decoder,
    "tiny-vlm": tiny_vlm,
    "tiny": tiny,
    "tiny-short": tiny_short,
    "tiny-short-joint": tiny_short_joint,
    "tiny-short-last-layer": tiny_short_last_layer,
}
