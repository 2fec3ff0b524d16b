"""Measures the pack inside ComfyUI's own process, where a server would hide numbers. Run by test_in_process.py as

    PYTHON_OF_COMFYUI in_process.py COMFYUI_FOLDER PACK_FOLDER EMPTY_FOLDER [CASE ...]

and prints one line of JSON: for every case what it returned, or its traceback under "failed".
"""

# ruff: noqa: E402  (ComfyUI parses its options before the rest of it may be imported)
from __future__ import annotations

import gc
import importlib.util
import json
import logging
import math
import re
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

COMFYUI, PACK, FOLDER = (Path(argument).resolve() for argument in sys.argv[1:4])
CHOSEN = sys.argv[4:]
sys.argv = ["main.py", "--cpu", "--base-directory", str(FOLDER)]  # what ComfyUI reads its options from
sys.path.insert(0, str(COMFYUI))
(FOLDER / "custom_nodes").mkdir(exist_ok=True)

import comfy.options

comfy.options.enable_args_parsing()

import comfy.hooks
import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models_base
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_model_advanced as model_advanced
import torch
import transformers
from comfy.model_patcher import wipe_lowvram_weight
from comfy.text_encoders import krea2, qwen3vl
from safetensors.torch import save_file

import nodes as stock

torch.set_grad_enabled(False)


def _import_pack() -> Any:
    """The pack as ComfyUI imports it: a package under a name that has nothing to do with its folder's."""
    spec = importlib.util.spec_from_file_location(
        "the_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["the_pack"] = module
    spec.loader.exec_module(module)
    return module


_import_pack()

from the_pack.nodes import schedule
from the_pack.nodes.comfy import clip, conditions, host, krea2, model, sampling, stock_clip
from the_pack.nodes.inspect_layers import UniFusionLAPInspect
from the_pack.nodes.sockets import Encoded
from the_pack.unifusion_core.checkpoints import generator_file
from the_pack.unifusion_core.contracts import Conditioning, Features, Request, TokenRole, VLMSpec
from the_pack.unifusion_core.flow.schedule import build_schedule
from the_pack.unifusion_core.inspection import reading
from the_pack.unifusion_core.models.dit import DiTConfig
from the_pack.unifusion_core.models.lap import LAPConfig
from the_pack.unifusion_core.models.unifusion import PreparedCondition, UniFusion, UniFusionConfig
from the_pack.unifusion_core.sampling import sample
from the_pack.unifusion_core.vlm import rewrite
from the_pack.unifusion_core.vlm.backbone import VLMBackbone
from the_pack.unifusion_core.vlm.features import join_features, select_tokens
from the_pack.unifusion_core.vlm.folder import load_vlm
from the_pack.unifusion_core.zoo import spec, tiny

CONFIG = UniFusionConfig(
    vlm=VLMSpec(
        family="internvl", hidden_size=24, num_layers=5, taps=(0, 1, 3), template=TINY.config.vlm.template
    ),
    lap=LAPConfig(num_heads=3, mlp_size=40),
    dit=DiTConfig(hidden_size=64, num_blocks=3, num_heads=2, num_kv_heads=1, mlp_size=72, latent_channels=16),
    condition_attention="prefix",
    trained_sizes=((96, 64),),
)
STEPS, CFG, SEED = 5, 2.5, 7
SCHEDULE = "shift 3"  # the tiny model's own
CASES: dict[str, Callable[[], Any]] = {}


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


# Small models, conditions, and the two ways of sampling -----------------------------------------------


def generator_file(name: str = "model", **changes: Any) -> Path:
    """A generator with random weights, every part of it at work."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        random = torch.Generator().manual_seed(0)
        model = UniFusion(replace(CONFIG, **changes))
        for parameter in model.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.data.normal_(std=std, generator=random)
        generator_file.save_generator(model, path, {"recipe": "none"}, dtype=torch.float32)
    return path


def core_model(name: str = "model", **changes: Any) -> UniFusion:
    return generator_file.load_generator(generator_file(name, **changes))[0]


def comfy_model_of(name: str = "model", weight_type: str = "default", **changes: Any) -> Any:
    return model.load_model(generator_file(name, **changes), weight_type)


def features(length: int, num_image: int = 0, seed: int = 0) -> Features:
    random = torch.Generator().manual_seed(100 * length + seed)
    states = torch.randn(1, length, len(CONFIG.vlm.taps), CONFIG.vlm.hidden_size, generator=random)
    positions = torch.zeros(1, length, 3)
    positions[:, :num_image] = torch.rand(1, num_image, 3, generator=random)
    positions[:, :num_image, 0] = 1
    roles = torch.full((1, length), int(TokenRole.PROMPT))
    mask = torch.ones(1, length, dtype=torch.bool)
    return Features(states=states, mask=mask, roles=roles, token_ids=roles, positions=positions)


def conditioning(each: Features) -> list[list[Any]]:
    """As stock CLIPTextEncode would give it."""
    tokens, rest = conditions.flattened(each, CONFIG.vlm)
    return [[tokens, rest]]


def noise_for(latent: torch.Tensor) -> torch.Tensor:
    return comfy.sample.prepare_noise(latent, SEED)


def by_comfyui(
    model: Any, positive: Any, negative: Any, latent: torch.Tensor, cfg: float = CFG
) -> torch.Tensor:
    noise = noise_for(latent)
    return comfy.sample.sample(
        model, noise, STEPS, cfg, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=SEED
    )


def by_core(
    model: UniFusion,
    positive: Conditioning,
    negative: Conditioning,
    latent: torch.Tensor,
    cfg: float = CFG,
    **more: Any,
) -> torch.Tensor:
    tokens = latent.shape[-1] * latent.shape[-2] // model.config.dit.patch_size**2
    schedule = build_schedule(more.pop("schedule", SCHEDULE), STEPS, tokens)
    return sample(model, positive, noise_for(latent), schedule, negative=negative, cfg=cfg, **more)


def difference(given: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, in parts of the largest value."""
    assert given.shape == expected.shape, (given.shape, expected.shape)
    return float((given - expected).abs().max() / expected.abs().max())


def by_tap(given: torch.Tensor, expected: torch.Tensor) -> float:
    """`difference` of the worst layer (B T L D)."""
    return max(difference(given[:, :, tap], expected[:, :, tap]) for tap in range(expected.shape[2]))


LATENT = torch.zeros(1, 16, 8, 12)


def parity(
    positive: Features,
    negative: Features,
    latent: torch.Tensor = LATENT,
    cfg: float = CFG,
    **changes: Any,
) -> float:
    name = "-".join(["model", *changes])
    core = core_model(name, **changes)
    expected = by_core(core, core.pool(positive), core.pool(negative), latent, cfg)
    given = by_comfyui(
        comfy_model_of(name, **changes), conditioning(positive), conditioning(negative), latent, cfg
    )
    return difference(given, expected)


# ComfyUI's sampling equals the core's ---------------------------------------------------------------


@case
def equal_lengths() -> float:
    return parity(features(9, 4), features(9, seed=1))


@case
def unequal_lengths() -> float:
    return parity(features(37, 12), features(5))


@case
def without_guidance() -> float:
    return parity(features(9), features(4), cfg=1.0)


@case
def batch_of_three() -> float:
    return parity(features(9, 4), features(6), torch.zeros(3, 16, 6, 8))


@case
def joint_attention() -> float:
    return parity(features(11, 3), features(6), condition_attention="joint")


@case
def pooled_conditions() -> float:
    """UniFusionLAPPool in front instead of the MODEL's own pooling."""
    core, model = core_model(), comfy_model_of()
    positive, negative = features(21, 9), features(5)
    expected = by_core(core, core.pool(positive), core.pool(negative), LATENT)
    return difference(
        by_comfyui(model, *(model.pool(model, Encoded(f, CONFIG.vlm)) for f in (positive, negative)), LATENT),
        expected,
    )


@case
def condition_per_latent() -> float:
    """Two conditions for two latents in one CONDITIONING, the shorter one padded."""
    core, model = core_model(), comfy_model_of()
    long, short = features(9, 3), features(9, seed=2)
    short.mask[:, 6:] = False
    both = Features(
        **{
            n: torch.cat([getattr(long, n), getattr(short, n)])
            for n in ("states", "mask", "roles", "token_ids", "positions")
        }
    )
    negative, latent = features(4), torch.zeros(2, 16, 6, 8)
    expected = by_core(core, core.pool(both), core.pool(negative), latent)
    return difference(by_comfyui(model, conditioning(both), conditioning(negative), latent), expected)


@case
def odd_latent() -> float:
    """Padded to whole patches for every step and cropped again."""
    core, latent = core_model(), torch.zeros(1, 16, 7, 9)
    positive, negative = features(9, 4), features(5)
    prepared = [core.prepare(core.pool(f), (4, 5)) for f in (positive, negative)]
    x, times = noise_for(latent), build_schedule(SCHEDULE, STEPS, 20)
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="circular")
        v, v_negative = (core(padded, t[None], p)[..., :7, :9] for p in prepared)
        x = x + (t_next - t) * (v_negative + CFG * (v - v_negative))
    return difference(by_comfyui(comfy_model_of(), conditioning(positive), conditioning(negative), latent), x)


