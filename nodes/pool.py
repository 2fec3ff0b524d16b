"""UniFusionLAPPool: VLM features to a condition, by the model's layer pooling and refiner."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .comfy_model import pool
from .sockets import CATEGORY, Encoded, Features


class UniFusionLAPPool(io.ComfyNode):
    """Layerwise Attention Pooling and refiner, as a step of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLAPPool",
            display_name="Pool UniFusion Features",
            category=CATEGORY,
            description="Layerwise Attention Pooling and refiner: many VLM layers become one condition to draw by.",
            search_aliases=["unifusion", "lap", "conditioning", "layerwise attention pooling"],
            inputs=[
                io.Model.Input("model", tooltip="The UniFusion model that will draw, with its LoRAs."),
                Features.Input("features", tooltip="From Encode for UniFusion."),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="For KSampler or the UniFusion Sampler, positive or negative.")
            ],
        )

    @classmethod
    def execute(cls, model: Any, features: Encoded) -> io.NodeOutput:
        return io.NodeOutput(pool(model, features))
