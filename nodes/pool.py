"""UniFusionLAPPool: VLM features to a conditioning, by the model's LAP and refiner."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .comfy.model import pool
from .sockets import Encoded, FeaturesSocket


class UniFusionLAPPool(io.ComfyNode):
    """Layerwise Attention Pooling and refiner as a node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLAPPool",
            display_name="Pool UniFusion Features",
            category="conditioning/UniFusion",
            description="Pools the VLM layers of each token into one conditioning, by the model's Layerwise Attention "
            "Pooling (LAP) and refiner.",
            search_aliases=[
                "unifusion",
                "lap",
                "conditioning",
                "layerwise attention pooling",
                "layer weights",
                "gains",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The UniFusion model that you sample with, with its LoRAs."),
                FeaturesSocket.Input(
                    "features", tooltip="From Encode for UniFusion or Rewrite for UniFusion (VERIFI)."
                ),
                io.String.Input(
                    "layer_gains",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Factors on LAP's pooling weights: one number per layer ('1, 1, 0.5, 1, 1'), or some layers by "
                    "number ('3: 0.5'). 1 = as trained, 0 leaves the layer out, empty = all as trained. No effect on CLIP "
                    "Text Encode, which is pooled inside the MODEL.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="For KSampler or the UniFusion Sampler, as positive or negative."
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, features: Encoded, layer_gains: str = "") -> io.NodeOutput:
        return io.NodeOutput(pool(model, features, layer_gains))
