"""UniFusionPictureStrength: per-image conditioning strength, by the number of the image's tokens."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..unifusion_core.vlm.image_strength import with_strength
from .encode import MAX_PICTURES
from .sockets import Encoded, FeaturesSocket


class UniFusionPictureStrength(io.ComfyNode):
    """Drops tokens of an image, or repeats them. One node per image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionPictureStrength",
            display_name="UniFusion Picture Strength",
            category="conditioning/UniFusion",
            description="Per-image conditioning strength. 'keep' below 1 drops tokens of the image, so that the result "
            "varies more. 'gain' above 1 repeats them, so that the image is followed more closely. Chain one node per "
            "image.",
            search_aliases=["unifusion", "reference strength", "image weight", "token thinning", "variation"],
            inputs=[
                FeaturesSocket.Input(
                    "features",
                    tooltip="From Encode or Rewrite for UniFusion, or from another UniFusion Picture Strength.",
                ),
                io.Int.Input(
                    "picture",
                    default=1,
                    min=1,
                    max=10 * MAX_PICTURES,
                    tooltip="Number of the image, in the order of the node that encoded it. Each image of a batch counts.",
                ),
                io.Float.Input(
                    "keep",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of the image's tokens that are kept, evenly spread; those of the thumbnail are dropped "
                    "last. Small shares keep the content and vary positions and details. 0 removes the image.",
                ),
                io.Int.Input(
                    "gain",
                    default=1,
                    min=1,
                    max=8,
                    tooltip="How many times each kept token is repeated. 2 doubles the image's weight in the attention, "
                    "and the cost of its tokens. 1 = unchanged.",
                ),
            ],
            outputs=[
                FeaturesSocket.Output(
                    "features",
                    display_name="features",
                    tooltip="For Pool UniFusion Features, or for the strength of the next image.",
                )
            ],
        )

    @classmethod
    def execute(cls, features: Encoded, picture: int, keep: float, gain: int) -> io.NodeOutput:
        thumbnail_last = features.spec.template.thumbnail_last
        changed = with_strength(
            features.features, picture, keep=keep, gain=gain, thumbnail_last=thumbnail_last
        )
        return io.NodeOutput(replace(features, features=changed))
