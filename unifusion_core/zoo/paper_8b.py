"""The paper's sizes as a preset for training from scratch: InternVL of 8 billion parameters before a DiT of 8 billion.

arXiv 2510.12789 names InternVL 2.5 8B, which transformers cannot open without the model's own code; InternVL 3 8B is its
successor in the same layout. Width and depth of the DiT are not published: these are Krea 2's, scaled to the paper's size.
"""

from __future__ import annotations

from ..contracts import VLMSpec
from ..models.dit import DiTConfig
from ..models.lap import LAPConfig
from ..models.unifusion import UniFusionConfig
from ..vlm.families.internvl import INTERNVL
from .spec import GeneratorSpec, SamplingDefaults

PAPER_8B = GeneratorSpec(
    name="paper-8b",
    title="UniFusion generator of the paper's size",
    config=UniFusionConfig(
        vlm=VLMSpec(
            family="internvl",
            hidden_size=3584,
            num_layers=28,
            # every third layer up to the last, as in the paper's figure on layer dropout
            taps=tuple(range(3, 28, 3)),
            template=INTERNVL.template,
            token_selection="rewrite",
        ),
        lap=LAPConfig(num_heads=28, mlp_size=9600),
        dit=DiTConfig(
            hidden_size=5120, num_blocks=26, num_heads=40, num_kv_heads=10, mlp_size=13824, latent_channels=16
        ),
        condition_attention="joint",
        latent_format="qwen-image",
        trained_sizes=((1024, 1024),),
    ),
    sampling={"": SamplingDefaults(schedule="krea-2 raw", steps=28, cfg=4.5)},
    size=(1024, 1024),
    rewrites=True,
    max_new_tokens=512,
    trained_on_rewrites=True,
    vae_hint="the folder vae/ of the Qwen-Image repository in diffusers' layout",
    comfy_latent_format="Wan21",
    limits=("No weights of it exist: it is a preset of sizes, which training/recipes/paper_8b.yaml trains.",),
)
