"""UniFusionLAPInspect: which layer of the VLM every token reads, as a picture and as a table."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..unifusion_core.inspection.table import lines_of, write_table
from .comfy.model import read_layers
from .sockets import CATEGORY, Encoded, FeaturesSocket


class UniFusionLAPInspect(io.ComfyNode):
    """A look inside Layerwise Attention Pooling; nothing is drawn by it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLAPInspect",
            display_name="Inspect UniFusion Layers",
            category=CATEGORY,
            description="Which layer of the VLM every token reads: each layer's share in what Layerwise Attention Pooling makes "
            "of the token, and the attention between the layers before that.",
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
                    "model", tooltip="The UniFusion model whose pooling is looked at, with its LoRAs."
                ),
                FeaturesSocket.Input(
                    "features",
                    tooltip="From Encode for UniFusion or Rewrite for UniFusion (VERIFI), as for pooling.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "map",
                    display_name="map",
                    tooltip="Tokens down, layers across, the pooling weights above; every picture with its tokens' layers laid "
                    "over it. For Preview Image or Save Image.",
                ),
                io.String.Output(
                    "table",
                    display_name="table",
                    tooltip="The same shares in per cent, a line for each token. For Preview as Text.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, features: Encoded) -> io.NodeOutput:
        from ..unifusion_core.inspection.layer_map import draw_layer_map

        reading, taps = read_layers(model, features), features.spec.taps
        texts = [features.texts[number] for number in features.features.token_info.ids[0].tolist()]
        lines = lines_of(features.features, texts)
        drawn = draw_layer_map(reading, features.features, lines, taps, features.images)
        return io.NodeOutput(torch.from_numpy(drawn)[None].float() / 255, write_table(reading, lines, taps))
