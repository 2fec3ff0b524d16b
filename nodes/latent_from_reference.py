"""UniFusionLatentFromReference: an empty latent in the size of an image, so that an edit keeps unchanged parts in place."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .comfy import host


class UniFusionLatentFromReference(io.ComfyNode):
    """An empty latent for an edit of an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLatentFromReference",
            display_name="UniFusion Latent from Reference",
            category="latent/UniFusion",
            description="An empty latent in the size of an image. An edit sampled in its image's own size keeps unchanged "
            "parts in place. Sides are rounded to multiples of 8; the image itself is neither resized nor encoded.",
            search_aliases=["unifusion", "empty latent", "image size", "reference", "edit", "image edit"],
            inputs=[
                io.Image.Input("picture", tooltip="The image to edit; of a batch, the first."),
                io.Combo.Input(
                    "size_policy",
                    options=list(host.SIZE_POLICIES),
                    default=host.SIZE_POLICIES[0],
                    tooltip="The image's own size, or its aspect ratio with no more pixels than max_megapixels.",
                ),
                io.Float.Input(
                    "max_megapixels",
                    default=1.0,
                    min=0.01,
                    max=16.0,
                    step=0.05,
                    advanced=True,
                    tooltip="The limit for 'at most max_megapixels', in millions of pixels.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="For the UniFusion Sampler or KSampler."),
                io.Int.Output("width", display_name="width", tooltip="In pixels."),
                io.Int.Output("height", display_name="height", tooltip="In pixels."),
            ],
        )

    @classmethod
    def execute(cls, picture: Tensor, size_policy: host.SizePolicy, max_megapixels: float) -> io.NodeOutput:
        return io.NodeOutput(*host.latent_from_reference(picture, size_policy, max_megapixels))