@case
def latents_with_a_time_axis() -> float:
    """Krea 2's latents B C 1 h w, on the shifted schedule that its model brings."""
    changes = {"latent_format": "qwen-image", "condition_attention": "joint", "text_positions": "zero"}
    core, model = core_model("qwen", **changes), comfy_model_of("qwen", **changes)
    positive, negative = features(9), features(5)
    latent = comfy.sample.fix_empty_latent_channels(model, LATENT)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    noise = noise_for(latent)[:, :, 0]
    expected = sample(core, core.pool(positive), noise, sigmas, negative=core.pool(negative), cfg=CFG)
    given = by_comfyui(model, conditioning(positive), conditioning(negative), latent)
    return difference(given, model.get_model_object("latent_format").process_out(expected[:, :, None]))


@case
def unifusion_sampler() -> dict[str, float]:
    """The node with a schedule of the core, and guided by pictures apart, as by the core and by stock DualCFGGuider."""
    core, model = core_model(), comfy_model_of()
    chosen = features(21, 9), features(14, 9), features(5)
    positive, pictures, negative = (conditioning(f) for f in chosen)
    pooled = [core.pool(f) for f in chosen]
    sigmas = sampling.sigmas_for(model, {"samples": LATENT}, STEPS, "shift 2")

    def drawn(picture_only: Any) -> torch.Tensor:
        options = {"seed": SEED, "sigmas": sigmas, "cfg": CFG, "image_cfg": 1.7}
        return sampling.draw(model, positive, negative, picture_only, {"samples": LATENT}, **options)[
            "samples"
        ]

    expected = by_core(core, pooled[0], pooled[2], LATENT, schedule="shift 2")
    apart = by_core(
        core, pooled[0], pooled[2], LATENT, picture_only=pooled[1], image_cfg=1.7, schedule="shift 2"
    )
    guider = custom_sampler.Guider_DualCFG(model)
    guider.set_conds(positive, pictures, negative)
    guider.set_cfg(CFG, 1.7)
    euler = comfy.samplers.sampler_object("euler")
    dual = guider.sample(noise_for(LATENT), LATENT, euler, sigmas, disable_pbar=True, seed=SEED)
    return {
        "cfg": difference(drawn(None), expected),
        "apart": difference(drawn(pictures), apart),
        "dual": difference(dual, apart),
    }


@case
def sampling_nodes() -> dict[str, float]:
    """Nodes that change the schedule may hand over times in another scale: with the model's own shift nothing may change."""
    model, positive, negative = comfy_model_of(), conditioning(features(9)), conditioning(features(5))
    plain = by_comfyui(model, positive, negative, LATENT)
    patched = {
        "sd3": model_advanced.ModelSamplingSD3().patch(model, shift=3.0)[0],
        "aura": model_advanced.ModelSamplingAuraFlow().patch_aura(model, shift=3.0)[0],
    }
    return {name: difference(by_comfyui(m, positive, negative, LATENT), plain) for name, m in patched.items()}


# Conditions stay exact, and are computed once -------------------------------------------------------


@contextmanager
def nothing_shared() -> Any:
    """Every condition alone in its pass, everything computed anew."""
    alone, once = conditions.ConditionInBatch, conditions.SamplingCondition
    saved = alone.can_concat, once.once
    alone.can_concat, once.once = (lambda self, other: False), (lambda self, key, compute: compute())
    try:
        yield
    finally:
        alone.can_concat, once.once = saved


