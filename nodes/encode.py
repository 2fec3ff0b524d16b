"""UniFusionImageEncode: a prompt and images to VLM features, with the prompt as it is."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from .comfy.clip import BatchUse, encode, tiles_of
from .sockets import FeaturesSocket

MAX_PICTURES = 10


def pictures_input() -> Any:
    """The input for up to `MAX_PICTURES` images; ComfyUI adds a socket when the last one is connected."""
    picture = io.Image.Input(
        "picture", tooltip="An image that the prompt refers to. A batch counts as several images."
    )
    names = [f"picture_{number}" for number in range(1, MAX_PICTURES + 1)]
    return io.Autogrow.Input(
        "pictures",
        template=io.Autogrow.TemplateNames(picture, names=names, min=0),
        optional=True,
        tooltip="Optional images, in the order in which the prompt counts them.",
    )


def max_tiles_input() -> Any:
    """The input for the resolution at which the VLM gets images."""
    return io.Int.Input(
        "max_tiles",
        default=10,
        min=1,
        max=40,
        tooltip="Maximum number of tiles per image, including the thumbnail. More tiles keep finer detail and take longer; "
        "1 = thumbnail only.",
    )


def batch_input() -> Any:
    """The input for what the images of a batch become."""
    return io.Combo.Input(
        "batch",
        options=list(get_args(BatchUse)),
        default=get_args(BatchUse)[0],
        optional=True,
        tooltip="The pictures of a batch: 'all in one prompt' = the prompt is about all of them; 'one prompt each' = the same "
        "prompt for each, such as one edit per picture. A single picture beside a batch is in every prompt.",
    )


def connected(pictures: dict[str, Tensor] | None) -> list[Tensor]:
    """The images connected to `pictures_input`, in order."""
    return [images for images in (pictures or {}).values() if images is not None]


class UniFusionImageEncode(io.ComfyNode):
    """Encodes images and prompt in one causal pass of the VLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionImageEncode",
            display_name="Encode for UniFusion",
            category="conditioning/UniFusion",
            description="Encodes a prompt, and any images, with the VLM. The prompt is used as it is: it should describe "
            "the image to generate. For an instruction about an image ('make the circle green') use Rewrite for UniFusion "
            "(VERIFI).",
            search_aliases=[
                "unifusion",
                "text encode",
                "image encode",
                "prompt",
                "reference",
                "image to prompt",
            ],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The VLM from Load UniFusion VLM; for Krea 2 also Qwen3-VL-4B from Load CLIP, type krea2.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="Description of the image to generate, used as it is. Usually empty for the negative side.",
                ),
                pictures_input(),
                max_tiles_input(),
                batch_input(),
            ],
            outputs=[
                FeaturesSocket.Output(
                    "features",
                    display_name="features",
                    tooltip="Hidden states of the VLM's layers, for Pool UniFusion Features.",
                ),
                io.Image.Output(
                    "tiles",
                    display_name="tiles",
                    tooltip="The tiles that the VLM gets; one gray tile if there are no images.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        prompt: str,
        max_tiles: int,
        pictures: dict[str, Tensor] | None = None,
        batch: BatchUse = "all in one prompt",
    ) -> io.NodeOutput:
        chats, encoded = encode(clip, prompt, connected(pictures), max_tiles, batch)
        return io.NodeOutput(encoded, tiles_of(chats))
