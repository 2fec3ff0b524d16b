"""UniFusionFeaturesToKrea2: VLM features to a conditioning for ComfyUI's own Krea 2 model."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy.krea2 import krea2_conditioning
from .sockets import Encoded, FeaturesSocket


class UniFusionFeaturesToKrea2(io.ComfyNode):
    """Replaces Pool UniFusion Features for ComfyUI's own Krea 2 model, which pools inside itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionFeaturesToKrea2",
            display_name="UniFusion Features to Krea 2",
            category="conditioning/UniFusion",
            description="Converts features to a conditioning for a Krea 2 model from ComfyUI's own Load Diffusion Model, so that "
            "images, rewrites and image strength work with it. It replaces Pool UniFusion Features there.",
            search_aliases=["unifusion", "krea", "conditioning", "picture", "verifi"],
            inputs=[
                FeaturesSocket.Input(
                    "features",
                    tooltip="From Encode or Rewrite for UniFusion, with the Krea 2 model on the `model` input of Load "
                    "UniFusion VLM.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="For any sampler, as positive or negative.")],
        )

    @classmethod
    def execute(cls, features: Encoded) -> io.NodeOutput:
        return io.NodeOutput(krea2_conditioning(features))
