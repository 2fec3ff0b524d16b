"""Every training run of this repository as data: what is trained, on what, for how long. `unifusion shapes train NAME` runs it.

Recipes with `start` continue from the shipped weights. Several processes share a run:
`torchrun --nproc-per-node 2 -m unifusion_core shapes train NAME`. The README has the order of the runs, the LOG their results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoints.vae_file import load_autoencoder
from ...models.unifusion import UniFusionConfig
from ...training.loop import LoopConfig, Task
from ...vlm.folder import load_vlm
from ...zoo.spec import BuiltIn
from ...zoo.tiny import BUILT_IN, TINY
from .autoencoder import AutoencoderTask
from .chain import NEXT
from .fusion import BATCH_SIZE, DESIGNS, RUN, FusionTask
from .generator import GeneratorSettings, GeneratorTask
from .vlm import VLMTask

Recipe = tuple[Task, LoopConfig]

AUTOENCODER_LOOP = LoopConfig(
    steps=4200,
    batch_size=4,
    learning_rate=1e-3,
    muon_learning_rate=0.004,
    decay=2200,
    evaluate_every=500,
    save_every=250,
    ema=0.998,
)
# at the higher rates of the others, finished weights lose outlines
MARKS_LOOP = replace(AUTOENCODER_LOOP, batch_size=6, learning_rate=5e-4, muon_learning_rate=0.002)
VLM_LOOP = LoopConfig(
    # each recipe sets its own
    steps=1,
    batch_size=16,
    learning_rate=7e-4,
    muon_learning_rate=0.004,
    weight_decay=0.1,
    ema=0.998,
)
GENERATOR_LOOP = LoopConfig(
    # each recipe sets its own
    steps=1,
    batch_size=8,
    learning_rate=1e-3,
    muon_learning_rate=0.005,
    weight_decay=0.05,
    ema=0.998,
    evaluate_every=500,
    save_every=250,
    warmup=100,
)
TRAITS_LOOP = replace(
    GENERATOR_LOOP,
    learning_rate=7e-4,
    muon_learning_rate=0.003,
    ema=0.99,
    evaluate_every=9999,
    save_every=100,
    warmup=30,
)
SCRATCH_LOOP = LoopConfig(
    steps=4200,
    batch_size=12,
    learning_rate=1e-3,
    muon_learning_rate=0.005,
    decay=1300,
    ema=0.998,
    evaluate_every=500,
    save_every=250,
)
# about 20k samples
SHORT_LOOP = replace(SCRATCH_LOOP, steps=560, decay=200)
FUSION_LOOP = LoopConfig(
    steps=160,
    batch_size=BATCH_SIZE,
    learning_rate=6e-4,
    muon_learning_rate=0.006,
    warmup=40,
    decay=50,
    ema=0.99,
    precision="bf16",
    evaluate_every=40,
    save_every=30,
    keep=1,
)

SCRATCH = GeneratorSettings(seed=1, pool_size=3000, time_means=(1.0,))
SHORT = replace(SCRATCH, seed=2)
SHORT_EDITS = replace(SHORT, tasks={"text": 0.4, "edit": 0.4, "reconstruct": 0.2})
CONTINUE = GeneratorSettings(
    seed=2,
    pool_size=4000,
    free_pool_size=2000,
    noises=4,
    time_means=(1.0, -0.5),
    start=BUILT_IN.generator,
)
TRAITS = replace(CONTINUE, tile_shares=(0.3, 0.25, 0.45), size_shares=(0.6, 0.2, 0.2), trait_weight=0.3)
MARKS = replace(
    TRAITS,
    seed=7,
    pool_size=1500,
    free_pool_size=400,
    marked_pool_size=1500,
    noises=1,
    picture_time_means=(2.0, 0.6, -0.4, -1.0),
    tasks={"text": 0.26, "edit": 0.36, "reconstruct": 0.33, "free colors": 0.05},
    edit_shares={"recolor": 2, "reshape": 2, "resize": 2},
    tile_shares=(0.1, 0.5, 0.4),
    mark_foreground=3.0,
    mark_change=0.2,
    mark_weight=1.0,
    frozen_fusion=True,
    hidden_thumbnails=0.15,
)
# LAP and refiner learn marks, too
MORE_MARKS = replace(
    MARKS,
    seed=8,
    pool_size=2500,
    free_pool_size=500,
    marked_pool_size=2500,
    noises=2,
    frozen_fusion=False,
)


def autoencoder(loop: LoopConfig, **settings: Any) -> Callable[[], Recipe]:
    """A recipe for the embedded autoencoder."""
    return lambda: (AutoencoderTask(**settings), loop)


def vlm(
    loop: LoopConfig, *, start: Path | None = BUILT_IN.vlm, tokenizer: Path = BUILT_IN.vlm, **settings: Any
) -> Callable[[], Recipe]:
    """A recipe for the embedded VLM."""
    return lambda: (
        VLMTask(batch_size=loop.batch_size, start=start, tokenizer=tokenizer, **settings),
        loop,
    )


def generator(
    loop: LoopConfig,
    settings: GeneratorSettings,
    config: UniFusionConfig = TINY.config,
    parts: BuiltIn = BUILT_IN,
) -> Callable[[], Recipe]:
    """A recipe for a generator on the VLM and the autoencoder of `parts`; recipes of one seed share a pool."""

    def build() -> Recipe:
        task = GeneratorTask(
            settings,
            batch_size=loop.batch_size,
            config=config,
            backbone=load_vlm(parts.vlm),
            autoencoder=load_autoencoder(parts.vae),
            pool_path=Path(f"runs/latents-{settings.seed}.safetensors"),
        )
        return task, loop

    return build


def fusion(design: str, seed: int) -> Callable[[], Recipe]:
    """A recipe for one fusion design on the language model of `runs/smollm`."""
    return lambda: (FusionTask(DESIGNS[design], seed), FUSION_LOOP)


RECIPES: dict[str, Callable[[], Recipe]] = {
    # small crops and small batches: on two cores, the number of steps is the limit
    "tiny-vae": autoencoder(AUTOENCODER_LOOP, seed=1, crop=48),
    # crops around objects and more noise on the latents: generated latents are never exact, and the fewer latents an outline
    # depends on, the more their errors blur it
    "tiny-vae-sharpen": autoencoder(
        replace(
            AUTOENCODER_LOOP,
            steps=2100,
            batch_size=6,
            muon_learning_rate=0.003,
            learning_rate=7e-4,
            decay=700,
        ),
        seed=3,
        crop=40,
        start=BUILT_IN.vae,
        latent_noise=0.3,
        object_share=0.85,
    ),
    # colours between the named ones, so that colour is continuous in the latents
    "tiny-vae-colors": autoencoder(
        replace(AUTOENCODER_LOOP, steps=2200, batch_size=6, decay=900),
        seed=4,
        crop=40,
        start=BUILT_IN.vae,
        latent_noise=0.3,
        object_share=0.85,
        free_color_share=0.6,
    ),
    # the decoder alone: the latents stay as they are
    "tiny-vae-decoder": autoencoder(
        replace(AUTOENCODER_LOOP, steps=6000, decay=3000),
        seed=2,
        crop=48,
        start=BUILT_IN.vae,
        decoder_only=True,
    ),
    # the decoder alone, mostly on the two sizes whose shapes have the fewest latents
    "tiny-vae-outlines": autoencoder(
        replace(AUTOENCODER_LOOP, steps=5000, batch_size=6, decay=2000, evaluate_every=1000),
        seed=5,
        crop=40,
        start=BUILT_IN.vae,
        latent_noise=0.3,
        object_share=0.9,
        free_color_share=0.3,
        size_shares=(0.2, 0.4, 0.4),
        decoder_only=True,
    ),
    # marks, and flat colours anywhere in RGB. The latents of other places stay, since the generator draws them
    "tiny-vae-marks": autoencoder(
        replace(MARKS_LOOP, steps=4800, decay=2300, evaluate_every=2400),
        seed=6,
        crop=32,
        start=BUILT_IN.vae,
        latent_noise=0.2,
        object_share=0.9,
        marked_share=0.8,
        mark_weight=24.0,
        free_rgb_share=0.45,
        anchor=1.0,
    ),
    # the decoder alone, so that a generator can be trained on the latents meanwhile. The one that learned with the encoder, on
    # smaller crops, had become worse elsewhere
    "tiny-vae-crisp": autoencoder(
        replace(MARKS_LOOP, batch_size=4, steps=9000, decay=6000, evaluate_every=3000),
        seed=8,
        crop=48,
        start=NEXT.vae,
        decoder_of=BUILT_IN.vae,
        latent_noise=0.3,
        object_share=0.9,
        marked_share=0.8,
        mark_weight=24.0,
        free_rgb_share=0.45,
        decoder_only=True,
    ),
    # more of the same in larger batches, with a weight on flat colours
    "tiny-vae-finish": autoencoder(
        replace(
            MARKS_LOOP,
            batch_size=5,
            steps=20000,
            decay=18000,
            evaluate_every=4000,
            precision="bf16",
            ema=0.999,
        ),
        seed=9,
        crop=64,
        start=NEXT.vae,
        latent_noise=0.3,
        object_share=0.9,
        marked_share=0.8,
        mark_weight=60.0,
        free_rgb_share=0.45,
        decoder_only=True,
        color_weight=2.0,
    ),
    # once it could read images (after 6000 steps), rewrites and references got a larger share of the mix
    "tiny-vlm": vlm(
        LoopConfig(
            steps=9500,
            batch_size=16,
            learning_rate=1e-3,
            muon_learning_rate=0.005,
            weight_decay=0.1,
            decay=2500,
            evaluate_every=1000,
            save_every=250,
        ),
        seed=1,
        mix={"rewrite": 0.5, "describe": 0.08, "edit": 0.24, "reference": 0.18},
        tokenizer=Path("runs/tiny-vlm/tokenizer"),
        start=None,
    ),
    # mostly instructions about images, which need the most steps. Their meaning is the same at every number of tiles, so most
    # chats have a thumbnail alone
    "tiny-vlm-edits": vlm(
        replace(VLM_LOOP, steps=3600, decay=1700, evaluate_every=600, save_every=300),
        seed=2,
        mix={"rewrite": 0.2, "describe": 0.04, "edit": 0.42, "reference": 0.34},
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
    ),
    # looks: their order of objects says nothing about places, so the VLM must find each place in the image; and styles
    "tiny-vlm-looks": vlm(
        replace(VLM_LOOP, steps=6500, decay=2000, evaluate_every=500, save_every=250),
        seed=3,
        mix={"rewrite": 0.25, "describe": 0.02, "edit": 0.33, "reference": 0.22, "look": 0.18},
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
    ),
    # the image tokens must contain what they cover, exact place, size and shade included; and more prompts with relations
    "tiny-vlm-details": vlm(
        replace(VLM_LOOP, steps=2800, decay=1200, evaluate_every=700, save_every=200),
        seed=4,
        mix={"rewrite": 0.33, "describe": 0.1, "edit": 0.28, "reference": 0.18, "look": 0.11},
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
    ),
    # the vision part alone, for exact size and shade, which no state held; so every state of a text stays
    "tiny-vlm-traits": vlm(
        replace(
            VLM_LOOP,
            steps=5000,
            muon_learning_rate=0.003,
            decay=3500,
            evaluate_every=1000,
            save_every=200,
        ),
        seed=5,
        mix={"detail": 0.7, "describe": 0.06, "edit": 0.12, "reference": 0.08, "look": 0.04},
        cell_weight=0.1,
        detail_weight=0.5,
        trait_weight=3.0,
        frozen_language_model=True,
        tile_shares=(0.65, 0.1, 0.25),
    ),
    # the vision part alone again, for marks, which only tiles show well; every state of a text stays
    "tiny-vlm-marks": vlm(
        replace(
            VLM_LOOP,
            steps=5000,
            muon_learning_rate=0.003,
            decay=2500,
            evaluate_every=2500,
            save_every=250,
        ),
        seed=7,
        mix={"detail": 0.8, "describe": 0.04, "edit": 0.08, "reference": 0.05, "look": 0.03},
        cell_weight=0.1,
        detail_weight=0.5,
        trait_weight=3.0,
        mark_weight=1.0,
        marked_share=0.6,
        frozen_language_model=True,
        tile_shares=(0.25, 0.3, 0.45),
    ),
    # a judge: yes, no and numbers instead of captions. It is no encoder of the generator, which insists on the shipped weights
    "tiny-judge": vlm(
        replace(VLM_LOOP, steps=600, decay=350, evaluate_every=600),
        seed=6,
        mix={"question": 1.0},
        cell_weight=0.1,
        tile_shares=(0.1, 0.6, 0.3),
    ),
    "tiny": generator(SCRATCH_LOOP, SCRATCH),
    # after the VLM and the autoencoder were trained further; as many times near the clean end as near the noisy one
    "tiny-sharpen": generator(
        replace(GENERATOR_LOOP, steps=3000, decay=1400, weight_decay=0.0),
        replace(CONTINUE, free_pool_size=0),
    ),
    # edits and reconstructions of one image beside text
    "tiny-edits": generator(
        replace(GENERATOR_LOOP, steps=3000, decay=1400, evaluate_every=1000),
        replace(CONTINUE, tasks={"text": 0.62, "edit": 0.18, "reconstruct": 0.06, "free colors": 0.14}),
    ),
    # on a VLM whose image tokens contain what they cover; more reconstructions and edits, more tiles
    "tiny-details": generator(
        replace(
            GENERATOR_LOOP,
            steps=1650,
            decay=850,
            evaluate_every=800,
            save_every=200,
            warmup=50,
        ),
        replace(
            CONTINUE,
            tasks={"text": 0.38, "edit": 0.32, "reconstruct": 0.2, "free colors": 0.1},
            tile_shares=(0.3, 0.25, 0.45),
            size_shares=(0.6, 0.2, 0.2),
        ),
    ),
    # heads for the unnamed traits, whose share of the velocity is too small to teach them; and tiles without the thumbnail, which
    # the generator used alone
    "tiny-traits": generator(
        replace(TRAITS_LOOP, steps=900, decay=150),
        replace(
            TRAITS,
            picture_time_means=(2.5, 1.0, -0.5, -0.5),
            tasks={"text": 0.42, "edit": 0.3, "reconstruct": 0.2, "free colors": 0.08},
            hidden_thumbnails=0.3,
        ),
    ),
    # continues from tiny-traits, more slowly and with more late times, which form outlines: half of its images had been near pure
    # noise, and edits had become softer than text
    "tiny-finish": generator(
        replace(TRAITS_LOOP, steps=1300, muon_learning_rate=0.0025, decay=1100),
        replace(
            TRAITS,
            start=Path("runs/tiny-traits/generator.safetensors"),
            seed=3,
            pool_size=2000,
            free_pool_size=1000,
            picture_time_means=(2.0, 0.3, -0.6, -1.2),
            tasks={"text": 0.38, "edit": 0.34, "reconstruct": 0.2, "free colors": 0.08},
            hidden_thumbnails=0.15,
        ),
    ),
    # on a VLM whose image tokens also contain exact size and shade; more edits that change an object in its place
    "tiny-exact": generator(
        replace(TRAITS_LOOP, steps=3400, decay=1800),
        replace(
            TRAITS,
            seed=5,
            pool_size=3000,
            free_pool_size=1000,
            picture_time_means=(2.0, 0.5, -0.6, -1.0),
            tasks={"text": 0.34, "edit": 0.38, "reconstruct": 0.2, "free colors": 0.08},
            edit_shares={"recolor": 2, "reshape": 2, "resize": 2},
            hidden_thumbnails=0.15,
        ),
    ),
    # on a VLM whose image tokens tell of marks; edits and reconstructions have them. Times near 1 alone teach to read marks, and
    # small ones to draw them; one noise each leaves time for more marks in a step
    "tiny-marks": generator(
        replace(TRAITS_LOOP, batch_size=16, steps=8000, decay=4000, evaluate_every=1000),
        MARKS,
        parts=NEXT,
    ),
    # goes on from there with LAP and refiner, which had lost a third of what tells a mark's place
    "tiny-marks-finish": generator(
        replace(TRAITS_LOOP, batch_size=12, steps=5300, decay=5200, evaluate_every=2000, precision="bf16"),
        replace(
            MORE_MARKS,
            start=NEXT.generator,
            tasks={"text": 0.3, "edit": 0.36, "reconstruct": 0.29, "free colors": 0.05},
            mark_change=0.3,
        ),
        parts=NEXT,
    ),
    # goes on from there; the shipped generator teaches all but marks, so outlines come back
    "tiny-marks-taught": generator(
        replace(
            TRAITS_LOOP,
            batch_size=12,
            steps=2500,
            decay=2500,
            muon_learning_rate=0.002,
            learning_rate=5e-4,
            ema=0.995,
            evaluate_every=800,
        ),
        replace(
            MORE_MARKS,
            start=NEXT.generator,
            teacher=BUILT_IN.generator,
            free_pool_size=0,
            tasks={"text": 0.42, "edit": 0.32, "reconstruct": 0.26},
            frozen_fusion=True,
            head_weight=0.0,
            trait_weight=0.0,
            mark_weight=0.0,
            mark_change=0.03,
        ),
        parts=NEXT,
    ),
    # small budgets: the baseline of the next three
    "tiny-short": generator(SHORT_LOOP, SHORT),
    "tiny-short-edits": generator(SHORT_LOOP, SHORT_EDITS),
    # image tokens without their place on the latent grid
    "tiny-short-edits-no-positions": generator(
        SHORT_LOOP, SHORT_EDITS, replace(TINY.config, image_positions="zero")
    ),
    # separate LAPs for text and for images
    "tiny-short-edits-lap-per-modality": generator(
        SHORT_LOOP, replace(SHORT_EDITS, fusion="lap per modality")
    ),
    # ways to condition the DiT on a language model that never saw the world, in three repetitions
    **{
        RUN.format(design=design, seed=seed): fusion(design, seed) for design in DESIGNS for seed in (1, 2, 3)
    },
}
