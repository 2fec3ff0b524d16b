"""UniFusionLAPInspect: the share of each VLM layer in every pooled token, as an image and as a table."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .comfy.model import layer_map
from .sockets import Encoded, FeaturesSocket


class UniFusionLAPInspect(io.ComfyNode):
    """Shows how Layerwise Attention Pooling uses the VLM's layers; no effect on the generated image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLAPInspect",
            display_name="Inspect UniFusion Layers",
            category="conditioning/UniFusion",
            description="Shows each VLM layer's share in every pooled token, and the attention between the layers inside "
            "Layerwise Attention Pooling (LAP). No effect on the generated image.",
            search_aliases=[
                "unifusion",
                "lap",
                "inspect",
                "heat map",
                "attention map",
                "layers",
                "look inside",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The UniFusion model whose LAP is inspected, with its LoRAs."
                ),
                FeaturesSocket.Input(
                    "features", tooltip="From Encode for UniFusion or Rewrite for UniFusion (VERIFI)."
                ),
            ],
            outputs=[
                io.Image.Output(
                    "map",
                    display_name="map",
                    tooltip="Heat map with a row per token and a column per layer, the pooling weights above it, and the "
                    "layers of each image's tokens over that image. For Preview Image or Save Image.",
                ),
                io.String.Output(
                    "table",
                    display_name="table",
                    tooltip="The same shares in per cent, one line per text token and per image. For Preview as Text.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, features: Encoded) -> io.NodeOutput:
        return io.NodeOutput(*layer_map(model, features))
