"""UniFusionVLMLoader: a VLM folder as a CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .comfy import host
from .comfy.clip import load_clip
from .comfy.krea2 import generator_spec, vlm_spec


class UniFusionVLMLoader(io.ComfyNode):
    """Loads the frozen vision-language model, UniFusion's only encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionVLMLoader",
            display_name="Load UniFusion VLM",
            category="loaders/UniFusion",
            description="Loads the frozen vision-language model (VLM) that encodes prompts and images for a UniFusion model.",
            search_aliases=["unifusion", "load clip", "text encoder", "internvl", "qwen vl"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=host.vlm_names(),
                    default=host.BUILT_IN,
                    tooltip="A folder in models/vlm with the files of a Hugging Face model (config.json, tokenizer, "
                    "safetensors), or the small VLM that comes with the pack. Use the VLM that the model was trained with.",
                ),
                io.Model.Input(
                    "model",
                    tooltip="The model from Load UniFusion Model, or a Krea 2 model from ComfyUI's own loader. It "
                    "determines which layers of the VLM are used and the chat template. LoRAs have no effect here.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[name for name in host.WEIGHT_TYPES if not name.startswith("fp8")],
                    default="default",
                    advanced=True,
                    tooltip="Type of the weights in memory. 'default' is bf16 on GPUs that support it, else fp32; small "
                    "VLMs use fp32.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    tooltip="For Encode or Rewrite for UniFusion, CLIP Text Encode and Generate Text."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        names = host.vlm_names()
        # None: the value comes from a link and is checked when the node runs
        if folder is None or folder in names:
            return True
        return host.missing(str(folder), "models/vlm", names)

    @classmethod
    def execute(cls, folder: str, model: Any, dtype: host.WeightType) -> io.NodeOutput:
        path = host.vlm_path(str(folder))
        return io.NodeOutput(load_clip(path, vlm_spec(model), generator_spec(model), dtype))
