"""UniFusionPictureStrength: one picture among the features, weaker or stronger."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from .encode import MAX_PICTURES
from .sockets import CATEGORY, Encoded, FeaturesSocket


class UniFusionPictureStrength(io.ComfyNode):
    """Fewer tokens of a picture, or each several times; one node for each picture that shall change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionPictureStrength",
            display_name="UniFusion Picture Strength",
            category=CATEGORY,
            description="How strongly one of the pictures speaks. With fewer of its tokens a drawing keeps its idea and "
            "varies the rest; with gain it is followed more closely. Chain one node for each picture.",
            search_aliases=["unifusion", "reference strength", "image weight", "token thinning", "variation"],
            inputs=[
                FeaturesSocket.Input(
                    "features", tooltip="From Encode or Rewrite for UniFusion, or another strength."
                ),
                io.Int.Input(
                    "picture",
                    default=1,
                    min=1,
                    max=10 * MAX_PICTURES,
                    tooltip="Which picture, counted as in the node that read them; each of a batch counts.",
                ),
                io.Float.Input(
                    "keep",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of its tokens that stay, evenly spread, the thumbnail's to the last. Small shares keep what "
                    "is there and let its place and details vary; at 0 only words speak of the picture.",
                ),
                io.Int.Input(
                    "gain",
                    default=1,
                    min=1,
                    max=8,
                    tooltip="How often each token stands there: 2 doubles its weight in the attention, and what its tokens "
                    "cost. 1 is as the VLM gave them.",
                ),
            ],
            outputs=[
                FeaturesSocket.Output(
                    "features",
                    display_name="features",
                    tooltip="For Pool UniFusion Features, or the next picture's strength.",
                )
            ],
        )

    @classmethod
    def execute(cls, features: Encoded, picture: int, keep: float, gain: int) -> io.NodeOutput:
        from ..unifusion_core.vlm.image_strength import with_strength

        changed = with_strength(
            features.features,
            picture,
            keep=keep,
            gain=gain,
            thumbnail_last=features.spec.template.thumbnail_last,
        )
        return io.NodeOutput(replace(features, features=changed))
