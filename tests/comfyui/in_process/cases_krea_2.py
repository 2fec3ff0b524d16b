"""Krea 2 in the pack's MODEL draws as in ComfyUI's own, and as the core does."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management as mm
import comfy.sd
import torch
from safetensors.torch import save_file
from the_pack.nodes.comfy import sampling
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.schedule import UniFusionSchedule
from the_pack.unifusion_core.checkpoints.generator_file import load_generator
from the_pack.unifusion_core.sampling import sample
from torch import Tensor

from .case import PARITY, case, close, difference
from .small_krea import (
    KREA_LATENT,
    krea_drawn,
    krea_features,
    krea_file,
    krea_loras,
    krea_models,
    krea_states,
    krea_weights,
)
from .small_unifusion import CFG, FOLDER, STEPS, by_comfyui, noise_for, stock


def _sigmas(model: Any, steps: int, schedule: str) -> Tensor:
    return sampling.sigmas_for(model, {"samples": KREA_LATENT}, steps, schedule)


def _by_core(model: Any, sigmas: Tensor, layout: str = "full") -> Tensor:
    """What `krea_drawn` draws, by the core, in the scale of a MODEL's latents."""
    core = load_generator(krea_file(layout))[0]
    positive, negative = (core.pool(krea_features(length)) for length in (19, 6))
    noise = noise_for(KREA_LATENT)[:, :, 0]
    drawn = sample(core, positive, noise, sigmas, negative=negative, cfg=CFG)[:, :, None]
    return model.get_model_object("latent_format").process_out(drawn)


@case(at_most=PARITY)
def krea_2_drawn_alike() -> dict[str, float]:
    """Against ComfyUI's own model: schedules of both variants, with and without guidance, an odd size, a batch."""
    models = krea_models()

    def against(sigmas: Tensor, cfg: float, latent: Tensor = KREA_LATENT) -> float:
        return difference(*(krea_drawn(model, sigmas, cfg, latent) for model in models))

    schedules = {name: _sigmas(models[0], STEPS, name) for name in ("krea-2 raw", "krea-2 turbo")}
    found = {
        f"{name}, cfg {cfg}": against(sigmas, cfg) for name, sigmas in schedules.items() for cfg in (1.0, CFG)
    }
    for name, latent in (("odd", torch.zeros(1, 16, 1, 7, 9)), ("batch", torch.zeros(3, 16, 1, 6, 8))):
        found[name] = against(schedules["krea-2 turbo"], CFG, latent)
    return found


@case(at_most=PARITY)
def krea_2_stock_sampler() -> float:
    """KSampler without any node before it. ComfyUI's own shift is turbo's; its grid of times is finer, and has these five."""
    states = [[[krea_states(length), {}]] for length in (19, 6)]
    return difference(*(by_comfyui(model, *states, latent=KREA_LATENT) for model in krea_models()))


@case()
def krea_2_schedules() -> dict[str, Any]:
    """UniFusion Schedule against the published formula, and what SamplerCustom draws with it against the core."""
    model, _ = krea_models()
    found: dict[str, Any] = {"automatic": []}
    for name, mu in (("krea-2 raw", 0.5 + 0.65 * (28 - 256) / (6400 - 256)), ("krea-2 turbo", 1.15)):
        sigmas = UniFusionSchedule.execute(model, {"samples": KREA_LATENT}, 8, name).args[0]
        uniform = torch.linspace(1, 1 / 8, 8)
        published = math.exp(mu) / (math.exp(mu) + 1 / uniform - 1)
        found[name] = difference(sigmas, torch.cat([published, torch.zeros(1)]))
        found["automatic"].append(torch.equal(sigmas, _sigmas(model, 8, sampling.AUTOMATIC)))
        found[name + " drawn"] = difference(krea_drawn(model, sigmas, CFG), _by_core(model, sigmas))
    return found


@krea_2_schedules.check
def _(found: dict[str, Any]) -> None:
    # a file that does not say its variant counts as turbo
    assert found.pop("automatic") == [False, True]
    assert len(found) == 4
    assert close(*found.values())


@case()
def krea_2_loras() -> dict[str, Any]:
    """Weights after stock LoraLoader: whether the LoRA's layers have changed, and as in ComfyUI's own model."""
    found = {}
    folder = FOLDER / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    plain = krea_weights()
    for name, lora in krea_loras().items():
        save_file(lora, str(folder / f"{name}.safetensors"))
        ours, theirs = (_weights_with_lora(model, f"{name}.safetensors") for model in krea_models())
        changed = [k for k, v in ours.items() if not torch.equal(v, plain[k])]
        found[name] = {
            "changed": len(changed) == len(lora) // 2,
            "same": all(torch.equal(v, theirs[k]) for k, v in ours.items()),
        }
    return found


def _weights_with_lora(model: Any, file: str) -> dict[str, Tensor]:
    (patched,) = stock.LoraLoaderModelOnly().load_lora_model_only(model, file, 0.7)
    mm.load_models_gpu([patched], force_patch_weights=True)
    return {k: v.clone() for k, v in patched.model.diffusion_model.state_dict().items()}


@krea_2_loras.check
def _(found: dict[str, dict[str, bool]]) -> None:
    assert len(found) == 6
    assert all(all(of_layout.values()) for of_layout in found.values())


@case()
def krea_2_in_8_bits() -> dict[str, Any]:
    """Weights that stay in 8 bits, against ComfyUI's own and against the core with dequantized ones; saved and opened again."""
    return {layout: _in_8_bits(layout) for layout in ("marked", "old")}


def _in_8_bits(layout: str) -> dict[str, Any]:
    ours, theirs = krea_models(layout)
    sigmas = _sigmas(ours, STEPS, "krea-2 turbo")
    drawn = krea_drawn(ours, sigmas, CFG)
    saved = FOLDER / "krea-saved.safetensors"
    comfy.sd.save_checkpoint(str(saved), ours, metadata={"format": "pt"})
    return {
        "type": str(ours.model.diffusion_model.blocks[0].attn.wq.weight._qdata.dtype),
        "theirs": difference(drawn, krea_drawn(theirs, sigmas, CFG)),
        "core": difference(drawn, _by_core(ours, sigmas, layout)),
        "saved": difference(krea_drawn(load_model(saved), sigmas, CFG), drawn),
    }


@krea_2_in_8_bits.check
def _(found: dict[str, dict[str, Any]]) -> None:
    for layout in ("marked", "old"):
        assert found[layout].pop("type") == "torch.float8_e4m3fn"
        assert len(found[layout]) == 3
        assert close(*found[layout].values())


@case()
def krea_2_lora_on_8_bits() -> dict[str, float]:
    """A LoRA on weights in 8 bits, against ComfyUI's own model."""
    models = krea_models("old")
    sigmas, lora = _sigmas(models[0], STEPS, "krea-2 turbo"), krea_loras()["diffusers"]
    plain = krea_drawn(models[0], sigmas, CFG)
    patched = [comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0] for model in models]
    ours, theirs = (krea_drawn(model, sigmas, CFG) for model in patched)
    return {"difference": difference(ours, theirs), "effect": difference(ours, plain)}


@krea_2_lora_on_8_bits.check
def _(found: dict[str, float]) -> None:
    assert found["difference"] <= PARITY
    assert found["effect"] > 100 * PARITY