@case
def stock_conditioning_nodes() -> dict[str, float]:
    """Areas, time ranges, concatenation, averages: the same with and without batching and reuse."""
    model = comfy_model_of()
    long, short, third = (conditioning(f) for f in (features(23, 9), features(7), features(12, 4)))
    (area,) = stock.ConditioningSetArea().append(short, 48, 40, 16, 16, 0.8)
    (early,) = stock.ConditioningSetTimestepRange().set_range(long, 0.0, 0.5)
    (late,) = stock.ConditioningSetTimestepRange().set_range(third, 0.5, 1.0)
    (joined,) = stock.ConditioningConcat().concat(short, third)
    (mixed,) = stock.ConditioningAverage().addWeighted(long, short, 0.3)
    (zero,) = stock.ConditioningZeroOut().zero_out(third)
    positives = {
        "area": long + area,
        "time": early + late,
        "concat": joined,
        "average": mixed,
        "all": early + late + area + joined,
    }
    found = {}
    for name, positive in positives.items():
        given = by_comfyui(model, positive, zero, LATENT)
        with nothing_shared():
            found[name] = difference(given, by_comfyui(model, positive, zero, LATENT))
    return found


@case
def concatenation() -> float:
    """Concatenated conditionings are the features one behind the other."""
    core, model = core_model(), comfy_model_of()
    a, b, negative = features(7), features(12), features(5)
    names = ("states", "mask", "roles", "token_ids", "positions")
    both = Features(**{n: torch.cat([getattr(a, n), getattr(b, n)], 1) for n in names})
    (joined,) = stock.ConditioningConcat().concat(conditioning(a), conditioning(b))
    expected = by_core(core, core.pool(both), core.pool(negative), LATENT)
    return difference(by_comfyui(model, joined, conditioning(negative), LATENT), expected)


@case
def computed_once() -> dict[str, int]:
    """How often two conditions are pooled and prepared in five steps, and what of it is left afterwards."""
    model = comfy_model_of()
    module = model.model.diffusion_model
    counts = {"pool": 0, "prepare": 0}

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        def call(*args: Any) -> Any:
            counts[name] += 1
            return original(*args)

        return call

    module.pool, module.prepare = counted("pool"), counted("prepare")
    by_comfyui(model, conditioning(features(9)), conditioning(features(5)), LATENT)
    gc.collect()
    kinds = (PreparedCondition, conditions.SamplingCondition)
    return counts | {"left": sum(isinstance(each, kinds) for each in gc.get_objects())}


@case
def hooked_lora() -> dict[str, float]:
    """A LoRA on one condition alone, switched off halfway: LAP, refiner and keys follow the weights of each step."""
    core, patched = core_model(), core_model()
    random = torch.Generator().manual_seed(3)
    lora = {}
    for name in (
        "txtfusion.layerwise_blocks.0.attn.wq",
        "txtfusion.refiner_blocks.1.mlp.up",
        "blocks.1.attn.wk",
    ):
        weight = patched.get_submodule(name).weight
        down, up = (
            torch.randn(4, weight.shape[1], generator=random),
            torch.randn(weight.shape[0], 4, generator=random),
        )
        lora[f"diffusion_model.{name}.lora_A.weight"] = down * 0.2
        lora[f"diffusion_model.{name}.lora_B.weight"] = up * 0.2
        weight += (up * 0.2) @ (down * 0.2)
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    positive, negative = features(9, 4), features(5)
    hooked = comfy.hooks.set_hooks_for_conditioning(conditioning(positive), hooks)
    given = by_comfyui(comfy_model_of(), hooked, conditioning(negative), LATENT)

    x, times = noise_for(LATENT), build_schedule(SCHEDULE, STEPS, 24)
    other = core.prepare(core.pool(negative), (4, 6))
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        model = patched if t > 0.75 else core  # where half of the sampling is done
        v = model(x, t[None], model.prepare(model.pool(positive), (4, 6)))
        v_negative = core(x, t[None], other)
        x = x + (t_next - t) * (v_negative + CFG * (v - v_negative))
    plain = by_core(core, core.pool(positive), core.pool(negative), LATENT)
    return {"difference": difference(given, x), "effect": difference(plain, x)}


# Files and types ------------------------------------------------------------------------------------


@case
def saved_and_loaded() -> dict[str, Any]:
    """What ModelSave writes, with a LoRA baked in, opens again as the same model with the same training record."""
    model = comfy_model_of()
    name = "diffusion_model.blocks.0.attn.wq.weight"
    model.add_patches({name: ("diff", (torch.ones(64, 64),))}, 0.1)
    stock_save = comfy.sd.save_checkpoint
    path = FOLDER / "saved.safetensors"
    stock_save(str(path), model, metadata={"format": "pt"})
    loaded, record = generator_file.load_generator(path)
    expected = core_model().state_dict()
    expected["blocks.0.attn.wq.weight"] += 0.1
    return {
        "difference": max(float((v - expected[k]).abs().max()) for k, v in loaded.state_dict().items()),
        "record": record,
        "config": loaded.config == CONFIG,
    }


@case
def weight_types() -> dict[str, float]:
    """Weights kept in fewer bits draw nearly the same."""
    positive, negative = conditioning(features(9, 4)), conditioning(features(5))
    exact = by_comfyui(comfy_model_of(), positive, negative, LATENT)
    return {
        name: difference(by_comfyui(comfy_model_of(weight_type=name), positive, negative, LATENT), exact)
        for name in ("fp32", "bf16", "fp16", "fp8_e4m3fn")
    }


@case
def size_warning() -> list[str]:
    """What is logged for a size that the model was never trained on, and for one that it was."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("the_pack.nodes.comfy_model").addHandler(handler)
    model, positive, negative = comfy_model_of(), conditioning(features(9)), conditioning(features(5))
    by_comfyui(model, positive, negative, torch.zeros(1, 16, 8, 12))
    by_comfyui(model, positive, negative, torch.zeros(1, 16, 20, 12))
    return [*said]


@case
def edited_size_warning() -> list[str]:
    """What is logged for an edit in another size than its picture's, and for one in the same."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("the_pack.unifusion_core.sizes").addHandler(handler)
    model, clip = comfy_model_of(), embedded_clip()
    one = clip.encode(clip, "make it blue", [torch.rand(1, 64, 96, 3)], 1)[1]
    positive = model.pool(model, Encoded(features(9), CONFIG.vlm, one.edited))
    negative = conditioning(features(5))
    by_comfyui(model, positive, negative, torch.zeros(1, 16, 8, 12))
    by_comfyui(model, positive, negative, torch.zeros(1, 16, 16, 16))
    pair = clip.encode(clip, "both", [torch.rand(2, 64, 96, 3)], 1)[1]
    return [*said, str(pair.edited)]


# Krea 2 ---------------------------------------------------------------------------------------------

KREA_CONFIG = replace(  # of the form that ComfyUI's own module has for every size
    KREA_2.config.config,
    vlm=replace(KREA_2.config.config.vlm, hidden_size=160, num_layers=9, taps=(2, 5, 8)),
    lap=LAPConfig(num_heads=20, mlp_size=512),
    dit=replace(KREA_2.config.config.dit, hidden_size=256, num_blocks=2, num_heads=2, num_kv_heads=1, mlp_size=768),
)
KREA_LATENT = torch.zeros(1, 16, 1, 8, 14)


