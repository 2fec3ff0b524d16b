"""UniFusionLoraLoader: a LoRA file of any layout on a MODEL, with the counts of its used and unused keys."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .comfy import host
from .comfy.lora import lora_names, lora_path, with_adapter


class UniFusionLoraLoader(io.ComfyNode):
    """Applies an adapter file, and says how much of it was used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionLoraLoader",
            display_name="Load LoRA for UniFusion",
            category="loaders/UniFusion",
            description="Applies a LoRA, LoKr, LoHa or DoRA to a UniFusion or Krea 2 model, and says how many of its keys were "
            "used. It reads layouts that Load LoRA leaves out or loads in part: fused qkv, every prefix, peft's DoRA.",
            search_aliases=["unifusion", "lora", "load lora", "lokr", "loha", "dora", "lycoris", "krea lora"],
            inputs=[
                io.Model.Input("model", tooltip="A UniFusion model, or ComfyUI's own Krea 2."),
                io.Combo.Input(
                    "lora",
                    options=lora_names(),
                    tooltip="A file in models/loras. It must have been trained on this model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Factor on the change. 0 = without the LoRA, negative values turn it around.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA."),
                io.String.Output(
                    "report", display_name="report", tooltip="The counts of used and unused keys."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None) -> bool | str:
        # None: the value comes from a link and is checked when the node runs
        names = lora_names()
        if lora is None or lora in names:
            return True
        return host.missing(str(lora), "models/loras", names)

    @classmethod
    def execute(cls, model: Any, lora: str, strength: float) -> io.NodeOutput:
        changed, report = with_adapter(model, lora_path(lora), strength)
        return io.NodeOutput(changed, report, ui=ui.PreviewText(report))
