"""UniFusionFeaturesToKrea2: features for ComfyUI's own Krea 2 model."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy.krea2 import krea2_conditioning
from .sockets import CATEGORY, Encoded, FeaturesSocket


class UniFusionFeaturesToKrea2(io.ComfyNode):
    """What Pool UniFusion Features is for this pack's own models; ComfyUI's pools inside itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionFeaturesToKrea2",
            display_name="UniFusion Features to Krea 2",
            category=CATEGORY,
            description="Prompts, rewrites and pictures, read by UniFusion's nodes, for a Krea 2 model from ComfyUI's own Load "
            "Diffusion Model.",
            search_aliases=["unifusion", "krea", "conditioning", "picture", "verifi"],
            inputs=[
                FeaturesSocket.Input(
                    "features",
                    tooltip="From Encode or Rewrite for UniFusion, whose VLM has the Krea 2 model on its `model` input.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="For KSampler and every other sampler.")],
        )

    @classmethod
    def execute(cls, features: Encoded) -> io.NodeOutput:
        return io.NodeOutput(krea2_conditioning(features))