def krea_weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in UniFusion(KREA_CONFIG).state_dict().items()}
    return {
        name: torch.randn(shape, generator=random) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        for name, shape in shapes.items()
    }


def krea_file(layout: str = "full") -> Path:
    """A small Krea 2 as it is published: names and numbers alone; layers in 8 bits as ComfyUI writes and wrote them."""
    path = FOLDER / f"krea-{layout}.safetensors"
    if path.exists():
        return path
    tensors = krea_weights()
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    for name, value in list(tensors.items()):
        layer, _, last = name.rpartition(".")
        if layout == "full" or last != "weight" or not name.startswith("blocks."):
            continue
        scale = value.abs().max() / 448
        tensors[name] = (value / scale).to(torch.float8_e4m3fn)
        if layout == "marked":
            tensors |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": mark.clone()}
        else:
            tensors |= {f"{layer}.scale_weight": scale}
    if layout == "old":
        tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_file(tensors, str(path))
    return path


def krea_models(layout: str = "full") -> tuple[Any, Any]:
    """The same file as our MODEL and as ComfyUI's own."""
    path = krea_file(layout)
    return model.load_model(path), comfy.sd.load_diffusion_model(str(path))


def krea_states(length: int) -> torch.Tensor:
    spec = KREA_CONFIG.vlm
    random = torch.Generator().manual_seed(length)
    return torch.randn(1, length, len(spec.taps) * spec.hidden_size, generator=random)


def krea_drawn(
    model: Any, sigmas: torch.Tensor, cfg: float, latent: torch.Tensor = KREA_LATENT
) -> torch.Tensor:
    """By stock SamplerCustom, for two prompts of unequal length."""
    positive, negative = ([[krea_states(length), {}]] for length in (19, 6))
    drawn = custom_sampler.SamplerCustom.execute(
        model, True, SEED, cfg, positive, negative, comfy.samplers.sampler_object("euler"), sigmas,
        {"samples": latent},
    )  # fmt: skip
    return drawn.args[0]["samples"]


@case
def krea_2_is_drawn_alike() -> dict[str, float]:
    """Our MODEL against ComfyUI's own for the same file, schedules of both kinds, an odd size, a batch."""
    ours, theirs = krea_models()
    found = {}
    for name in ("krea-2 raw", "krea-2 turbo"):
        sigmas = sampling.sigmas_for(ours, {"samples": KREA_LATENT}, STEPS, name)
        for cfg in (1.0, CFG):
            found[f"{name}, cfg {cfg}"] = difference(
                krea_drawn(ours, sigmas, cfg), krea_drawn(theirs, sigmas, cfg)
            )
    for name, latent in (("odd", torch.zeros(1, 16, 1, 7, 9)), ("batch", torch.zeros(3, 16, 1, 6, 8))):
        found[name] = difference(
            krea_drawn(ours, sigmas, CFG, latent), krea_drawn(theirs, sigmas, CFG, latent)
        )
    return found


@case
def krea_2_stock_sampler() -> float:
    """KSampler as it comes: ComfyUI's own shift is turbo's (its grid of times is finer than ours, but five steps lie on both)."""
    ours, theirs = krea_models()
    states = [[[krea_states(length), {}]] for length in (19, 6)]
    return difference(*(by_comfyui(model, *states, KREA_LATENT) for model in (ours, theirs)))


@case
def krea_2_schedules() -> dict[str, Any]:
    """UniFusionSchedule's times against the published formula, and what stock SamplerCustom draws with them against the core."""
    ours, _ = krea_models()
    core = generator_file.load_generator(krea_file())[0]
    found: dict[str, Any] = {"automatic": []}
    for name, mu in (("krea-2 raw", 0.5 + 0.65 * (28 - 256) / (6400 - 256)), ("krea-2 turbo", 1.15)):
        sigmas = schedule.UniFusionSchedule.execute(ours, {"samples": KREA_LATENT}, 8, name).args[0]
        uniform = torch.linspace(1, 1 / 8, 8)
        published = math.exp(mu) / (math.exp(mu) + 1 / uniform - 1)
        found[name] = difference(sigmas, torch.cat([published, torch.zeros(1)]))
        automatic = sampling.sigmas_for(ours, {"samples": KREA_LATENT}, 8, sampling.AUTOMATIC)
        found["automatic"].append(torch.equal(sigmas, automatic))
        pooled = [core.pool(krea_features(length)) for length in (19, 6)]
        noise = noise_for(KREA_LATENT)[:, :, 0]
        expected = sample(core, pooled[0], noise, sigmas, negative=pooled[1], cfg=CFG)[:, :, None]
        out = ours.get_model_object("latent_format").process_out(expected)
        found[name + " drawn"] = difference(krea_drawn(ours, sigmas, CFG), out)
    return found


def krea_features(length: int) -> Features:
    spec = KREA_CONFIG.vlm
    mask = torch.ones(1, length, dtype=torch.bool)
    return Features(
        states=krea_states(length).unflatten(-1, (len(spec.taps), spec.hidden_size)),
        mask=mask,
        roles=mask.long(),
        token_ids=mask.long(),
        positions=torch.zeros(1, length, 3),
    )


def krea_loras() -> dict[str, dict[str, torch.Tensor]]:
    """One LoRA in every layout that Krea 2's are published in."""
    diffusers = {  # diffusers' names of layers
        "blocks.1.attn.wq": "transformer_blocks.1.attn.to_q",
        "blocks.0.attn.wo": "transformer_blocks.0.attn.to_out.0",
        "blocks.0.attn.gate": "transformer_blocks.0.attn.to_gate",
        "blocks.1.mlp.down": "transformer_blocks.1.ff.down",
        "txtfusion.layerwise_blocks.0.attn.wk": "text_fusion.layerwise_blocks.0.attn.to_k",
        "txtfusion.refiner_blocks.1.mlp.up": "text_fusion.refiner_blocks.1.ff.up",
        "txtfusion.projector": "text_fusion.projector",
        "txtmlp.1": "txt_in.linear_1",
        "first": "img_in",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "last.linear": "final_layer.linear",
    }
    random = torch.Generator().manual_seed(4)
    weights = krea_weights()
    parts = {
        name: [torch.randn(size, generator=random) * 0.2 for size in ((3, weights[f"{name}.weight"].shape[1]),
                                                                       (weights[f"{name}.weight"].shape[0], 3))]
        for name in diffusers
    }  # fmt: skip

    def written(key: Callable[[str], str], down: str, up: str) -> dict[str, torch.Tensor]:
        return {
            f"{key(name)}.{suffix}.weight": value
            for name, pair in parts.items()
            for suffix, value in zip((down, up), pair, strict=True)
        }

    peft, kohya = ("lora_A", "lora_B"), ("lora_down", "lora_up")
    return {
        "diffusers": written(lambda name: f"transformer.{diffusers[name]}", *peft),
        "diffusers, bare": written(lambda name: diffusers[name], *peft),
        "diffusers below diffusion_model": written(lambda name: f"diffusion_model.{diffusers[name]}", *peft),
        "diffusion_model": written(lambda name: f"diffusion_model.{name}", *peft),
        "kohya": written(lambda name: f"lora_unet_{name.replace('.', '_')}", *kohya),
        "lycoris": written(lambda name: f"lycoris_{diffusers[name].replace('.', '_')}", *kohya),
    }


