"""LoRAs, and models of which only a part is loaded: their other layers are fetched and patched when they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.hooks
import comfy.model_management as mm
import torch
from comfy.model_patcher import wipe_lowvram_weight
from the_pack.nodes.comfy.clip import encode
from the_pack.unifusion_core.flow.schedule import build_schedule
from the_pack.unifusion_core.models.unifusion import UniFusion
from torch import Tensor

from .case import PARITY, case, close, difference
from .small_unifusion import (
    CFG,
    LATENT,
    SCHEDULE,
    STEPS,
    by_comfyui,
    by_core,
    conditioning,
    core_model,
    features,
    host_model,
    images,
    noise_for,
    tiny_clip,
)

# LoRA on one condition ------------------------------------------------------------------------------


def _add_lora(model: UniFusion) -> dict[str, Tensor]:
    """A LoRA on LAP, refiner and DiT, which is added to the model's weights."""
    random = torch.Generator().manual_seed(3)
    lora = {}
    for name in (
        "txtfusion.layerwise_blocks.0.attn.wq",
        "txtfusion.refiner_blocks.1.mlp.up",
        "blocks.1.attn.wk",
    ):
        weight: Any = model.get_submodule(name).weight
        down = torch.randn(4, weight.shape[1], generator=random) * 0.2
        up = torch.randn(weight.shape[0], 4, generator=random) * 0.2
        lora[f"diffusion_model.{name}.lora_A.weight"] = down
        lora[f"diffusion_model.{name}.lora_B.weight"] = up
        weight += up @ down
    return lora


def _for_the_first_half(lora: dict[str, Tensor]) -> Any:
    """A hook that applies the LoRA in the first half of the steps."""
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    return hooks


@case()
def hooked_lora() -> dict[str, float]:
    """A LoRA on one condition alone, off from halfway: LAP, refiner and keys follow the weights of each step."""
    core, patched = core_model(), core_model()
    hooks = _for_the_first_half(_add_lora(patched))
    positive, negative = features(9, 4), features(5)
    hooked = comfy.hooks.set_hooks_for_conditioning(conditioning(positive), hooks)
    given = by_comfyui(host_model(), hooked, conditioning(negative))

    x, times = noise_for(LATENT), build_schedule(SCHEDULE, STEPS, 24)
    other = core.prepare(core.pool(negative), (4, 6))
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        # half of the shifted schedule lies above 0.75
        model = patched if t > 0.75 else core
        v = model(x, t[None], model.prepare(model.pool(positive), (4, 6)))
        v_negative = core(x, t[None], other)
        x = x + (t_next - t) * (v_negative + CFG * (v - v_negative))
    plain = by_core(core, core.pool(positive), core.pool(negative))
    return {"difference": difference(given, x), "effect": difference(plain, x)}


@hooked_lora.check
def _(found: dict[str, float]) -> None:
    assert found["difference"] <= PARITY
    assert found["effect"] > 100 * PARITY


# Loaded in part -----------------------------------------------------------------------------------


@contextmanager
def _little_room(model: torch.nn.Module, share: float) -> Iterator[None]:
    """ComfyUI's manager loads no more than this share of a model, as if a graphics card were full."""
    plain = mm.LoadedModel.model_load

    def load(loaded: Any, budget: float = 0, force_patch_weights: bool = False) -> Any:
        return plain(loaded, share * loaded.model_memory(), force_patch_weights)

    mm.unload_all_models()
    for module in model.modules():
        # ComfyUI 0.33 does not, for a text encoder that was loaded whole before
        wipe_lowvram_weight(module)
    mm.LoadedModel.model_load = load
    try:
        yield
    finally:
        mm.LoadedModel.model_load = plain
        mm.unload_all_models()


def _loaded_alike(patcher: Any, layers: list[str], compute: Callable[[], Tensor]) -> dict[str, Any]:
    """With patches on these layers: a fifth of the model loaded against all of it."""
    plain = compute()
    random = torch.Generator().manual_seed(5)
    for name in layers:
        change = torch.randn(patcher.model.get_submodule(name).weight.shape, generator=random)
        patcher.add_patches({f"{name}.weight": ("diff", (change * 0.05,))})
    mm.unload_all_models()
    whole = compute()
    with _little_room(patcher.model, 0.2):
        part = compute()
        found = {
            "in part": patcher.model.model_lowvram,
            "patched when called": patcher.lowvram_patch_counter(),
            "share": patcher.loaded_size() / patcher.model_size(),
        }
    return found | {
        "difference": difference(part, whole),
        "effect": difference(whole, plain),
        "again": difference(compute(), whole),
    }


def _as_loaded_whole(found: dict[str, Any]) -> None:
    assert found["in part"]
    assert found["patched when called"] > 0
    assert 0 < found["share"] < 0.5
    assert close(found["difference"], found["again"])
    assert found["effect"] > 100 * PARITY


@case(check=_as_loaded_whole)
def generator_loaded_in_part() -> dict[str, Any]:
    model = host_model()
    layers = [f"diffusion_model.blocks.{i}.{part}" for i in range(3) for part in ("attn.wq", "mlp.down")]
    layers.append("diffusion_model.txtfusion.layerwise_blocks.0.attn.wq")
    positive, negative = conditioning(features(9, 4)), conditioning(features(5))
    return _loaded_alike(model, layers, lambda: by_comfyui(model, positive, negative))


@case(check=_as_loaded_whole)
def vlm_loaded_in_part() -> dict[str, Any]:
    clip = tiny_clip()
    parts = ("mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj")
    layers = [f"internvl.transformer.model.layers.{i}.{part}" for i in range(4) for part in parts]

    def states() -> Tensor:
        return encode(clip, "big red circle at top left", images(), 5)[1].features.states

    return _loaded_alike(clip.patcher, layers, states)


@case(equals={"fetched when called": ["cpu"], "the rest": ["meta"]})
def nothing_of_the_vlm_is_left_behind() -> dict[str, list[str]]:
    """The devices of the VLM's weights when the manager has loaded none and the VLM is called. Only ComfyUI's own layers fetch
    their weights. The meta device takes the part of the graphics card."""
    encoder = tiny_clip().cond_stage_model
    encoder.set_clip_options({"execution_device": torch.device("meta")})
    devices: dict[str, set[str]] = {"fetched when called": set(), "the rest": set()}
    for module in encoder.modules():
        kind = "fetched when called" if hasattr(module, "comfy_cast_weights") else "the rest"
        weights = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        devices[kind] |= {each.device.type for each in weights}
    return {kind: sorted(found) for kind, found in devices.items()}
