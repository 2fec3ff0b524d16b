"""UniFusionLatentFromReference: a latent in the size of an image, so that an edit keeps unchanged parts in place."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .comfy.latents import SIZE_POLICIES, SizePolicy, latent_from_reference


class UniFusionLatentFromReference(io.ComfyNode):
    """A latent for an edit of an image, or of a region of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLatentFromReference",
            display_name="UniFusion Latent from Reference",
            category="latent/UniFusion",
            description="A latent in the size of an image. An edit sampled in its image's own size keeps unchanged parts in "
            "place. With vae and mask only the masked region is drawn. Sides are rounded to multiples of 8.",
            search_aliases=[
                "unifusion",
                "empty latent",
                "image size",
                "reference",
                "edit",
                "image edit",
                "inpaint",
                "region",
            ],
            inputs=[
                io.Image.Input(
                    "picture",
                    tooltip="The image to edit; of a batch, the first. With a vae, every image of a batch.",
                ),
                io.Combo.Input(
                    "size_policy",
                    options=list(SIZE_POLICIES),
                    default=SIZE_POLICIES[0],
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
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Encodes the image into the latent, as VAE Encode does: for a mask, or for a denoise below 1. Not "
                    "connected = an empty latent.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The region that the edit may change, as with Set Latent Noise Mask. Needs the vae.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="For the UniFusion Sampler or KSampler."),
                io.Int.Output("width", display_name="width", tooltip="In pixels."),
                io.Int.Output("height", display_name="height", tooltip="In pixels."),
            ],
        )

    @classmethod
    def execute(
        cls,
        picture: Tensor,
        size_policy: SizePolicy,
        max_megapixels: float,
        vae: Any = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(*latent_from_reference(picture, size_policy, max_megapixels, vae, mask))
