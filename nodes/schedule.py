"""UniFusionSchedule: the core's sampling schedules as SIGMAS."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..unifusion_core.zoo.krea_2 import KREA_2
from .comfy.host import AUTOMATIC
from .comfy.sampling import SCHEDULE_NAMES, sigmas_for

_VARIANTS = ", ".join(
    f"'{each.schedule}' with {each.steps} steps and cfg {each.cfg:g} for {variant}"
    for variant, each in KREA_2.sampling.items()
)
SCHEDULE_TOOLTIP = (
    "Sampling schedule. 'automatic' = the model's default; a larger shift spends more steps near the noise, where the layout is "
    f"decided. A Krea 2 file does not say whether it is raw or turbo, and 'automatic' assumes turbo: choose {_VARIANTS}."
)


class UniFusionSchedule(io.ComfyNode):
    """Sigmas from 1 (noise) to 0 (clean)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionSchedule",
            display_name="UniFusion Schedule",
            category="sampling/UniFusion",
            description="UniFusion's sampling schedules as sigmas, for SamplerCustom and SamplerCustomAdvanced.",
            search_aliases=["unifusion", "scheduler", "sigmas", "shift", "timesteps"],
            inputs=[
                io.Model.Input("model", tooltip="The UniFusion model that you sample with."),
                io.Latent.Input(
                    "latent", tooltip="The latent that you sample; some schedules depend on its size."
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Number of sampling steps."),
                io.Combo.Input(
                    "schedule", options=list(SCHEDULE_NAMES), default=AUTOMATIC, tooltip=SCHEDULE_TOOLTIP
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any], steps: int, schedule: str) -> io.NodeOutput:
        return io.NodeOutput(sigmas_for(model, latent, steps, schedule))
