"""UniFusionSampler: noise to a latent, with separate guidance scales for text and images."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from .comfy.host import AUTOMATIC
from .comfy.sampling import SCHEDULE_NAMES, BatchSeeds, draw, sigmas_for
from .schedule import SCHEDULE_TOOLTIP
from .sockets import FeaturesSocket

# what can be sampled from
CONDITIONS = [io.Conditioning, FeaturesSocket]


class UniFusionSampler(io.ComfyNode):
    """Euler steps along one of UniFusion's schedules, in ComfyUI's own sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionSampler",
            display_name="UniFusion Sampler",
            category="sampling/UniFusion",
            description="Samples a latent with Euler steps, from features or from a conditioning. With picture_only connected, "
            "text and images have separate guidance scales: negative + image_cfg (picture_only - negative) + cfg (positive - "
            "picture_only).",
            search_aliases=["unifusion", "ksampler", "sampler", "denoise", "image cfg"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model from Load UniFusion Model, with or without LoRAs."
                ),
                io.MultiType.Input(
                    "positive",
                    types=CONDITIONS,
                    tooltip="Features or conditioning of the image to generate.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="An empty latent of the wanted size. With a noise mask only the masked part changes.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise. Equal seeds give equal images.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Number of sampling steps. More steps are slower and more accurate.",
                ),
                io.Float.Input(
                    "cfg",
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the text. 1 = no guidance, twice as fast, unless picture_only is connected.",
                ),
                io.Float.Input(
                    "image_cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the images. Has an effect only if picture_only is connected.",
                ),
                io.Combo.Input(
                    "schedule", options=list(SCHEDULE_NAMES), default=AUTOMATIC, tooltip=SCHEDULE_TOOLTIP
                ),
                io.MultiType.Input(
                    "negative",
                    types=CONDITIONS,
                    optional=True,
                    tooltip="Features or conditioning to steer away from. Not connected = the empty prompt, which is encoded for "
                    "you; at cfg 1 nothing is.",
                ),
                io.MultiType.Input(
                    "picture_only",
                    types=CONDITIONS,
                    optional=True,
                    tooltip="Features or conditioning of the same images with an empty prompt. Separates image_cfg from cfg.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the schedule that is sampled. 1 = from noise; below 1 the latent's image is changed, less "
                    "for smaller values.",
                ),
                io.Combo.Input(
                    "batch_seeds",
                    options=list(get_args(BatchSeeds)),
                    default=get_args(BatchSeeds)[0],
                    optional=True,
                    advanced=True,
                    tooltip="Noise of a batch: 'one for all' = one seed draws the noise of the whole batch, as KSampler does; "
                    "'counted up' = image i has the noise of seed + i, counted from 0, as if it were drawn alone.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(  # noqa: PLR0917  (ComfyUI calls with names)
        cls,
        model: Any,
        positive: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        image_cfg: float,
        schedule: str,
        negative: Any = None,
        picture_only: Any = None,
        denoise: float = 1.0,
        batch_seeds: BatchSeeds = "one for all",
    ) -> io.NodeOutput:
        sampled = draw(
            model,
            positive,
            negative,
            picture_only,
            latent,
            seed=seed,
            sigmas=sigmas_for(model, latent, steps, schedule, denoise),
            cfg=cfg,
            image_cfg=image_cfg,
            batch_seeds=batch_seeds,
        )
        return io.NodeOutput(sampled)
