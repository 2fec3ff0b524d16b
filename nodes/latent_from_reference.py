"""UniFusionLatentFromReference: an empty latent in the size of a picture, so that an edit does not drift."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .comfy import host
from .sockets import CATEGORY

OWN, FITTED = "own size", "at most max_megapixels"


class UniFusionLatentFromReference(io.ComfyNode):
    """The size of a drawing that takes a picture's place."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLatentFromReference",
            display_name="UniFusion Latent from Reference",
            category=CATEGORY,
            description="An empty latent in the size of a picture: draw an edit in its picture's own size, and what is not "
            "changed stays in its place. Sides are rounded to multiples of 8, nothing is resized.",
            search_aliases=["unifusion", "empty latent", "image size", "reference", "edit"],
            inputs=[
                io.Image.Input("picture", tooltip="The picture that is edited; of a batch, the first."),
                io.Combo.Input(
                    "size_policy",
                    options=[OWN, FITTED],
                    default=OWN,
                    tooltip="The picture's own size, or its shape with no more pixels than max_megapixels.",
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
    def execute(cls, picture: Tensor, size_policy: str, max_megapixels: float) -> io.NodeOutput:
        limit = max_megapixels * 1e6 if size_policy == FITTED else None
        latent, (width, height) = host.empty_latent_for(picture[0].movedim(-1, 0), limit)
        return io.NodeOutput(latent, width, height)
