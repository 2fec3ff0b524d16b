"""The embedded model: trained from scratch on coloured shapes by this repository (shapes/README.md)."""

from __future__ import annotations

from pathlib import Path

from ..contracts import ChatTemplate, VLMSpec
from ..errors import CheckpointError
from ..models.dit import DiTConfig
from ..models.lap import LAPConfig
from ..models.unifusion import UniFusionConfig
from ..vlm.styles import STYLES
from .spec import BuiltIn, GeneratorSpec, SamplingDefaults, Shapes
from .tiny_limits import outside_of_tiny

_NAME = "unifusion-tiny-1"
_WEIGHTS = Path(__file__).parents[1] / "weights"
_SIZES = ((128, 128), (160, 112), (112, 160))

BUILT_IN = BuiltIn(
    name=_NAME,
    generator=_WEIGHTS / f"{_NAME}.safetensors",
    vlm=_WEIGHTS / f"{_NAME}-vlm",
    # alone in its folder, which ComfyUI's VAELoader lists
    vae=_WEIGHTS / "vae" / f"{_NAME}-vae.safetensors",
)


def _without_configuration(shapes: Shapes) -> None:
    """Raises CheckpointError for weights in the embedded model's sizes. Their names are Krea 2's, and shapes do not tell taps,
    positions and template."""
    own = TINY.config
    if (
        shapes.get("blocks.0.prenorm.scale") == (own.dit.hidden_size,)
        and shapes.get("txtfusion.layerwise_blocks.0.prenorm.scale") == (own.vlm.hidden_size,)
        and shapes.get("txtfusion.projector.weight") == (1, len(own.vlm.taps))
    ):
        raise CheckpointError(
            "it has the sizes of the embedded model and no configuration, which another program has dropped: use the file as "
            'UniFusion or ComfyUI\'s Save Model wrote it, or the embedded model ("tiny"). It is no Krea 2 file'
        )


TINY = GeneratorSpec(
    name="tiny",
    title="UniFusion generator",
    config=UniFusionConfig(
        vlm=VLMSpec(
            family="internvl",
            hidden_size=160,
            num_layers=6,
            # tap 0, the embeddings, keeps the word itself in view: later states hold the VLM's prediction of the next word
            taps=(0, 1, 2, 3, 5),
            template=ChatTemplate(
                prefix="<|system|>describe the target picture.<|user|>",
                suffix="<|assistant|>",
                end="<|end|>",
                image_prefix="<img>",
                image_token="<IMG_CONTEXT>",
                image_suffix="</img>",
            ),
            token_selection="rewrite",
        ),
        lap=LAPConfig(num_heads=5, mlp_size=384),
        dit=DiTConfig(
            hidden_size=192, num_blocks=6, num_heads=4, num_kv_heads=4, mlp_size=512, latent_channels=16
        ),
        condition_attention="prefix",
        trained_sizes=_SIZES,
    ),
    # nearly everything is decided near t = 1, so the schedule spends its steps there
    sampling={"": SamplingDefaults(schedule="shift 3", steps=20, cfg=2.0)},
    size=_SIZES[0],
    recognize=_without_configuration,
    rewrites=True,
    # its captions have at most 50 tokens
    max_new_tokens=128,
    trained_on_rewrites=True,
    vae_hint="the one that comes with the package",
    outside=outside_of_tiny,
    # of 300 German scenes it translates none (suite `german`)
    styles=tuple(style for style in STYLES if style != "translate to English"),
    # of 16 scenes, 13 are exact without it and at 0.01, 11 at 0.02, 9 at 0.05, none at the default 0.2
    comfy_easy_cache=0.01,
    limits=(
        "It draws coloured shapes on flat backgrounds, nothing else.",
        "It was trained on three sizes: 128 x 128, 160 x 112 and 112 x 160 pixels.",
    ),
    built_in=BUILT_IN,
)