@case
def krea_2_loras() -> dict[str, Any]:
    """Weights after stock LoraLoader: ours against ComfyUI's own, and which layers have changed."""
    found = {}
    (FOLDER / "models" / "loras").mkdir(parents=True, exist_ok=True)
    for name, lora in krea_loras().items():
        file = f"{name}.safetensors"
        save_file(lora, str(FOLDER / "models" / "loras" / file))
        weights = []
        for model in krea_models():
            (patched,) = stock.LoraLoaderModelOnly().load_lora_model_only(model, file, 0.7)
            mm.load_models_gpu([patched], force_patch_weights=True)
            weights.append({k: v.clone() for k, v in patched.model.diffusion_model.state_dict().items()})
        plain = krea_weights()
        changed = [k for k, v in weights[0].items() if not torch.equal(v, plain[k])]
        found[name] = {
            "changed": len(changed) == len(lora) // 2,
            "same": all(torch.equal(v, weights[1][k]) for k, v in weights[0].items()),
        }
    return found


@case
def krea_2_in_8_bits() -> dict[str, Any]:
    """Kept in 8 bits, drawn as by ComfyUI's own and as by the core with scaled-back weights; a LoRA on top; saved and opened."""
    found: dict[str, Any] = {}
    for layout in ("marked", "old"):
        ours, theirs = krea_models(layout)
        sigmas = sampling.sigmas_for(ours, {"samples": KREA_LATENT}, STEPS, "krea-2 turbo")
        core = generator_file.load_generator(krea_file(layout))[0]
        pooled = [core.pool(krea_features(length)) for length in (19, 6)]
        exact = sample(core, pooled[0], noise_for(KREA_LATENT)[:, :, 0], sigmas, negative=pooled[1], cfg=CFG)
        drawn = krea_drawn(ours, sigmas, CFG)
        out = ours.get_model_object("latent_format").process_out(exact[:, :, None])
        weight = ours.model.diffusion_model.blocks[0].attn.wq.weight
        found[layout] = {
            "type": str(weight._qdata.dtype),
            "theirs": difference(drawn, krea_drawn(theirs, sigmas, CFG)),
            "core": difference(drawn, out),
        }
        comfy.sd.save_checkpoint(str(FOLDER / "krea-saved.safetensors"), ours, metadata={"format": "pt"})
        again = model.load_model(FOLDER / "krea-saved.safetensors")
        found[layout]["saved"] = difference(krea_drawn(again, sigmas, CFG), drawn)
    lora = krea_loras()["diffusers"]
    patched = []
    for model in (ours, theirs):
        with_lora, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        patched.append(krea_drawn(with_lora, sigmas, CFG))
    return found | {"lora": difference(*patched), "effect": difference(patched[0], drawn)}


# Loaded in part --------------------------------------------------------------------------------------


@contextmanager
def little_room(model: torch.nn.Module, share: float) -> Iterator[None]:
    """While it lasts, the manager has room for this share of a model and no more, as if on a card: the layers left over wait
    outside and are fetched, and patched, each time they are called."""
    plain = mm.LoadedModel.model_load

    def load(loaded: Any, budget: float = 0, force_patch_weights: bool = False) -> Any:
        return plain(loaded, share * loaded.model_memory(), force_patch_weights)

    mm.unload_all_models()
    for module in model.modules():
        wipe_lowvram_weight(
            module
        )  # ComfyUI 0.33 forgets to, for a text encoder that was loaded whole before
    mm.LoadedModel.model_load = load
    try:
        yield
    finally:
        mm.LoadedModel.model_load = plain
        mm.unload_all_models()


def loaded_alike(patcher: Any, layers: list[str], compute: Callable[[], torch.Tensor]) -> dict[str, Any]:
    """What is computed with patches on these layers and all of the model loaded, against a fifth of it."""
    plain = compute()
    random = torch.Generator().manual_seed(5)
    for name in layers:
        change = torch.randn(patcher.model.get_submodule(name).weight.shape, generator=random)
        patcher.add_patches({f"{name}.weight": ("diff", (change * 0.05,))})
    mm.unload_all_models()
    whole = compute()
    with little_room(patcher.model, 0.2):
        part = compute()
        found = {
            "in part": patcher.model.model_lowvram,
            "patched on the way": patcher.lowvram_patch_counter(),
        }
        share = patcher.loaded_size() / patcher.model_size()
    return found | {
        "share": share,
        "difference": difference(part, whole),
        "effect": difference(whole, plain),
        "again": difference(compute(), whole),
    }


@case
def generator_loaded_in_part() -> dict[str, Any]:
    model = comfy_model_of()
    layers = [f"diffusion_model.blocks.{i}.{part}" for i in range(3) for part in ("attn.wq", "mlp.down")]
    layers.append("diffusion_model.txtfusion.layerwise_blocks.0.attn.wq")
    positive, negative = conditioning(features(9, 4)), conditioning(features(5))
    return loaded_alike(model, layers, lambda: by_comfyui(model, positive, negative, LATENT))


@case
def vlm_loaded_in_part() -> dict[str, Any]:
    clip = embedded_clip()
    parts = ("mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj")
    layers = [f"backbone.model.model.language_model.layers.{i}.{part}" for i in range(4) for part in parts]

    def states() -> torch.Tensor:
        _, encoded = clip.encode(clip, "big red circle at top left", pictures(), 5)
        return encoded.features.states

    return loaded_alike(clip.patcher, layers, states)


