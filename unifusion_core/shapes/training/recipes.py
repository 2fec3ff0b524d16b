"""Every run of this repository as a function: what is trained, on what, how long. `unifusion train NAME` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoints.vae_file import load_autoencoder
from ...models.unifusion import UniFusionConfig
from ...training.loop import LoopConfig, Task
from ...vlm.folder import load_vlm
from ...zoo.tiny import BUILT_IN, TINY
from .autoencoder import AutoencoderTask
from .generator import GeneratorTask
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


VLM_LOOP = LoopConfig(  # of runs that go on with the shipped BUILT_IN.vlm
    num_steps=1,  # each recipe says how many
    batch_size=16,
    learning_rate=7e-4,
    muon_learning_rate=0.004,
    weight_decay=0.1,
    ema_decay=0.998,
)
GENERATOR_LOOP = LoopConfig(  # of runs that go on with the shipped generator
    num_steps=1,  # each recipe says how many
    batch_size=8,
    learning_rate=1e-3,
    muon_learning_rate=0.005,
    weight_decay=0.05,
    ema_decay=0.998,
)


def tiny_vae() -> Recipe:
    """The embedded autoencoder. Small crops and small batches: on two cores steps are the scarce thing."""
    return AutoencoderTask(seed=1, crop=48), AUTOENCODER_LOOP


def tiny_vae_sharpen() -> Recipe:
    """Go on with encoder and decoder on crops around objects, with more noise on the latents: what the generator draws is never
    exact, and the fewer latents the shape of an outline hangs on, the more its errors blur it."""
    task = AutoencoderTask(seed=3, crop=40, start=BUILT_IN.vae, latent_noise=0.3, object_share=0.85)
    return task, replace(
        AUTOENCODER_LOOP,
        num_steps=2100,
        batch_size=6,
        muon_learning_rate=0.003,
        learning_rate=7e-4,
        decay_steps=700,
    )


def tiny_vae_colors() -> Recipe:
    """Go on with encoder and decoder on colours between the named ones, so that colour is a continuum in the latents."""
    task = AutoencoderTask(
        seed=4, crop=40, start=BUILT_IN.vae, latent_noise=0.3, object_share=0.85, free_color_share=0.6
    )
    return task, replace(
        AUTOENCODER_LOOP,
        num_steps=2200,
        batch_size=6,
        muon_learning_rate=0.004,
        learning_rate=1e-3,
        decay_steps=900,
    )


def tiny_vae_decoder() -> Recipe:
    """Sharpen the embedded autoencoder's decoder; the latents stay as they are."""
    task = AutoencoderTask(seed=2, crop=48, start=BUILT_IN.vae, decoder_only=True)
    return task, replace(AUTOENCODER_LOOP, num_steps=6000, decay_steps=3000)


def tiny_vae_outlines() -> Recipe:
    """Go on with the decoder alone, on the two sizes whose shapes have the fewest latents."""
    task = AutoencoderTask(
        seed=5,
        crop=40,
        start=BUILT_IN.vae,
        latent_noise=0.3,
        object_share=0.9,
        free_color_share=0.3,
        size_shares=(0.2, 0.4, 0.4),
        decoder_only=True,
    )
    return task, replace(
        AUTOENCODER_LOOP,
        num_steps=5000,
        batch_size=6,
        muon_learning_rate=0.004,
        decay_steps=2000,
        evaluate_every=1000,
    )


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


def tiny_vlm_edits() -> Recipe:
    """Go on with the embedded VLM: mostly instructions about pictures, which need the most steps. What an instruction means is
    the same at every number of tiles, so most of them are learned from thumbnails alone."""
    config = replace(VLM_LOOP, num_steps=3600, decay_steps=1700, evaluate_every=600, checkpoint_every=300)
    task = VLMTask(
        seed=2,
        batch_size=config.batch_size,
        mix={"rewrite": 0.2, "describe": 0.04, "edit": 0.42, "reference": 0.34},
        tokenizer=BUILT_IN.vlm,
        cell_weight=0.1,
        meant_weight=0.1,
        edit_shares={
            "remove": 3,
            "recolor": 2,
            "move": 2,
            "reshape": 1.5,
            "add": 0.5,
            "background": 0.5,
            "object_into": 2,
        },
        tile_shares=(0.8, 0.1, 0.1),
        start=BUILT_IN.vlm,
    )
    return task, config


