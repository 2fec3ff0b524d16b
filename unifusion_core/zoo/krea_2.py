"""Krea 2's open weights (12.9B parameters), raw and turbo alike: a single-stream DiT on Qwen3-VL-4B, with LAP and refiner inside.

Its files carry no configuration, so names and shapes of the weights tell it. Facts from Krea 2's public code.
"""

from __future__ import annotations

from dataclasses import replace

from ..contracts import ChatTemplate, VLMSpec
from ..errors import CheckpointError, ConfigError
from ..models.dit import DiTConfig
from ..models.lap import LAPConfig
from ..models.unifusion import UniFusionConfig
from .spec import GeneratorSpec, SamplingDefaults, Shapes

# Krea 2 reads every third layer of its VLM, from the second on
_TAP_STEP, _FIRST_TAP = 3, 2

_CONFIG = UniFusionConfig(
    vlm=VLMSpec(
        family="qwen3_vl",
        hidden_size=2560,
        num_layers=36,
        taps=tuple(range(_FIRST_TAP, 36, _TAP_STEP)),
        template=ChatTemplate(
            prefix=(
                "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
                "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
            ),
            suffix="<|im_end|>\n<|im_start|>assistant\n",
            end="<|im_end|>",
            image_prefix="<|vision_start|>",
            image_token="<|image_pad|>",
            image_suffix="<|vision_end|>",
        ),
        token_selection="prompt",
    ),
    lap=LAPConfig(num_heads=20, mlp_size=6912),
    dit=DiTConfig(
        hidden_size=6144, num_blocks=28, num_heads=48, num_kv_heads=12, mlp_size=16384, latent_channels=16
    ),
    condition_attention="joint",
    text_positions="zero",
    image_positions="zero",
    latent_format="qwen-image",
)


def _recognize(shapes: Shapes) -> UniFusionConfig | None:
    """Krea 2's layout in the size that the weights have; for its own files exactly `_CONFIG`.

    What shapes do not tell is Krea 2's: patches of 2 x 2, rotary frequencies, every third layer of the VLM.
    """
    if "txtfusion.projector.weight" not in shapes:
        return None

    def count(stack: str) -> int:
        return len({name.split(".")[stack.count(".") + 1] for name in shapes if name.startswith(f"{stack}.")})

    def heads(attention: str, projection: str) -> int:
        return shapes[f"{attention}.{projection}.weight"][0] // shapes[f"{attention}.qknorm.qnorm.scale"][0]

    lap, block = "txtfusion.layerwise_blocks", "blocks.0"
    try:
        num_layers = _TAP_STEP * shapes["txtfusion.projector.weight"][1]
        return replace(
            _CONFIG,
            vlm=replace(
                _CONFIG.vlm,
                hidden_size=shapes[f"{lap}.0.prenorm.scale"][0],
                num_layers=num_layers,
                taps=tuple(range(_FIRST_TAP, num_layers, _TAP_STEP)),
            ),
            lap=LAPConfig(
                num_heads=heads(f"{lap}.0.attn", "wq"),
                mlp_size=shapes[f"{lap}.0.mlp.gate.weight"][0],
                num_layer_blocks=count(lap),
                num_refiner_blocks=count("txtfusion.refiner_blocks"),
            ),
            dit=DiTConfig(
                hidden_size=shapes[f"{block}.prenorm.scale"][0],
                num_blocks=count("blocks"),
                num_heads=heads(f"{block}.attn", "wq"),
                num_kv_heads=heads(f"{block}.attn", "wk"),
                mlp_size=shapes[f"{block}.mlp.gate.weight"][0],
                latent_channels=shapes["last.linear.bias"][0] // _CONFIG.dit.patch_size**2,
                time_size=shapes["tmlp.0.weight"][1],
            ),
        )
    except KeyError as error:
        raise CheckpointError(
            f"the weight {error} is missing, without which Krea 2's size is unknown"
        ) from error
    except (ConfigError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the shapes are not those of Krea 2 ({error})") from error


KREA_2 = GeneratorSpec(
    name="krea-2",
    title="Krea 2 generator (raw or turbo, which no file tells)",
    config=_CONFIG,
    recognize=_recognize,
    # no file tells which of the two it is: the user does, by the schedule
    sampling={
        "turbo": SamplingDefaults(schedule="krea-2 turbo", steps=8, cfg=1.0),
        "raw": SamplingDefaults(schedule="krea-2 raw", steps=28, cfg=5.5),
    },
    size=(1024, 1024),
    rewrites=False,
    # a large VLM describes at length
    max_new_tokens=512,
    trained_on_rewrites=False,
    vae_hint="the folder vae/ of its diffusers repository",
    comfy_latent_format="Wan21",
    trained_tokens=512,
    unused=frozenset({"last.down", "last.up"}),
    limits=(
        "It was trained on text alone: it has never seen image tokens, so images reach it untrained.",
        "It has never seen states of the assistant's turn, so a rewrite is encoded as the prompt.",
        "Its files do not tell raw from turbo; choose the schedule.",
    ),
)
