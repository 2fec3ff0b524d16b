"""UniFusionVLMLoader: a VLM folder, or the embedded one, as a CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .comfy import host
from .comfy.clip import load_clip
from .comfy.krea2 import vlm_spec
from .sockets import CATEGORY


class UniFusionVLMLoader(io.ComfyNode):
    """The frozen vision-language model that reads prompts and pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionVLMLoader",
            display_name="Load UniFusion VLM",
            category=CATEGORY,
            description="Loads the vision-language model that reads prompts and pictures for a UniFusion model.",
            search_aliases=["unifusion", "load clip", "text encoder", "internvl", "qwen vl"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=host.vlm_names(),
                    default=host.BUILT_IN,
                    tooltip="A folder in models/vlm with the files of a Hugging Face model (config.json, tokenizer, "
                    "safetensors), or the small VLM that comes with the pack. Take the one the model was trained with.",
                ),
                io.Model.Input(
                    "model",
                    tooltip="The model from Load UniFusion Model, or a Krea 2 model from ComfyUI's own loader: it says which "
                    "layers of the VLM it reads, and how a prompt is laid out. LoRAs make no difference here.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[name for name in host.WEIGHT_TYPES if not name.startswith("fp8")],
                    default="default",
                    advanced=True,
                    tooltip="How weights are kept in memory. 'default' is bf16 on graphics cards that can, else fp32.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode, Encode for UniFusion and Generate Text.")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        names = host.vlm_names()
        if (
            folder is None or folder in names
        ):  # None: a wire brings it, and it is looked for when the node runs
            return True
        return host.missing(str(folder), "models/vlm", names)

    @classmethod
    def execute(cls, folder: str, model: Any, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_clip(host.vlm_path(str(folder)), vlm_spec(model), dtype))