def tiny_vlm_looks() -> Recipe:
    """Go on with the embedded VLM: looks, whose order of objects tells nothing about their places, so that places are read off
    the picture; and styles."""
    config = replace(VLM_LOOP, num_steps=6500, decay_steps=2000, evaluate_every=500, checkpoint_every=250)
    task = VLMTask(
        seed=3,
        batch_size=config.batch_size,
        mix={"rewrite": 0.25, "describe": 0.02, "edit": 0.33, "reference": 0.22, "look": 0.18},
        tokenizer=BUILT_IN.vlm,
        cell_weight=0.1,
        meant_weight=0.1,
        rewrite_shares={"full": 2, "terse": 2, "relation": 6, "count": 1, "indirect": 3, "caption": 0.5},
        edit_shares={
            "remove": 2.5,
            "recolor": 1.5,
            "move": 2,
            "reshape": 1.5,
            "add": 0.5,
            "background": 0.3,
            "in_order": 2,
        },
        tile_shares=(0.8, 0.1, 0.1),
        style_share=0.12,
        start=BUILT_IN.vlm,
    )
    return task, config


def tiny_vlm_details() -> Recipe:
    """Go on with the embedded VLM: its picture tokens must tell what they cover, exact place, size and shade included; more
    prompts that say where things stand to each other."""
    config = replace(VLM_LOOP, num_steps=2800, decay_steps=1200, evaluate_every=700, checkpoint_every=200)
    task = VLMTask(
        seed=4,
        batch_size=config.batch_size,
        mix={"rewrite": 0.33, "describe": 0.1, "edit": 0.28, "reference": 0.18, "look": 0.11},
        tokenizer=BUILT_IN.vlm,
        cell_weight=0.1,
        meant_weight=0.1,
        detail_weight=0.5,
        rewrite_shares={"full": 2, "terse": 2, "relation": 10, "count": 1, "indirect": 3, "caption": 0.5},
        edit_shares={
            "remove": 2,
            "recolor": 1.5,
            "move": 1.5,
            "reshape": 1.5,
            "background": 0.5,
            "in_order": 1.5,
        },
        tile_shares=(0.45, 0.25, 0.3),
        style_share=0.08,
        start=BUILT_IN.vlm,
    )
    return task, config


def tiny_vlm_traits() -> Recipe:
    """Go on with what sees in the embedded VLM: its picture tokens must tell exact size and shade, which no state held. The
    language model stays, and so does every state of a text."""
    config = replace(
        VLM_LOOP,
        num_steps=5000,
        muon_learning_rate=0.003,
        decay_steps=3500,
        evaluate_every=1000,
        checkpoint_every=200,
    )
    task = VLMTask(
        seed=5,
        batch_size=config.batch_size,
        mix={"detail": 0.7, "describe": 0.06, "edit": 0.12, "reference": 0.08, "look": 0.04},
        tokenizer=BUILT_IN.vlm,
        cell_weight=0.1,
        detail_weight=0.5,
        trait_weight=3.0,
        frozen_language_model=True,
        tile_shares=(0.65, 0.1, 0.25),
        start=BUILT_IN.vlm,
    )
    return task, config


def tiny() -> Recipe:
    """The embedded generator, on the embedded VLM and VAE: train those first, and put them into the package."""
    return _generator(TINY.config, _from_scratch(4200, decay_steps=1300))


def tiny_sharpen() -> Recipe:
    """Go on with the embedded generator after the VLM and the autoencoder were trained on: as many times near the clean end as
    near the noisy one. On two cores: `torchrun --nproc-per-node 2 -m unifusion_core train tiny-sharpen`."""
    loop = replace(
        GENERATOR_LOOP,
        num_steps=3000,
        decay_steps=1400,
        evaluate_every=500,
        checkpoint_every=250,
        warmup_steps=100,
        weight_decay=0.0,
    )
    return _go_on(loop, free_pool_size=0)


def tiny_edits() -> Recipe:
    """Go on with the embedded generator: edits and reconstructions of one picture beside text. On two cores by `torchrun`, as
    `tiny_sharpen`."""
    loop = replace(
        GENERATOR_LOOP,
        num_steps=3000,
        decay_steps=1400,
        evaluate_every=1000,
        checkpoint_every=250,
        warmup_steps=100,
    )
    return _go_on(
        loop,
        tasks={"text": 0.62, "edit": 0.18, "reconstruct": 0.06, "free colors": 0.14},
    )


