"""UniFusionVerifiRewrite: a prompt or an instruction about images to a rewrite, and to the features of that rewrite (VERIFI)."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io, ui
from torch import Tensor

from ..unifusion_core.contracts import CutOff, RewriteStates
from ..unifusion_core.vlm.styles import STYLES
from .comfy.clip import BatchUse, StatesChoice, rewrite
from .comfy.host import AUTOMATIC
from .encode import batch_input, connected, max_tiles_input, pictures_input
from .sockets import FeaturesSocket


class UniFusionVerifiRewrite(io.ComfyNode):
    """Rewrites the prompt and encodes the rewrite, by default in the same pass of the VLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFusionVerifiRewrite",
            display_name="Rewrite for UniFusion (VERIFI)",
            category="conditioning/UniFusion",
            description="The VLM turns the prompt, or an instruction about images ('make the circle green'), into a "
            "description of the image to generate. The hidden states of that rewrite become the features. Encode for "
            "UniFusion uses the prompt as it is.",
            search_aliases=[
                "unifusion",
                "image edit",
                "kontext",
                "qwen edit",
                "describe",
                "caption",
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
                    tooltip="What to generate, or what to change in the images.",
                ),
                pictures_input(),
                max_tiles_input(),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default=next(iter(STYLES)),
                    tooltip="Text prepended to the prompt; 'caption' = as in training. 'keep everything else' is for "
                    "editing an image.",
                ),
                io.String.Input(
                    "own_style",
                    default="",
                    advanced=True,
                    tooltip="Your own text to prepend to the prompt instead of the style, such as 'make everything red.'",
                ),
                io.String.Input(
                    "locked_text",
                    multiline=True,
                    default="",
                    tooltip="Your own rewrite, used word for word. To correct a rewrite, copy it here and change it. Empty "
                    "= the VLM writes it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the rewrite. Has an effect only above temperature 0.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    round=0.01,
                    tooltip="Sampling temperature of the rewrite. 0 = the most likely words; higher values vary the wording.",
                ),
                io.Int.Input(
                    "max_new_tokens",
                    default=128,
                    min=1,
                    max=4096,
                    advanced=True,
                    tooltip="Maximum length of the rewrite in tokens. cut_off says what happens to a longer one.",
                ),
                io.Combo.Input(
                    "states",
                    options=[AUTOMATIC, *get_args(RewriteStates)],
                    default=AUTOMATIC,
                    advanced=True,
                    tooltip="Source of the hidden states. one_pass: the pass that writes the rewrite. reencode: a second "
                    "pass with the rewrite as the prompt, for models that were not trained on rewrites. 'automatic' = as "
                    "the model was trained.",
                ),
                io.Combo.Input(
                    "cut_off",
                    options=list(get_args(CutOff)),
                    default=get_args(CutOff)[0],
                    optional=True,
                    advanced=True,
                    tooltip="A rewrite that reaches max_new_tokens: 'refuse' = an error that shows what was written, because "
                    "cutting drops content; 'whole sentences' = used up to its last whole sentence.",
                ),
                batch_input(),
            ],
            outputs=[
                FeaturesSocket.Output(
                    "features",
                    display_name="features",
                    tooltip="Hidden states of the images and of the rewrite, for Pool UniFusion Features.",
                ),
                io.String.Output(
                    "rewrite",
                    display_name="rewrite",
                    tooltip="The text of the rewrite; of several prompts, one after the other, with an empty line between.",
                ),
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
        states: StatesChoice,
        pictures: dict[str, Tensor] | None = None,
        cut_off: CutOff = "refuse",
        batch: BatchUse = "all in one prompt",
    ) -> io.NodeOutput:
        encoded, texts = rewrite(
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
            cut_off=cut_off,
            batch=batch,
        )
        text = "\n\n".join(texts)
        return io.NodeOutput(encoded, text, ui=ui.PreviewText(text))