@case
def nothing_of_the_vlm_is_left_behind() -> dict[str, list[str]]:
    """On which devices the VLM's weights are once it is called, if the manager left them all where they wait: only ComfyUI's
    own layers fetch theirs. A device without memory takes the part of the card."""
    encoder = embedded_clip().cond_stage_model
    encoder.set_clip_options({"execution_device": torch.device("meta")})
    devices: dict[str, set[str]] = {"fetched when called": set(), "the rest": set()}
    for module in encoder.modules():
        kind = "fetched when called" if hasattr(module, "comfy_cast_weights") else "the rest"
        weights = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        devices[kind] |= {each.device.type for each in weights}
    return {kind: sorted(found) for kind, found in devices.items()}


# The VLM --------------------------------------------------------------------------------------------


def embedded_clip() -> Any:
    return clip.load_clip(tiny.VLM, TINY.config.vlm)


def pictures() -> list[torch.Tensor]:
    return [torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(n)) for n in range(2)]


@case
def vlm_states() -> dict[str, Any]:
    """Features through ComfyUI's CLIP against the backbone alone, with and without pictures; stock encoding, too."""
    clip, plain = embedded_clip(), load_vlm(tiny.VLM)
    found: dict[str, Any] = {}
    for name, images in (("text", []), ("pictures", pictures())):
        request = Request(prompt="big red circle at top left", pictures=[i[0].movedim(-1, 0) for i in images])
        spec = TINY.config.vlm
        inputs = plain.prepare([request], spec.template, 5)
        expected = select_tokens(plain.encode(inputs, spec), spec.token_selection)
        tokens, given = clip.encode(clip, request.prompt, images, 5)
        found[name] = difference(given.features.states, expected.states)
        found[name + " places"] = bool((given.features.positions == expected.positions).all())
        found[name + " tiles"] = list(clip.tiles_of(tokens).shape)
    (stock_encoded,) = stock.CLIPTextEncode().encode(clip, "big red circle at top left")
    _, expected = clip.encode(clip, "big red circle at top left", [], 10)
    found["stock"] = difference(stock_encoded[0][0], expected.features.states.flatten(2))
    found["empty prompt"] = stock.CLIPTextEncode().encode(clip, "")[0][0][0].shape[1]
    return found


@case
def vlm_text() -> dict[str, Any]:
    """What stock Generate Text does: greedy as the backbone's, sampled the same for the same seed."""
    clip, plain = embedded_clip(), load_vlm(tiny.VLM)
    inputs = plain.prepare([Request(prompt="a red ball")], TINY.config.vlm.template)
    tokens = clip.tokenize("a red ball", image=None, skip_template=False, min_length=1, thinking=False)

    def written(**options: Any) -> str:
        return clip.decode(clip.generate(tokens, max_length=12, **options))

    warm = {"do_sample": True, "temperature": 2.0}
    return {
        "greedy": written(do_sample=False) == plain.generate(inputs, max_new_tokens=12)[0],
        "seeds": [
            written(seed=1, **warm) == written(seed=1, **warm),
            written(seed=1, **warm) == written(seed=2, **warm),
        ],
    }


@case
def generation_is_interrupted() -> str:
    clip = embedded_clip()
    tokens = clip.tokenize("a red ball")
    mm.interrupt_current_processing(True)
    try:
        clip.generate(tokens, do_sample=False, max_length=12)
    except mm.InterruptProcessingException:
        return "interrupted"
    finally:
        mm.interrupt_current_processing(False)
    return "ran to its end"


# ComfyUI's own Qwen3-VL -------------------------------------------------------------------------------


@contextmanager
def small_qwen() -> Iterator[tuple[VLMBackbone, dict[str, torch.Tensor], dict[str, Any]]]:
    """Qwen3-VL-4B but for its widths, random: a folder as the pack opens it, the same weights as they stand in ComfyUI's single
    files, and ComfyUI's options for such a size. The pack reads that size while this lasts."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]}
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 151936,
    }
    config = transformers.Qwen3VLConfig(
        vision_config=vision
        | {"num_heads": 2, "patch_size": 16, "num_position_embeddings": 2304, "out_hidden_size": 64},
        text_config=text
        | {
            "head_dim": 128,
            "num_hidden_layers": 36,
            "initializer_range": 0.3,  # lively, so that one word follows another
            "rms_norm_eps": 1e-6,
            "rope_theta": 5e6,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "max_position_embeddings": 262144,
            "tie_word_embeddings": True,
        },
        image_token_id=151655,
        tie_word_embeddings=True,
    )
    folder = FOLDER / "qwen3_vl"
    if not folder.exists():
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(
            Path(qwen3vl.__file__).parent / "qwen25_tokenizer"
        ).save_pretrained(folder)
    plain = load_vlm(folder)
    weights = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): weight
        for name, weight in plain.model.state_dict().items()
        if name != "lm_head.weight"
    }
    before = qwen3vl.QWEN3VL_VISION["qwen3vl_4b"], dict(qwen3vl.QWEN3VL_VISION_COMMON), stock_clip.SPEC
    qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = vision
    qwen3vl.QWEN3VL_VISION_COMMON["num_heads"] = 2
    stock_clip.SPEC = replace(KREA_2.config.config.vlm, hidden_size=64)
    try:
        yield plain, weights, {"dtype": torch.float32, "qwen3vl_4b_model_config": text}
    finally:
        qwen3vl.QWEN3VL_VISION["qwen3vl_4b"], common, stock_clip.SPEC = before
        qwen3vl.QWEN3VL_VISION_COMMON.update(common)


def stock_clip(weights: dict[str, torch.Tensor], options: dict[str, Any], model: Any, tokens: Any) -> Any:
    """What Load CLIP makes of a file with these weights."""
    target = comfy.supported_models_base.ClipTarget(tokens, model(**comfy.sd.llama_detect([weights])))
    return comfy.sd.CLIP(target, state_dict=[dict(weights)], model_options=options)


def scaled_fp8(
    weights: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The language model's large weights in ComfyUI's layout for fp8, and what they are worth."""
    stored, worth = {}, {}
    for name, weight in weights.items():
        if not name.startswith("model.layers.") or weight.ndim < 2:
            stored[name] = worth[name] = weight
            continue
        layer = name.removesuffix(".weight")
        scale = weight.abs().amax() / 448
        stored[name] = (weight / scale).to(torch.float8_e4m3fn)
        stored[f"{layer}.weight_scale"] = scale
        says = json.dumps({"format": "float8_e4m3fn"}).encode()
        stored[f"{layer}.comfy_quant"] = torch.tensor(list(says), dtype=torch.uint8)
        worth[name] = stored[name].float() * scale
    return stored, worth


