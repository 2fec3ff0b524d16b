"""ComfyUI's sampling draws the same latents as the core's."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_model_advanced as model_advanced
import torch
from the_pack.nodes.comfy import sampling
from the_pack.nodes.comfy.clip import encode, load_clip
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.comfy.model import pool
from the_pack.nodes.sample import UniFusionSampler
from the_pack.nodes.sockets import Encoded
from the_pack.unifusion_core.contracts import Features
from the_pack.unifusion_core.flow.schedule import build_schedule
from the_pack.unifusion_core.sampling import sample
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY
from torch import Tensor

from .case import PARITY, case, close, difference, refused
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
    encoded,
    features,
    host_model,
    images,
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


def _by_node(model: Any, positive: Any, **changes: Any) -> Tensor:
    inputs = {"seed": SEED, "steps": STEPS, "cfg": CFG, "image_cfg": 1.0, "schedule": "automatic"}
    node = UniFusionSampler.execute(model, positive, {"samples": LATENT}, **inputs | changes)
    return node.args[0]["samples"]


@case(equals={"positive": 0.0, "negative": 0.0, "picture_only": 0.0})
def features_straight_into_the_sampler() -> dict[str, float]:
    """Against the same features through Pool UniFusion Features."""
    model = host_model()
    each = {"positive": encoded(9, 4), "negative": encoded(5), "picture_only": encoded(7, 4)}
    expected = _by_node(model, **{name: pool(model, features) for name, features in each.items()})
    mixed = {name: {**each, name: pool(model, each[name])} for name in each}
    return {name: difference(_by_node(model, **inputs), expected) for name, inputs in mixed.items()}


@case()
def without_a_negative() -> dict[str, float]:
    """Guidance leads away from the empty prompt then, also for a conditioning of Pool; at cfg 1 there is none."""
    model = load_model(BUILT_IN.generator)
    clip = load_clip(BUILT_IN.vlm, model.model.model_config.unifusion.vlm, TINY)
    positive, empty = (encode(clip, prompt, images(), 5)[1] for prompt in ("make it blue", ""))
    empty = encode(clip, "", (), 5)[1]
    expected = _by_node(model, positive, negative=empty)
    return {
        "features": difference(_by_node(model, positive), expected),
        "conditioning": difference(_by_node(model, pool(model, positive)), expected),
        "cfg 1": difference(
            _by_node(model, positive, cfg=1.0), _by_node(model, positive, cfg=1.0, negative=empty)
        ),
        "effect": difference(_by_node(model, positive, cfg=1.0), expected),
    }


@without_a_negative.check
def _(found: dict[str, float]) -> None:
    assert found.pop("effect") > 0.01
    assert close(*found.values())


@refused("Guidance needs a negative", "connect the empty prompt to `negative`, or set cfg to 1")
def guidance_without_a_negative() -> Tensor:
    return _by_node(host_model(), conditioning(features(9)))


@refused("cfg 0 draws what the negative describes", "give cfg 1")
def guidance_scale_counted_from_0() -> Tensor:
    return _by_node(host_model(), conditioning(features(9)), cfg=0.0)


@case(at_most=PARITY)
def second_pass() -> dict[str, float]:
    """`denoise` below 1 changes an image as KSampler does with the same value; 0 leaves it as it is."""
    model, positive, negative = host_model(), conditioning(features(9)), conditioning(features(5))
    image = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(8))

    def by_node(denoise: float) -> Tensor:
        inputs = {"seed": SEED, "steps": STEPS, "cfg": CFG, "image_cfg": 1.0, "schedule": SCHEDULE}
        node = UniFusionSampler.execute(
            model, positive, {"samples": image}, negative=negative, denoise=denoise, **inputs
        )
        return node.args[0]["samples"]

    def by_sampler(denoise: float) -> Tensor:
        noise = noise_for(image)
        return comfy.sample.sample(
            model, noise, STEPS, CFG, "euler", "simple", positive, negative, image, denoise=denoise, seed=SEED
        )

    found = {str(denoise): difference(by_node(denoise), by_sampler(denoise)) for denoise in (1.0, 0.5, 0.25)}
    return found | {"0": difference(by_node(0.0), image)}


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
