"""UniFusionVerifiRewrite: the VLM writes what the picture shall show, and its states while writing become the features."""

from __future__ import annotations

from typing import Any, Literal

from comfy_api.latest import io, ui
from torch import Tensor

from ..unifusion_core.contracts import RewriteStates
from ..unifusion_core.vlm.styles import STYLES
from .comfy.clip import AUTOMATIC, rewrite
from .encode import connected, max_tiles_input, pictures_input
from .sockets import CATEGORY, FeaturesSocket


class UniFusionVerifiRewrite(io.ComfyNode):
    """Rewrite and encode in one pass of the VLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionVerifiRewrite",
            display_name="Rewrite for UniFusion (VERIFI)",
            category=CATEGORY,
            description="The VLM reads prompt and pictures, writes down what the new picture shows, and hands over its states "
            "while writing: the picture is drawn by the rewrite, with the pictures still in view.",
            search_aliases=[
                "unifusion",
                "verifi",
                "rewrite",
                "prompt enhancer",
                "prompt upsampling",
                "edit",
                "vlm",
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
                    tooltip="What to draw, or what to change in the pictures, in your own words.",
                ),
                pictures_input(),
                max_tiles_input(),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default=next(iter(STYLES)),
                    tooltip="How the VLM rewrites. 'caption' is the way the model was trained with; 'keep everything else' "
                    "is for edits of a picture.",
                ),
                io.String.Input(
                    "own_style",
                    default="",
                    advanced=True,
                    tooltip="What to tell the VLM before the prompt, in your own words, in place of the style: "
                    "'make everything red.'",
                ),
                io.String.Input(
                    "locked_text",
                    multiline=True,
                    default="",
                    tooltip="Your own rewrite, used word by word. Copy the rewrite here, change a word, and the picture "
                    "follows. Empty: the VLM writes.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Another seed, another wording, if the temperature is above 0.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    round=0.01,
                    tooltip="0 writes the likeliest words; more varies them.",
                ),
                io.Int.Input(
                    "max_new_tokens",
                    default=128,
                    min=1,
                    max=4096,
                    advanced=True,
                    tooltip="A rewrite that has not ended by then is refused, since half a description draws half a picture.",
                ),
                io.Combo.Input(
                    "states",
                    options=[AUTOMATIC, "one_pass", "reencode"],
                    default=AUTOMATIC,
                    advanced=True,
                    tooltip="one_pass: the VLM's states while it writes. reencode: the rewrite is read anew as a prompt, for "
                    "models that never saw the former. 'automatic' is what the model was trained with.",
                ),
            ],
            outputs=[
                FeaturesSocket.Output(
                    "features", display_name="features", tooltip="For Pool UniFusion Features."
                ),
                io.String.Output("rewrite", display_name="rewrite", tooltip="What the VLM wrote."),
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0917  (ComfyUI calls with names)
        cls,
        clip: Any,
        prompt: str,
        max_tiles: int,
        style: str,
        own_style: str,
        locked_text: str,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        states: RewriteStates | Literal["automatic"],
        pictures: dict[str, Tensor] | None = None,
    ) -> io.NodeOutput:
        encoded, text = rewrite(
            clip,
            prompt,
            connected(pictures),
            max_tiles,
            style=own_style.strip() or style,
            locked_text=locked_text,
            states=states,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        return io.NodeOutput(encoded, text, ui=ui.PreviewText(text))