def set_weights(plain: VLMBackbone, weights: dict[str, torch.Tensor]) -> None:
    """Put weights under ComfyUI's names into the folder's model."""
    named = {
        re.sub(r"^model\.", "model.language_model.", re.sub(r"^visual\.", "model.visual.", name)): weight
        for name, weight in weights.items()
        if not name.startswith("visual.")
    }
    missing = plain.model.load_state_dict(named, strict=False).unexpected_keys
    assert not missing, missing


@case
def stock_text_encoder() -> dict[str, Any]:
    """Features and text of the object that Load CLIP of type krea2 makes, against the folder with the same weights."""
    found: dict[str, Any] = {}
    images = [torch.rand(1, 448, 896, 3), torch.rand(1, 448, 448, 3)]  # cut without being resized
    request = Request(prompt="make it (blue)", pictures=[i[0].movedim(-1, 0) for i in images])
    with small_qwen() as (plain, weights, options):
        clip = stock_clip(weights, options, krea2.te, krea2.Krea2Tokenizer)
        spec = stock_clip.SPEC
        for name, each in (("text", replace(request, pictures=())), ("pictures", request)):
            tokens, given = clip.encode(clip, each.prompt, images if each.images else [], 5)
            expected = rewrite.read(plain, spec, [each], max_tiles=5)
            found[name] = by_tap(given.features.states, expected.states)
            found[name + " rest"] = all(
                torch.equal(getattr(given.features, field), getattr(expected, field))
                for field in ("mask", "roles", "token_ids", "positions")
            )
        found["tiles"] = len(clip.tiles_of(tokens))
        (stock_encoded,) = stock.CLIPTextEncode().encode(clip, "a red ball")
        own = clip.encode(clip, "a red ball", [], 5)[1]
        found["stock"] = difference(own.features.states.flatten(2), stock_encoded[0][0])
        for states in ("one_pass", "reencode"):
            given, _ = rewritten(clip, request.prompt, images, locked_text="a blue ball", states=states)
            locked = replace(request, rewrite="a blue ball")
            expected = rewrite.read(plain, spec, [locked], max_tiles=5, states=states)
            found[states] = by_tap(given.features.states, expected.states)
        found |= written_alike(clip, plain, request)
        stored, worth = scaled_fp8(weights)
        quantised = stock_clip(stored, options, krea2.te, krea2.Krea2Tokenizer)
        set_weights(plain, worth)
        given = clip.encode(quantised, request.prompt, images, 5)[1]
        plain.clear_image_caches()
        expected = rewrite.read(plain, spec, [request], max_tiles=5)
        found["quantised"] = by_tap(given.features.states, expected.states)
        kinds = {
            type(m.weight).__name__ for m in quantised.cond_stage_model.modules() if hasattr(m, "weight")
        }
        found["kinds of weights"] = sorted(kinds)
    return found


def written_alike(clip: Any, plain: VLMBackbone, request: Request) -> dict[str, Any]:
    """Greedy text, its states and where it ends, ComfyUI's generation against the backbone's."""
    spec = stock_clip.SPEC
    inputs = plain.prepare([request], spec.template, 5)
    expected = plain.write(inputs, spec, max_new_tokens=6)
    with clip.at_work(clip, {"inputs": inputs}) as encoder:
        config = encoder.backbone.model.model.config
        given = encoder.backbone.write(inputs, spec, max_new_tokens=6, seed=0)
        words = expected.features.token_ids[0, -6:].tolist()
        last = max(words.index(word) for word in words)
        config.stop_tokens = [words[last]]  # the word that is the last to appear ends a text now
        stopped = encoder.backbone.write(inputs, (), max_new_tokens=6, seed=0)
        del config.stop_tokens
        warm = [
            encoder.backbone.write(inputs, (), max_new_tokens=6, temperature=2.0, seed=seed).texts
            for seed in (1, 1, 2)
        ]
    return {
        "words": given.texts == expected.texts and given.ended == expected.ended == [False],
        "states of words": by_tap(given.features.states, expected.features.states),
        "stopped": stopped.ended == [True] and stopped.texts == [plain.tokenizer.decode(words[:last])],
        "words before the stop": last,
        "seeds": [warm[0] == warm[1], warm[0] == warm[2]],
    }


@case
def stock_sentences() -> dict[str, str]:
    """What a user reads whose text encoder cannot serve."""

    class OtherKind:
        cond_stage_model = torch.nn.Linear(1, 1)

    with small_qwen() as (_, weights, options):
        clip = stock_clip(weights, options, krea2.te, krea2.Krea2Tokenizer)
        stock_clip.SPEC = KREA_2.config.config.vlm
        attempts = {
            "other width": lambda: clip.encode(clip, "", [], 5),
            "other encoder": lambda: clip.encode(OtherKind(), "", [], 5),
        }
        return {name: sentence_of(attempt) for name, attempt in attempts.items()}


def sentence_of(attempt: Callable[[], Any]) -> str:
    """What an attempt says that fails; empty if it does not."""
    try:
        attempt()
    except Exception as error:  # every kind is looked at by the test
        return f"{type(error).__name__}: {error}"
    return ""


# VERIFI ---------------------------------------------------------------------------------------------


def rewritten(clip: Any, prompt: str, images: list[torch.Tensor], **changes: Any) -> tuple[Encoded, str]:
    how = {
        "style": "caption",
        "locked_text": "",
        "states": "automatic",
        "max_new_tokens": 64,
        "temperature": 0.0,
        "seed": 0,
    }
    return clip.rewrite(clip, prompt, images, 5, **how | changes)


@case
def verifi() -> dict[str, Any]:
    """The rewrite node against the core, its own text locked, and one word of it changed; states taken both ways."""
    clip, plain, spec = embedded_clip(), load_vlm(tiny.VLM), TINY.config.vlm
    given, text = rewritten(clip, "a red ball in the snow", [])
    (expected,) = rewrite.rewrite(plain, spec, [Request(prompt="a red ball in the snow")])
    locked, locked_text = rewritten(clip, "a red ball in the snow", [], locked_text=text)
    changed, _ = rewritten(clip, "a red ball in the snow", [], locked_text=text.replace("white", "black"))
    again, _ = rewritten(clip, "a red ball in the snow", [], states="reencode")
    reencoded = rewrite.read(plain, spec, [Request(prompt=text)])
    warm = [rewritten(clip, "a shape", [], temperature=2.0, seed=seed)[1] for seed in (1, 1, 2)]
    return {
        "text": text == expected.request.rewrite == locked_text,
        "states": difference(given.features.states, expected.features.states),
        "locked": difference(locked.features.states, expected.features.states),
        "changed": difference(changed.features.states, expected.features.states),
        "reencoded": difference(again.features.states, reencoded.states),
        "seeds": [warm[0] == warm[1], warm[0] == warm[2]],
    }


