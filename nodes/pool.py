"""UniFusionLAPPool: VLM features to a condition, by the model's layer pooling and refiner."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .comfy.model import pool
from .sockets import CATEGORY, Encoded, FeaturesSocket


class UniFusionLAPPool(io.ComfyNode):
    """Layerwise Attention Pooling and refiner, as a step of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLAPPool",
            display_name="Pool UniFusion Features",
            category=CATEGORY,
            description="Layerwise Attention Pooling and refiner: many VLM layers become one condition to draw by.",
            search_aliases=[
                "unifusion",
                "lap",
                "conditioning",
                "layerwise attention pooling",
                "layer weights",
                "gains",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The UniFusion model that will draw, with its LoRAs."),
                FeaturesSocket.Input(
                    "features", tooltip="From Encode for UniFusion or Rewrite for UniFusion (VERIFI)."
                ),
                io.String.Input(
                    "layer_gains",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="How much of each VLM layer is pooled: one number for each ('1, 1, 0.5, 1, 1') or some by their "
                    "layer ('3: 0.5'). They multiply the pooling weights: 1 is as trained, 0 leaves a layer out. Empty: "
                    "as trained. Concerns this node alone: what CLIP Text Encode makes is pooled inside the MODEL.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="For KSampler or the UniFusion Sampler, positive or negative.")
            ],
        )

    @classmethod
    def execute(cls, model: Any, features: Encoded, layer_gains: str = "") -> io.NodeOutput:
        return io.NodeOutput(pool(model, features, layer_gains))
