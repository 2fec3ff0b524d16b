"""UniFusionModelLoader: a generator file as a MODEL."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy import host
from .comfy.loading import load_model


class UniFusionModelLoader(io.ComfyNode):
    """Loads LAP, refiner and DiT from one file of UniFusion or Krea 2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionModelLoader",
            display_name="Load UniFusion Model",
            category="loaders/UniFusion",
            description="Loads a UniFusion generator (layer pooling, refiner and diffusion transformer in one file) or a Krea 2 "
            "file as downloaded (raw or turbo; bf16, fp8, int8, mxfp8 or nvfp4).",
            search_aliases=["unifusion", "load diffusion model", "unet loader", "krea"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.generator_names(),
                    default=host.BUILT_IN,
                    tooltip="A UniFusion or Krea 2 file in models/diffusion_models or models/checkpoints, or the small model "
                    "that comes with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(host.WEIGHT_TYPES),
                    default="default",
                    advanced=True,
                    tooltip="Type of the weights in memory. 'default' is chosen for your device. fp8_e4m3fn needs half the "
                    "memory of 16 bits and loses some quality. Quantised files keep their type.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler, LoRA loader or saving node.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        names = host.generator_names()
        # None: the value comes from a link and is checked when the node runs
        if file is None or file in names:
            return True
        return host.missing(str(file), "models/diffusion_models", names)

    @classmethod
    def execute(cls, file: str, weight_dtype: host.WeightType) -> io.NodeOutput:
        return io.NodeOutput(load_model(host.generator_path(str(file)), weight_dtype))