@case
def pictures_read_once() -> dict[str, Any]:
    """How often the VLM looks at pictures for three instructions about them, and after a LoRA has changed it."""
    clip = embedded_clip()
    looks: list[int] = []
    vision = clip.encoder_of(clip).backbone.model.model.vision_tower
    vision.register_forward_pre_hook(lambda *_: looks.append(1))
    images = pictures()
    first = clip.encode(clip, "make it blue", images, 5)[1]
    clip.encode(clip, "remove the star", images, 5)
    same = clip.encode(clip, "make it blue", images, 5)[1]
    counts = [len(looks)]
    clip.patcher.patches_uuid = uuid.uuid4()  # what adding a LoRA does
    clip.encode(clip, "make it blue", images, 5)
    return {
        "looks": [*counts, len(looks)],
        "difference": difference(first.features.states, same.features.states),
    }


@case
def rewriting_is_interrupted() -> str:
    clip = embedded_clip()
    mm.interrupt_current_processing(True)
    try:
        rewritten(clip, "a red ball", [])
    except mm.InterruptProcessingException:
        return "interrupted"
    finally:
        mm.interrupt_current_processing(False)
    return "ran to its end"


@case
def latents_from_pictures() -> list[Any]:
    return [
        [list(latent["samples"].shape), size]
        for latent, size in (
            host.empty_latent_for(torch.zeros(3, 112, 160)),
            host.empty_latent_for(torch.zeros(3, 101, 203)),
            host.empty_latent_for(torch.zeros(3, 1000, 2000), 80_000),
        )
    ]


# Sentences ------------------------------------------------------------------------------------------


# Looking inside LAP ---------------------------------------------------------------------------------


@case
def layer_gains() -> dict[str, float]:
    """Pooling with gains through the MODEL wire against the core; without any, and empty, it is as trained."""
    core, model, given = core_model(), comfy_model_of(), Encoded(features(9, 4), CONFIG.vlm)

    def against(text: str, gains: tuple[float, ...] | None) -> float:
        return difference(model.pool(model, given, text)[0][0], core.pool(given.features, gains).tokens)

    return {
        "written out": against("1, 0, 0.5", (1.0, 0.0, 0.5)),
        "named": against("3: 0.5", (1.0, 1.0, 0.5)),
        "none": against("", None),
        "effect": against("1, 0, 0.5", None),
    }


@case
def layers_read() -> dict[str, Any]:
    """What the inspecting node reads against the core, and with a LoRA on LAP; the tiny model looking at a picture."""
    core, model, given = core_model(), comfy_model_of(), Encoded(features(9, 4), CONFIG.vlm)
    expected, seen = reading.read_layers(core, given.features), model.read_layers(model, given)
    patched = model.clone()
    patched.add_patches(
        {"diffusion_model.txtfusion.projector.weight": ("diff", (torch.tensor([[0.0, 3.0, 0.0]]),))}, 1.0
    )
    with_lora = model.read_layers(patched, given)
    embedded_model = model.load_model(tiny.GENERATOR)
    clip = clip.load_clip(tiny.VLM, embedded_model.model.model_config.unifusion.vlm)
    _, encoded = clip.encode(clip, "make the $circle$ blue", pictures(), 5)
    drawn, table = UniFusionLAPInspect.execute(embedded_model, encoded).args
    return {
        "shares": difference(seen.shares, expected.shares),
        "attention": max(map(difference, seen.attention, expected.attention)),
        "weight gained by a lora": float(with_lora.weights[1] - expected.weights[1]),
        "shape": list(drawn.shape),
        "range": [float(drawn.min()), float(drawn.max())],
        "table": table,
    }


@case
def sentences() -> dict[str, str]:
    """What a user reads who connects the wrong thing."""
    clip, model = embedded_clip(), comfy_model_of()
    broken = pictures()[0].clone()
    broken[0, 3, 3, 0] = float("nan")
    foreign = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    other_vlm = replace(CONFIG.vlm, hidden_size=160, num_layers=9)
    other_taps = replace(CONFIG.vlm, taps=(0, 1, 4))  # as many, so that no shape gives it away
    tokens, rest = conditions.flattened(features(5), other_taps)
    encoded_for_others = [[tokens, rest]]
    unequal = join_features([features(5), features(3)])

    class OtherKind:
        model = torch.nn.Linear(1, 1)
        cond_stage_model = torch.nn.Linear(1, 1)

    attempts: dict[str, Callable[[], Any]] = {
        "rewrite without an end": lambda: rewritten(clip, "a red ball", [], max_new_tokens=2),
        "huge picture": lambda: host.empty_latent_for(torch.zeros(3, 200, 8000)),
        "nan picture": lambda: clip.encode(clip, "", [broken], 5),
        "gray picture": lambda: clip.encode(clip, "", [pictures()[0][..., :1]], 5),
        "long prompt": lambda: stock.CLIPTextEncode().encode(clip, "red circle " * 2000),
        "foreign conditioning": lambda: by_comfyui(model, foreign, foreign, LATENT),
        "other clip": lambda: clip.encode(OtherKind(), "", [], 5),
        "other model": lambda: sampling.sigmas_for(OtherKind(), {"samples": LATENT}, 4, "uniform"),
        "other features": lambda: model.pool(model, Encoded(features(5), other_taps)),
        "other features looked at": lambda: model.read_layers(model, Encoded(features(5), other_taps)),
        "gains for other layers": lambda: model.pool(model, Encoded(features(5), CONFIG.vlm), "1, 1"),
        "other taps": lambda: by_comfyui(model, encoded_for_others, encoded_for_others, LATENT),
        "unequal lengths for krea 2": lambda: krea2.krea2_conditioning(Encoded(unequal, KREA_2.config.config.vlm)),
        "other features for krea 2": lambda: krea2.krea2_conditioning(Encoded(features(5), CONFIG.vlm)),
        "other vlm": lambda: clip.load_clip(tiny.VLM, other_vlm),
        "latent of other channels": lambda: by_comfyui(
            model, conditioning(features(5)), conditioning(features(5)), torch.ones(1, 4, 8, 8)
        ),
    }
    return {name: sentence_of(attempt) for name, attempt in attempts.items()}


def main() -> None:
    results: dict[str, Any] = {}
    for name in CHOSEN or CASES:
        try:
            results[name] = CASES[name]()
        except Exception:  # the other cases shall be measured all the same
            results[name] = {"failed": traceback.format_exc()}
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    main()
