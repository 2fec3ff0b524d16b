"""What a user reads who connects the wrong thing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import comfy.sd
import torch
from comfy.taesd.taesd import TAESD
from the_pack.nodes.comfy import latents, sampling
from the_pack.nodes.comfy.clip import encode, load_clip
from the_pack.nodes.comfy.krea2 import krea2_conditioning
from the_pack.nodes.comfy.model import pool, read_layers
from the_pack.nodes.latent_from_reference import UniFusionLatentFromReference
from the_pack.nodes.sample import UniFusionSampler
from the_pack.nodes.sockets import Encoded
from the_pack.unifusion_core.contracts import Features
from the_pack.unifusion_core.zoo.krea_2 import KREA_2
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY

from .case import case, refused
from .small_unifusion import (
    CONFIG,
    by_comfyui,
    conditioning,
    encoded,
    features,
    host_model,
    images,
    rewritten,
    stock,
    tiny_clip,
)

# as many taps as the model has, so that no shape differs
OTHER_TAPS = replace(CONFIG.vlm, taps=(0, 1, 4))


class OtherKind:
    """A wire from a node of another family."""

    model = torch.nn.Linear(1, 1)
    cond_stage_model = torch.nn.Linear(1, 1)


@cache
def _clip() -> Any:
    return tiny_clip()


@refused("did not end within 2 tokens", "max_new_tokens")
def rewrite_without_an_end() -> None:
    rewritten(_clip(), "a red ball", max_new_tokens=2)


@refused(
    "does not follow the style",
    "write the prompt in English",
    "caption, terse, detailed, keep everything else.",
)
def style_that_the_embedded_vlm_does_not_follow() -> None:
    rewritten(_clip(), "ein roter Kreis", style="translate to English")


@refused("8000x200", "8 to 4096")
def huge_image() -> None:
    latents.empty_latent_for(torch.zeros(3, 200, 8000))


@refused("NaN", "find the step")
def image_with_nan() -> None:
    broken = images()[0]
    broken[0, 3, 3, 0] = float("nan")
    encode(_clip(), "", [broken], 5)


@refused("1 channels", "RGB")
def gray_image() -> None:
    encode(_clip(), "", [images()[0][..., :1]], 5)


@refused("1024", "shorten")
def long_prompt() -> None:
    stock.CLIPTextEncode().encode(_clip(), "red circle " * 2000)


@refused("768 wide", "72", "Load UniFusion VLM")
def foreign_conditioning() -> None:
    foreign = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    by_comfyui(host_model(), foreign, foreign)


@refused("Linear", "Load UniFusion VLM")
def clip_of_another_kind() -> None:
    encode(OtherKind(), "", [], 5)


@refused("Linear", "Load UniFusion Model")
def model_of_another_kind() -> None:
    sampling.sigmas_for(OtherKind(), {"samples": torch.zeros(1, 16, 8, 12)}, 4, "uniform")


@refused("(0, 1, 4)", "(0, 1, 3)", "Load UniFusion VLM")
def features_of_other_taps_pooled() -> None:
    pool(host_model(), encoded(5, spec=OTHER_TAPS))


@refused("(0, 1, 4)", "(0, 1, 3)", "Load UniFusion VLM")
def features_of_other_taps_inspected() -> None:
    read_layers(host_model(), encoded(5, spec=OTHER_TAPS))


@refused("(0, 1, 4)", "(0, 1, 3)", "Load UniFusion VLM")
def conditioning_of_other_taps() -> None:
    of_others = conditioning(features(5), OTHER_TAPS)
    by_comfyui(host_model(), of_others, of_others)


@refused("2 layer gains", "reads 3 layers (0, 1, 3)", "3: 0.5")
def gains_for_other_layers() -> None:
    pool(host_model(), encoded(5), "1, 1")


@refused("5, 3 tokens", "one prompt at a time")
def unequal_lengths_for_krea_2() -> None:
    krea2_conditioning(Encoded(Features.cat([features(5), features(3)]), KREA_2.config.vlm))


@refused("(0, 1, 3) of internvl", "of qwen3_vl", "Load UniFusion VLM")
def features_of_another_vlm_for_krea_2() -> None:
    krea2_conditioning(encoded(5))


@refused("number of layers is 6, 9 is needed")
def vlm_of_another_size() -> None:
    load_clip(BUILT_IN.vlm, replace(CONFIG.vlm, hidden_size=160, num_layers=9), TINY)


@refused("4 channels", "16", "EmptySD3LatentImage")
def latent_of_other_channels() -> None:
    each = conditioning(features(5))
    by_comfyui(host_model(), each, each, torch.ones(1, 4, 8, 8))


# Sides that do not fit each other ---------------------------------------------------------------------


def _both_kinds() -> tuple[Any, Any]:
    """A pooled conditioning of 9 tokens, and one of VLM layers of 5."""
    return pool(host_model(), encoded(9)), conditioning(features(5))


@refused(
    "hidden states of VLM layers, not pooled, 72 wide", "pooled tokens, 64 wide", "Pool UniFusion Features"
)
def pooled_and_unpooled_concatenated() -> None:
    pooled, layers = _both_kinds()
    stock.ConditioningConcat().concat(pooled, layers)


@refused("hidden states of VLM layers, not pooled, 72 wide", "pooled tokens, 64 wide", "CLIP Text Encode")
def pooled_and_unpooled_averaged() -> None:
    """The second is cut to the length of the first."""
    pooled, layers = _both_kinds()
    stock.ConditioningAverage().addWeighted(layers, pooled, 0.5)


@refused("72 wide", "64 wide")
def pooled_and_unpooled_averaged_the_other_way() -> None:
    """The second is filled up to the length of the first."""
    pooled, layers = _both_kinds()
    stock.ConditioningAverage().addWeighted(pooled, layers, 0.5)


@refused("tokens of another text encoder, 768 wide", "pooled tokens, 64 wide")
def conditioning_of_another_encoder_concatenated() -> None:
    pooled, _ = _both_kinds()
    stock.ConditioningConcat().concat([[torch.zeros(1, 77, 768), {}]], pooled)


@case(equals=[14, 9, 9, True])
def conditions_of_one_kind() -> list[Any]:
    """Tokens after Concat and Average of one kind, tokens drawn from, and whether what the MODEL gets is a plain tensor."""
    model = host_model()
    long, short = (pool(model, encoded(length)) for length in (9, 5))
    (joined,) = stock.ConditioningConcat().concat(long, short)
    (mixed,) = stock.ConditioningAverage().addWeighted(long, short, 0.5)
    drawn = by_comfyui(model, mixed, short)
    return [joined[0][0].shape[1], mixed[0][0].shape[1], long[0][0].shape[1], type(drawn) is torch.Tensor]


@refused("3 axes (1, 64, 100)", "images, whose latents have 4", "EmptySD3LatentImage")
def empty_latent_of_audio() -> None:
    each = conditioning(features(5))
    by_comfyui(host_model(), each, each, torch.zeros(1, 64, 100))


@refused("3 axes (1, 16, 100)", "images, whose latents have 4", "VAE Encode")
def latent_of_audio() -> None:
    latent = {"samples": torch.ones(1, 16, 100)}
    UniFusionSampler.execute(host_model(), encoded(5), latent, 1, 4, 1.0, 1.0, "automatic")


@refused("3 axes (1, 16, 100)", "images, whose latents have 4")
def empty_latent_of_audio_in_the_sampler() -> None:
    # ComfyUI gives an empty latent the model's number of channels
    latent = {"samples": torch.zeros(1, 64, 100)}
    UniFusionSampler.execute(host_model(), encoded(5), latent, 1, 4, 1.0, 1.0, "automatic")


@refused("4 channels", "this model needs 16", "this model's own VAE")
def image_encoded_by_another_vae() -> None:
    """A small VAE of SD 1.5's latents, through UniFusion Latent from Reference."""
    weights = TAESD(latent_channels=4).state_dict()
    vae = comfy.sd.VAE(sd=weights)
    latent = UniFusionLatentFromReference.execute(torch.rand(1, 64, 96, 3), "own size", 1.0, vae=vae).args[0]
    UniFusionSampler.execute(host_model(), encoded(5), latent, 1, 4, 1.0, 1.0, "automatic", denoise=0.5)
