"""UniFusionSchedule: the core's schedules as SIGMAS, for SamplerCustom and its relatives."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..unifusion_core.zoo.krea_2 import KREA_2
from .comfy.sampling import AUTOMATIC, SCHEDULE_NAMES, sigmas_for
from .sockets import CATEGORY

_VARIANTS = ", ".join(
    f"'{each.schedule}' with {each.steps} steps and cfg {each.cfg:g} for {variant}"
    for variant, each in KREA_2.sampling.items()
)
SCHEDULE_TOOLTIP = (
    "The times of the steps. 'automatic' is what the model draws best with; a larger shift spends more steps on the layout. "
    f"A Krea 2 file does not say whether it is raw or turbo, and 'automatic' takes it for turbo: choose {_VARIANTS}."
)


class UniFusionSchedule(io.ComfyNode):
    """Times from noise to clean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionSchedule",
            display_name="UniFusion Schedule",
            category=CATEGORY,
            description="UniFusion's schedules as sigmas, for SamplerCustom and SamplerCustomAdvanced.",
            search_aliases=["unifusion", "scheduler", "sigmas", "shift", "timesteps"],
            inputs=[
                io.Model.Input("model", tooltip="The UniFusion model that will draw."),
                io.Latent.Input(
                    "latent", tooltip="The latent to be drawn on: some schedules depend on its size."
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="How many steps to draw in."),
                io.Combo.Input(
                    "schedule", options=list(SCHEDULE_NAMES), default=AUTOMATIC, tooltip=SCHEDULE_TOOLTIP
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any], steps: int, schedule: str) -> io.NodeOutput:
        return io.NodeOutput(sigmas_for(model, latent, steps, schedule))
