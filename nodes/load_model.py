"""UniFusionModelLoader: a generator file, Krea 2's among them, or the embedded one, as a MODEL."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy import host
from .comfy.loading import load_model
from .sockets import CATEGORY


class UniFusionModelLoader(io.ComfyNode):
    """LAP, refiner and DiT: one file, one MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionModelLoader",
            display_name="Load UniFusion Model",
            category=CATEGORY,
            description="Loads a UniFusion generator (layer pooling, refiner and diffusion transformer in one file), or a file "
            "of Krea 2 as it is downloaded (raw or turbo, bf16 or fp8).",
            search_aliases=["unifusion", "load diffusion model", "unet loader", "krea"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.generator_names(),
                    default=host.BUILT_IN,
                    tooltip="A UniFusion or Krea 2 file in models/diffusion_models, or the small model that comes with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(host.WEIGHT_TYPES),
                    default="default",
                    advanced=True,
                    tooltip="How weights are kept in memory. 'default' suits your graphics card; fp8_e4m3fn halves the "
                    "memory of 16 bit and costs some quality. Files that are fp8 with scales stay as they are.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For KSampler and every other sampler, LoRA loader or saving node.")
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        names = host.generator_names()
        if file is None or file in names:  # None: a wire brings it, and it is looked for when the node runs
            return True
        return host.missing(str(file), "models/diffusion_models", names)

    @classmethod
    def execute(cls, file: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(host.generator_path(str(file)), weight_dtype))
