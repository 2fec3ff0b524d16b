"""The sizes that UniFusion comes in: numbers only, one architecture."""

from __future__ import annotations

from .contracts import ChatTemplate, VLMSpec
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