def tiny_details() -> Recipe:
    """Go on with the embedded generator on a VLM whose picture tokens tell what they cover: more reconstructions and edits, more
    tiles."""
    loop = replace(
        GENERATOR_LOOP,
        num_steps=1650,
        decay_steps=850,
        evaluate_every=800,
        checkpoint_every=200,
        warmup_steps=50,
    )
    return _go_on(
        loop,
        tasks={"text": 0.38, "edit": 0.32, "reconstruct": 0.2, "free colors": 0.1},
        tile_shares=(0.3, 0.25, 0.45),
        size_shares=(0.6, 0.2, 0.2),
    )


def tiny_traits() -> Recipe:
    """Go on with the embedded generator: heads ask its blocks for the unnamed traits, which picture tokens alone can tell, since
    their share of the velocity is too small to teach them; tiles without their thumbnail, which it read alone. On two cores by
    `torchrun`, as `tiny_sharpen`; `tiny_finish` goes on from there."""
    return _tell_traits(
        num_steps=900,
        muon_learning_rate=0.003,
        decay_steps=150,
        picture_time_means=(2.5, 1.0, -0.5, -0.5),
        tasks={"text": 0.42, "edit": 0.3, "reconstruct": 0.2, "free colors": 0.08},
        hidden_thumbnails=0.3,
    )


def tiny_finish() -> Recipe:
    """Go on with what `tiny_traits` left in `runs/`, more slowly and at more of the late times, where outlines are drawn: it had
    seen half of its pictures near pure noise, and edits had become softer than text."""
    return _tell_traits(
        start=Path("runs/tiny-traits/generator.safetensors"),
        seed=3,
        pool_size=2000,
        free_pool_size=1000,
        num_steps=1300,
        muon_learning_rate=0.0025,
        decay_steps=1100,
        picture_time_means=(2.0, 0.3, -0.6, -1.2),
        tasks={"text": 0.38, "edit": 0.34, "reconstruct": 0.2, "free colors": 0.08},
        hidden_thumbnails=0.15,
    )


def tiny_exact() -> Recipe:
    """Go on with the embedded generator on a VLM whose picture tokens tell exact size and shade, too; more of the edits that
    change an object where it stands. On two cores by `torchrun`, as `tiny_sharpen`."""
    return _tell_traits(
        seed=5,
        pool_size=3000,
        free_pool_size=1000,
        num_steps=3400,
        muon_learning_rate=0.003,
        decay_steps=1800,
        picture_time_means=(2.0, 0.5, -0.6, -1.0),
        tasks={"text": 0.34, "edit": 0.38, "reconstruct": 0.2, "free colors": 0.08},
        edit_shares={"recolor": 2, "reshape": 2, "resize": 2},
        hidden_thumbnails=0.15,
    )


def tiny_short() -> Recipe:
    """`tiny` on a small budget (about 20k samples): what the four below are compared with."""
    return _generator(TINY.config, _from_scratch(560, decay_steps=200), seed=2)


def tiny_short_joint() -> Recipe:
    """Conditions and latents attend to each other, as in the paper's drawing and in Krea 2."""
    return _generator(
        replace(TINY.config, condition_attention="joint"), _from_scratch(560, decay_steps=200), seed=2
    )


def tiny_short_last_layer() -> Recipe:
    """One VLM layer, the last that is tapped, instead of five: what most models read."""
    vlm = replace(TINY.config.vlm, taps=TINY.config.vlm.taps[-1:])
    return _generator(replace(TINY.config, vlm=vlm), _from_scratch(560, decay_steps=200), seed=2)


def tiny_short_key_value() -> Recipe:
    """Key-value fusion: each block of the DiT attends to one VLM layer, in place of pooling them."""
    return _generator(TINY.config, _from_scratch(560, decay_steps=200), seed=2, fusion="key-value fusion")


def tiny_short_injection() -> Recipe:
    """Hidden-state injection: later VLM layers are added to the condition at later blocks, in place of pooling them."""
    return _generator(
        TINY.config, _from_scratch(560, decay_steps=200), seed=2, fusion="hidden-state injection"
    )


