"""Krea 2 in the pack's MODEL draws as in ComfyUI's own, and as the core does."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management as mm
import comfy.sd
import torch
from safetensors.torch import save_file
from the_pack.nodes.comfy import host, sampling
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.load_model import UniFusionModelLoader
from the_pack.nodes.schedule import UniFusionSchedule
from the_pack.unifusion_core.checkpoints.generator_file import load_generator
from the_pack.unifusion_core.sampling import sample
from torch import Tensor

from .case import PARITY, case, close, difference, rms
from .small_krea import (
    KREA_LATENT,
    QUANTISED,
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
def krea_2_quantised() -> dict[str, Any]:
    """Layers that stay as they are stored, against ComfyUI's own loader and against the core with dequantised weights; saved and
    opened again."""
    plain = krea_drawn(krea_models()[0], _sigmas(krea_models()[0], STEPS, "krea-2 turbo"), CFG)
    return {layout: _quantised(layout, plain) for layout in QUANTISED if layout != "fp8 per row"}


def _quantised(layout: str, plain: Tensor) -> dict[str, Any]:
    ours, theirs = krea_models(layout)
    sigmas = _sigmas(ours, STEPS, "krea-2 turbo")
    drawn = krea_drawn(ours, sigmas, CFG)
    saved = FOLDER / "krea-saved.safetensors"
    comfy.sd.save_checkpoint(str(saved), ours, metadata={"format": "pt"})
    blocks, their_blocks = ours.model.diffusion_model.blocks, theirs.model.diffusion_model.blocks
    return {
        "layer": blocks[0].attn.wq.weight._layout_cls,
        "same weights": _same(blocks.state_dict(), their_blocks.state_dict()),
        "layers": _layers_differ(blocks, their_blocks),
        "theirs": difference(drawn, krea_drawn(theirs, sigmas, CFG)),
        "saved": difference(krea_drawn(load_model(saved), sigmas, CFG), drawn),
        "core": difference(drawn, by_core := _by_core(ours, sigmas, layout)),
        "lost": rms(by_core, plain),
    }


def _same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether all stored numbers and scales are the same."""
    same = (torch.equal(given[name].view(-1), value.view(-1)) for name, value in expected.items())
    return given.keys() == expected.keys() and all(same)


def _layers_differ(given: torch.nn.Module, expected: torch.nn.Module) -> float:
    """The largest difference of what the quantised layers make of one input."""
    found, random = [], torch.Generator().manual_seed(2)
    for name, layer in given.named_modules():
        if hasattr(layer, "quant_format"):
            x = torch.randn(5, layer.in_features, generator=random)
            found.append(difference(layer(x), expected.get_submodule(name)(x)))
    assert found
    return max(found)


# ComfyUI rounds the inputs of these layers to 8 or 4 bits, where a difference in the last bit becomes one of a whole step: the
# largest differences of a picture
ROUNDED = {
    "int8": 0.05,
    "int8 per row": 0.05,
    "int8 ConvRot": 0.05,
    "asym_w4a8_int8": 0.05,
    "convrot_w4a4": 0.4,
}


@krea_2_quantised.check
def _(found: dict[str, dict[str, Any]]) -> None:
    assert len(found) == 9
    for layout, each in found.items():
        assert each["same weights"], layout
        assert close(each["layers"]), layout
        rounding = ROUNDED.get(layout, PARITY)
        assert all(each[name] <= rounding for name in ("theirs", "saved", "core")), layout
        # of the order of the format's own error, which a wrong scale would exceed many times
        assert 0.001 < each["lost"] < 0.2, layout


@case()
def krea_2_fp8_per_row() -> dict[str, Any]:
    """fp8 with a scale per row, which ComfyUI's own fp8 layers cannot hold, against the core."""
    path = krea_file("fp8 per row")
    ours = load_model(path)
    sigmas = _sigmas(ours, STEPS, "krea-2 turbo")
    drawn = krea_drawn(ours, sigmas, CFG)
    return {
        "core": difference(drawn, _by_core(ours, sigmas, "fp8 per row")),
        "lost": rms(drawn, krea_drawn(krea_models()[0], sigmas, CFG)),
    }


@krea_2_fp8_per_row.check
def _(found: dict[str, float]) -> None:
    assert found["core"] <= PARITY
    assert 0.001 < found["lost"] < 0.1


@case()
def krea_2_all_in_one() -> dict[str, Any]:
    """A checkpoint with text encoder and VAE in models/checkpoints, as ComfyUI saves it, in the loader's list; the other
    checkpoints there are not in it."""
    folder = FOLDER / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    everything = {f"model.diffusion_model.{name}": value for name, value in krea_weights().items()}
    everything |= {
        "text_encoders.qwen3vl_4b.model.norm.weight": torch.ones(4),
        "vae.conv1.weight": torch.ones(4),
    }
    everything["model.diffusion_model.last.down.weight"] = torch.ones(4, 4)
    save_file(everything, str(folder / "krea-all-in-one.safetensors"))
    save_file(
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}, str(folder / "sd15.safetensors")
    )
    names = [name for name in host.generator_names() if name.startswith("checkpoints/")]
    ours = UniFusionModelLoader.execute(names[0], "default").args[0]
    sigmas = _sigmas(ours, STEPS, "krea-2 turbo")
    plain = krea_drawn(krea_models()[0], sigmas, CFG)
    return {"names": names, "difference": difference(krea_drawn(ours, sigmas, CFG), plain)}


@krea_2_all_in_one.check
def _(found: dict[str, Any]) -> None:
    assert found["names"] == ["checkpoints/krea-all-in-one.safetensors"]
    assert found["difference"] <= PARITY


@case()
def krea_2_lora_on_8_bits() -> dict[str, float]:
    """A LoRA on weights in 8 bits, against ComfyUI's own model."""
    models = krea_models("fp8 of the old layout")
    sigmas, lora = _sigmas(models[0], STEPS, "krea-2 turbo"), krea_loras()["diffusers"]
    plain = krea_drawn(models[0], sigmas, CFG)
    patched = [comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0] for model in models]
    ours, theirs = (krea_drawn(model, sigmas, CFG) for model in patched)
    return {"difference": difference(ours, theirs), "effect": difference(ours, plain)}


@krea_2_lora_on_8_bits.check
def _(found: dict[str, float]) -> None:
    assert found["difference"] <= PARITY
    assert found["effect"] > 100 * PARITY
