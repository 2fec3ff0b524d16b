"""UniFusionSampler: noise to latents, with guidance by text and, apart from it, by pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .comfy.sampling import AUTOMATIC, SCHEDULE_NAMES, draw, sigmas_for
from .schedule import SCHEDULE_TOOLTIP
from .sockets import CATEGORY


class UniFusionSampler(io.ComfyNode):
    """Euler steps along one of UniFusion's schedules, in ComfyUI's own sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionSampler",
            display_name="UniFusion Sampler",
            category=CATEGORY,
            description="Draws a picture's latents. With picture_only connected, text and pictures are guided apart: "
            "negative + image_cfg (picture_only - negative) + cfg (positive - picture_only).",
            search_aliases=["unifusion", "ksampler", "sampler", "denoise", "image cfg"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model from Load UniFusion Model, with or without LoRAs."
                ),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input(
                    "negative", tooltip="What to stay away from; usually the empty prompt."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="An empty latent of the wanted size; with a noise mask only that part is drawn.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise to start from: equal seeds draw equal pictures.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=1000, tooltip="More take longer and draw more exactly."
                ),
                io.Float.Input(
                    "cfg",
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strictly the prompt is followed; 1, without picture_only, switches guidance off and is twice as "
                    "fast.",
                ),
                io.Float.Input(
                    "image_cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strictly the pictures are followed; used if picture_only is connected.",
                ),
                io.Combo.Input(
                    "schedule", options=list(SCHEDULE_NAMES), default=AUTOMATIC, tooltip=SCHEDULE_TOOLTIP
                ),
                io.Conditioning.Input(
                    "picture_only",
                    optional=True,
                    tooltip="The same pictures with an empty prompt: lets image_cfg and cfg pull apart.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(  # noqa: PLR0917  (ComfyUI calls with names)
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        image_cfg: float,
        schedule: str,
        picture_only: Any = None,
    ) -> io.NodeOutput:
        sigmas = sigmas_for(model, latent, steps, schedule)
        return io.NodeOutput(
            draw(
                model,
                positive,
                negative,
                picture_only,
                latent,
                seed=seed,
                sigmas=sigmas,
                cfg=cfg,
                image_cfg=image_cfg,
            )
        )
