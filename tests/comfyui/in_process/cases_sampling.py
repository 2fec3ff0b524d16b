"""ComfyUI's sampling draws the same latents as the core's."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_model_advanced as model_advanced
import torch
from the_pack.nodes.comfy import sampling
from the_pack.nodes.comfy.model import pool
from the_pack.nodes.sockets import Encoded
from the_pack.unifusion_core.contracts import Features
from the_pack.unifusion_core.flow.schedule import build_schedule
from the_pack.unifusion_core.sampling import sample
from torch import Tensor

from .case import PARITY, case, difference
from .small_unifusion import (
    CFG,
    CONFIG,
    LATENT,
    SCHEDULE,
    SEED,
    STEPS,
    by_comfyui,
    by_core,
    conditioning,
    core_model,
    features,
    host_model,
    noise_for,
)


def parity(
    positive: Features, negative: Features, latent: Tensor = LATENT, cfg: float = CFG, **changes: Any
) -> float:
    """Both ways of sampling for the small generator, `changes` of its configuration included."""
    name = "-".join(["model", *changes])
    core, model = core_model(name, **changes), host_model(name, **changes)
    expected = by_core(core, core.pool(positive), core.pool(negative), latent, cfg)
    return difference(
        by_comfyui(model, conditioning(positive), conditioning(negative), latent, cfg), expected
    )


@case(at_most=PARITY)
def equal_lengths() -> float:
    return parity(features(9, 4), features(9, seed=1))


@case(at_most=PARITY)
def unequal_lengths() -> float:
    return parity(features(37, 12), features(5))


@case(at_most=PARITY)
def without_guidance() -> float:
    return parity(features(9), features(4), cfg=1.0)


@case(at_most=PARITY)
def batch_of_three() -> float:
    return parity(features(9, 4), features(6), torch.zeros(3, 16, 6, 8))


@case(at_most=PARITY)
def joint_attention() -> float:
    return parity(features(11, 3), features(6), condition_attention="joint")


@case(at_most=PARITY)
def pooled_conditions() -> float:
    """Pool UniFusion Features before the sampler, in place of the MODEL's own pooling."""
    core, model = core_model(), host_model()
    chosen = features(21, 9), features(5)
    expected = by_core(core, *(core.pool(each) for each in chosen))
    return difference(
        by_comfyui(model, *(pool(model, Encoded(each, CONFIG.vlm)) for each in chosen)), expected
    )


@case(at_most=PARITY)
def odd_latent() -> float:
    """A latent that does not divide into patches: padded for every step and cropped again."""
    core, latent = core_model(), torch.zeros(1, 16, 7, 9)
    positive, negative = features(9, 4), features(5)
    prepared = [core.prepare(core.pool(each), (4, 5)) for each in (positive, negative)]
    x, times = noise_for(latent), build_schedule(SCHEDULE, STEPS, 20)
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="circular")
        v, v_negative = (core(padded, t[None], each)[..., :7, :9] for each in prepared)
        x = x + (t_next - t) * (v_negative + CFG * (v - v_negative))
    return difference(by_comfyui(host_model(), conditioning(positive), conditioning(negative), latent), x)


@case(at_most=PARITY)
def latents_with_a_time_axis() -> float:
    """Latents B C 1 h w of the Qwen-Image format, on the schedule that ComfyUI takes from the MODEL."""
    changes = {"latent_format": "qwen-image", "condition_attention": "joint", "text_positions": "zero"}
    core, model = core_model("qwen", **changes), host_model("qwen", **changes)
    positive, negative = features(9), features(5)
    latent = comfy.sample.fix_empty_latent_channels(model, LATENT)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    noise = noise_for(latent)[:, :, 0]
    expected = sample(core, core.pool(positive), noise, sigmas, negative=core.pool(negative), cfg=CFG)
    given = by_comfyui(model, conditioning(positive), conditioning(negative), latent)
    return difference(given, model.get_model_object("latent_format").process_out(expected[:, :, None]))


@case(at_most=PARITY)
def unifusion_sampler() -> dict[str, float]:
    """The sampler node on a schedule of the core; guided by images apart from text, also against stock DualCFGGuider."""
    core, model = core_model(), host_model()
    chosen = features(21, 9), features(14, 9), features(5)
    positive, image_only, negative = (conditioning(each) for each in chosen)
    pooled = [core.pool(each) for each in chosen]
    sigmas = sampling.sigmas_for(model, {"samples": LATENT}, STEPS, "shift 2")

    def drawn(image_only: Any) -> Tensor:
        options = {"seed": SEED, "sigmas": sigmas, "cfg": CFG, "image_cfg": 1.7}
        latent = {"samples": LATENT}
        return sampling.draw(model, positive, negative, image_only, latent, **options)["samples"]

    expected = by_core(core, pooled[0], pooled[2], schedule="shift 2")
    apart = by_core(core, pooled[0], pooled[2], image_only=pooled[1], image_cfg=1.7, schedule="shift 2")
    return {
        "cfg": difference(drawn(None), expected),
        "apart": difference(drawn(image_only), apart),
        "dual": difference(_by_dual_guider(model, positive, image_only, negative, sigmas), apart),
    }


def _by_dual_guider(model: Any, positive: Any, image_only: Any, negative: Any, sigmas: Tensor) -> Tensor:
    guider = custom_sampler.Guider_DualCFG(model)
    guider.set_conds(positive, image_only, negative)
    guider.set_cfg(CFG, 1.7)
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise_for(LATENT), LATENT, euler, sigmas, disable_pbar=True, seed=SEED)


@case(at_most=PARITY)
def sampling_nodes() -> dict[str, float]:
    """Stock nodes that change the shift may pass times in another scale: the model's own shift changes nothing."""
    model, positive, negative = host_model(), conditioning(features(9)), conditioning(features(5))
    plain = by_comfyui(model, positive, negative)
    patched = {
        "sd3": model_advanced.ModelSamplingSD3().patch(model, shift=3.0)[0],
        "aura": model_advanced.ModelSamplingAuraFlow().patch_aura(model, shift=3.0)[0],
    }
    return {name: difference(by_comfyui(each, positive, negative), plain) for name, each in patched.items()}
