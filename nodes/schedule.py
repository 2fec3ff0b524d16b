"""UniFusionSchedule: the core's schedules as SIGMAS, for SamplerCustom and its relatives."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..unifusion_core.zoo.spec import DRAWINGS
from .comfy.sampling import AUTOMATIC, SCHEDULE_NAMES, sigmas_for
from .sockets import CATEGORY


def _made_for(schedule: str) -> str:
    drawing = DRAWINGS[schedule]
    return f"'{schedule}' with {drawing.steps} steps and cfg {drawing.cfg:g}"


SCHEDULE_TOOLTIP = (
    "At which times the model is called. 'automatic' is what the model draws best with; a larger shift spends more "
    "steps on the layout. Krea 2's files do not tell which of the two they are, and 'automatic' takes them for turbo: choose "
    f"{_made_for('krea-2 raw')} for raw, {_made_for('krea-2 turbo')} for turbo."
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