def tiny_short_edits() -> Recipe:
    """Text, edits and reconstructions on a small budget: what the two below are compared with."""
    return _short_with_pictures(TINY.config)


def tiny_short_edits_no_positions() -> Recipe:
    """Pixels tokens without their place on the latent grid."""
    return _short_with_pictures(replace(TINY.config, image_positions="zero"))


def tiny_short_edits_lap_per_modality() -> Recipe:
    """Text and pictures pooled by a LAP of their own each."""
    return _short_with_pictures(TINY.config, fusion="lap per modality")


def _go_on(loop: LoopConfig, **settings: Any) -> Recipe:
    """The shipped generator, trained further."""
    settings = {
        "pool_size": 4000,
        "free_pool_size": 2000,
        "time_means": (1.0, -0.5),
        "start": BUILT_IN.generator,
        "seed": 2,
        **settings,
    }
    return _generator(TINY.config, loop, noises=4, **settings)


def _tell_traits(num_steps: int, muon_learning_rate: float, decay_steps: int, **settings: Any) -> Recipe:
    """The generator trained further with the trait heads, its pictures drawn at other times than its texts."""
    loop = replace(
        GENERATOR_LOOP,
        num_steps=num_steps,
        learning_rate=7e-4,
        muon_learning_rate=muon_learning_rate,
        decay_steps=decay_steps,
        ema_decay=0.99,
        evaluate_every=9999,
        checkpoint_every=100,
        warmup_steps=30,
    )
    return _go_on(
        loop, tile_shares=(0.3, 0.25, 0.45), size_shares=(0.6, 0.2, 0.2), trait_weight=0.3, **settings
    )


def _short_with_pictures(config: UniFusionConfig, **settings: Any) -> Recipe:
    tasks = {"text": 0.4, "edit": 0.4, "reconstruct": 0.2}
    return _generator(config, _from_scratch(560, decay_steps=200), seed=2, tasks=tasks, **settings)


def _from_scratch(num_steps: int, *, decay_steps: int) -> LoopConfig:
    return LoopConfig(
        num_steps=num_steps,
        batch_size=12,
        learning_rate=1e-3,
        muon_learning_rate=0.005,
        decay_steps=decay_steps,
        ema_decay=0.998,
        evaluate_every=500,
        checkpoint_every=250,
    )


def _pool_path(seed: int) -> Path:
    return Path(f"runs/latents-{seed}.safetensors")


def _generator(config: UniFusionConfig, loop: LoopConfig, **settings: Any) -> Recipe:
    settings = {"seed": 1, "pool_size": 3000, "time_means": (1.0,), **settings}
    task = GeneratorTask(
        batch_size=loop.batch_size,
        config=config,
        backbone=load_vlm(BUILT_IN.vlm),
        autoencoder=load_autoencoder(BUILT_IN.vae),
        pool_path=_pool_path(settings["seed"]),
        **settings,
    )
    return task, loop


RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny-vae": tiny_vae,
    "tiny-vae-sharpen": tiny_vae_sharpen,
    "tiny-vae-colors": tiny_vae_colors,
    "tiny-vae-decoder": tiny_vae_decoder,
    "tiny-vae-outlines": tiny_vae_outlines,
    "tiny-vlm": tiny_vlm,
    "tiny-vlm-edits": tiny_vlm_edits,
    "tiny-vlm-looks": tiny_vlm_looks,
    "tiny-vlm-details": tiny_vlm_details,
    "tiny-vlm-traits": tiny_vlm_traits,
    "tiny": tiny,
    "tiny-sharpen": tiny_sharpen,
    "tiny-edits": tiny_edits,
    "tiny-details": tiny_details,
    "tiny-traits": tiny_traits,
    "tiny-finish": tiny_finish,
    "tiny-exact": tiny_exact,
    "tiny-short": tiny_short,
    "tiny-short-joint": tiny_short_joint,
    "tiny-short-last-layer": tiny_short_last_layer,
    "tiny-short-key-value": tiny_short_key_value,
    "tiny-short-injection": tiny_short_injection,
    "tiny-short-edits": tiny_short_edits,
    "tiny-short-edits-no-positions": tiny_short_edits_no_positions,
    "tiny-short-edits-lap-per-modality": tiny_short_edits_lap_per_modality,
}
