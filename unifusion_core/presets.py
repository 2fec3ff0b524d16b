"""The sizes that UniFusion comes in, and what each of them draws best with: numbers only, one architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .contracts import ChatTemplate, VLMSpec
from .errors import CheckpointError, ConfigError
from .models.dit import DiTConfig
from .models.lap import LAPConfig
from .models.unifusion import UniFusionConfig
from .vlm.template import TINY_VLM
from .world.scenes import ASPECT_SIZES

TINY = UniFusionConfig(
    vlm=TINY_VLM,
    lap=LAPConfig(num_heads=5, mlp_size=384),
    dit=DiTConfig(
        hidden_size=192, num_blocks=6, num_heads=4, num_kv_heads=4, mlp_size=512, latent_channels=16
    ),
    condition_attention="prefix",
    trained_sizes=ASPECT_SIZES,
)
"""The embedded model: trained from scratch by this repository's recipes."""

KREA_2 = UniFusionConfig(
    vlm=VLMSpec(
        family="qwen3_vl",
        hidden_size=2560,
        num_layers=36,
        taps=tuple(range(2, 36, 3)),
        template=ChatTemplate(
            prefix=(
                "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
                "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
            ),
            suffix="<|im_end|>\n<|im_start|>assistant\n",
            end="<|im_end|>",
            picture_prefix="<|vision_start|>",
            picture_token="<|image_pad|>",
            picture_suffix="<|vision_end|>",
        ),
        kept_tokens="after_prefix",
    ),
    lap=LAPConfig(num_heads=20, mlp_size=6912),
    dit=DiTConfig(
        hidden_size=6144, num_blocks=28, num_heads=48, num_kv_heads=12, mlp_size=16384, latent_channels=16
    ),
    condition_attention="joint",
    text_positions="zero",
    picture_positions="zero",
    latent_format="qwen-image",
)
"""Krea 2's open weights (12.9B), raw and turbo alike."""


def is_krea_2(names: Iterable[str]) -> bool:
    """Whether weights without a UniFusion configuration have the names of Krea 2's."""
    return "txtfusion.projector.weight" in names


def krea_2_of(shapes: Mapping[str, tuple[int, ...]]) -> UniFusionConfig:
    """Krea 2's layout in the size that the weights have: for its own files exactly `KREA_2`.

    What shapes do not tell is Krea 2's: patches of 2 x 2, rotary frequencies, every third layer of the VLM from the second on.

    Raises CheckpointError if a weight that tells a number is missing, or if the numbers do not fit together.
    """

    def count(stack: str) -> int:
        return len({name.split(".")[stack.count(".") + 1] for name in shapes if name.startswith(f"{stack}.")})

    def heads(attention: str, projection: str) -> int:
        return shapes[f"{attention}.{projection}.weight"][0] // shapes[f"{attention}.qknorm.qnorm.scale"][0]

    lap, block = "txtfusion.layerwise_blocks", "blocks.0"
    try:
        num_taps = shapes["txtfusion.projector.weight"][1]
        return replace(
            KREA_2,
            vlm=replace(
                KREA_2.vlm,
                hidden_size=shapes[f"{lap}.0.prenorm.scale"][0],
                num_layers=3 * num_taps,
                taps=tuple(range(2, 3 * num_taps, 3)),
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
                latent_channels=shapes["last.linear.bias"][0] // KREA_2.dit.patch_size**2,
                time_size=shapes["tmlp.0.weight"][1],
            ),
        )
    except KeyError as error:
        raise CheckpointError(
            f"the weight {error} is missing, without which Krea 2's size is unknown"
        ) from error
    except (ConfigError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the shapes are not those of Krea 2 ({error})") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """What a model draws best with."""

    schedule: str  # a name of flow.schedule
    steps: int
    cfg: float  # 1 = no guidance; Krea's own scale counts from 0
    size: tuple[int, int]  # width, height in pixels


DRAWINGS = {
    drawing.schedule: drawing
    for drawing in (
        # the embedded model decides nearly everything near t = 1
        Drawing(schedule="shift 3", steps=20, cfg=2.0, size=ASPECT_SIZES[0]),
        Drawing(schedule="krea-2 turbo", steps=8, cfg=1.0, size=(1024, 1024)),
        Drawing(schedule="krea-2 raw", steps=28, cfg=5.5, size=(1024, 1024)),
    )
}
"""By schedule. No Krea 2 file tells whether it is raw or turbo: the user does, by the schedule."""

DRAWN_WITH = {
    "unifusion-tiny": DRAWINGS["shift 3"],
    "qwen-image": DRAWINGS["krea-2 turbo"],
}
"""By `UniFusionConfig.latent_format`: what is taken if the user does not choose."""


def drawing_for(config: UniFusionConfig, schedule: str | None = None) -> Drawing:
    """What belongs to a schedule of the user's, or what the generator draws best with, in its own size. Raises ConfigError for a
    latent format of another version."""
    usual = DRAWN_WITH.get(config.latent_format)
    if usual is None:
        raise ConfigError(
            f'the model draws latents of format "{config.latent_format}", this version knows {", ".join(DRAWN_WITH)}: '
            "update the pack"
        )
    return (
        usual
        if schedule is None
        else replace(DRAWINGS.get(schedule, usual), schedule=schedule, size=usual.size)
    )
