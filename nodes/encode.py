"""UniFusionImageEncode: a prompt and pictures as the VLM sees them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .comfy.clip import encode, tiles_of
from .sockets import CATEGORY, FeaturesSocket

MAX_PICTURES = 10


def pictures_input() -> Any:
    """The input for any number of pictures; a new socket appears with each one connected."""
    picture = io.Image.Input(
        "picture", tooltip="A picture the prompt speaks of. A batch counts as several pictures."
    )
    names = [f"picture_{number}" for number in range(1, MAX_PICTURES + 1)]
    return io.Autogrow.Input(
        "pictures",
        template=io.Autogrow.TemplateNames(picture, names=names, min=0),
        optional=True,
        tooltip="Pictures in the order in which the prompt counts them; none are needed.",
    )


def max_tiles_input() -> Any:
    """The input for how finely pictures are read."""
    return io.Int.Input(
        "max_tiles",
        default=10,
        min=1,
        max=40,
        tooltip="How many tiles the VLM gets of each picture, the thumbnail included. More show finer "
        "detail and take longer; 1 is the thumbnail alone.",
    )


def connected(pictures: dict[str, Tensor] | None) -> list[Tensor]:
    """What is wired to `pictures_input`, in order."""
    return [images for images in (pictures or {}).values() if images is not None]


class UniFusionImageEncode(io.ComfyNode):
    """One causal pass of the VLM over pictures and prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionImageEncode",
            display_name="Encode for UniFusion",
            category=CATEGORY,
            description="Reads a prompt, and any pictures it speaks of, with the VLM.",
            search_aliases=["unifusion", "text encode", "image encode", "prompt", "edit", "reference"],
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
                    tooltip="What to draw, or what to change in the pictures. May be empty, as the negative side often "
                    "is.",
                ),
                pictures_input(),
                max_tiles_input(),
            ],
            outputs=[
                FeaturesSocket.Output(
                    "features", display_name="features", tooltip="For Pool UniFusion Features."
                ),
                io.Image.Output(
                    "tiles",
                    display_name="tiles",
                    tooltip="The tiles as the VLM sees them; one gray tile if there is no picture.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Any, prompt: str, max_tiles: int, pictures: dict[str, Tensor] | None = None
    ) -> io.NodeOutput:
        tokens, encoded = encode(clip, prompt, connected(pictures), max_tiles)
        return io.NodeOutput(encoded, tiles_of(tokens))
