"""Load LoRA for UniFusion: every layout changes the pack's MODEL, ComfyUI's own Krea 2 and the core's weights alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from safetensors.torch import save_file
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.load_lora import UniFusionLoraLoader
from the_pack.unifusion_core.checkpoints.adapter_file import VLM_KEY, merge_adapters
from the_pack.unifusion_core.checkpoints.generator_file import load_generator
from the_pack.unifusion_core.contracts import Features
from the_pack.unifusion_core.training.adapters import add_adapters, save_adapters, unchanged_adapters
from the_pack.unifusion_core.training.config import AdapterConfig
from the_pack.unifusion_core.training.objective import FlowBatch, FlowMatching
from the_pack.unifusion_core.zoo.tiny import BUILT_IN as EMBEDDED
from torch import Tensor

from .case import PARITY, case, difference, refused
from .small_krea import LORA_LAYERS, krea_file, krea_models, krea_weights
from .small_unifusion import FOLDER, host_model, stock

STRENGTH = 0.7
BLOCK = "blocks.1.attn"


def _file(name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = FOLDER / "models" / "loras" / f"{name.replace(' ', '-')}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone() for key, value in tensors.items()}, str(path), metadata)
    return path


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def _changes() -> dict[str, Callable[[Tensor], dict[str, Tensor]]]:
    """Kinds of change -> their parts for a weight, by the ends of their keys."""

    def lora(w: Tensor) -> dict[str, Tensor]:
        up, down = _random(w.shape[0], 3), _random(3, w.shape[1])
        return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(6.0)}

    def lokr(w: Tensor) -> dict[str, Tensor]:
        rest = w.shape[0] // 4, w.shape[1] // 4
        parts = {"lokr_w1": _random(4, 4), "lokr_w2_a": _random(rest[0], 3), "lokr_w2_b": _random(3, rest[1])}
        return parts | {"alpha": torch.tensor(6.0)}

    def loha(w: Tensor) -> dict[str, Tensor]:
        sizes = {
            "w1_a": (w.shape[0], 3),
            "w1_b": (3, w.shape[1]),
            "w2_a": (w.shape[0], 3),
            "w2_b": (3, w.shape[1]),
        }
        return {f"hada_{name}": _random(*size) for name, size in sizes.items()} | {"alpha": torch.tensor(6.0)}

    def dora(w: Tensor) -> dict[str, Tensor]:
        return lora(w) | {"dora_scale": w.norm(dim=1, keepdim=True) * (1 + torch.rand(len(w), 1))}

    def peft_dora(w: Tensor) -> dict[str, Tensor]:
        parts = lora(w)
        names = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"}
        named = {names[part]: value for part, value in parts.items() if part in names}
        return named | {"lora_magnitude_vector.weight": w.norm(dim=1) * (1 + torch.rand(len(w)))}

    def diff(w: Tensor) -> dict[str, Tensor]:
        return {"diff": _random(*w.shape)}

    return {"LoRA": lora, "LoKr": lokr, "LoHa": loha, "DoRA": dora, "DoRA of peft": peft_dora, "diff": diff}


def _files() -> dict[str, Path]:
    """A file in every layout: each kind of change under the prefixes that trainers write, and with fused queries, keys and
    values."""
    torch.manual_seed(3)
    weights = krea_weights()
    layers = [layer for layer in LORA_LAYERS if min(weights[f"{layer}.weight"].shape) >= 4]
    prefixes: dict[str, Callable[[str], str]] = {
        "diffusion_model": lambda name: f"diffusion_model.{name}",
        "transformer": lambda name: f"transformer.{name}",
        "transformer, diffusers": lambda name: f"transformer.{LORA_LAYERS[name]}",
        "base_model": lambda name: f"base_model.model.{name}",
        "no prefix": lambda name: name,
        "kohya": lambda name: f"lora_unet_{name.replace('.', '_')}",
    }
    fused = torch.cat([weights[f"{BLOCK}.{part}.weight"] for part in ("wq", "wk", "wv")])
    files = {}
    for kind, change in _changes().items():
        for prefix, key in prefixes.items():
            parts = {key(layer): change(weights[f"{layer}.weight"]) for layer in layers}
            files[f"{kind}, {prefix}"] = {
                f"{k}.{end}": v for k, each in parts.items() for end, v in each.items()
            }
        files[f"{kind}, qkv"] = {f"transformer.{BLOCK}.qkv.{end}": v for end, v in change(fused).items()}
    return {name: _file(name, tensors) for name, tensors in files.items()}


def _weights(patched: Any) -> dict[str, Tensor]:
    mm.load_models_gpu([patched], force_patch_weights=True)
    return {k: v.clone() for k, v in patched.model.diffusion_model.state_dict().items()}


def _worst(given: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(difference(given[name], value) for name, value in expected.items())


@case()
def loras_of_every_layout() -> dict[str, Any]:
    """For each file: the number of changed weights, their largest difference to ComfyUI's own Krea 2 and to the core, and what
    stock LoraLoader changes."""
    plain, found = krea_weights(), {}
    for name, path in _files().items():
        ours, theirs = krea_models()
        changed, report = UniFusionLoraLoader.execute(ours, path.name, STRENGTH).args
        weights = _weights(changed)
        (by_stock,) = stock.LoraLoaderModelOnly().load_lora_model_only(theirs, path.name, STRENGTH)
        stock_weights = _weights(by_stock)
        theirs = krea_models()[1]
        on_theirs = _weights(UniFusionLoraLoader.execute(theirs, path.name, STRENGTH).args[0])
        core = load_generator(krea_file())[0]
        merge_adapters(core, path, STRENGTH)
        count = sum(not torch.equal(weights[k], v) for k, v in plain.items())
        by_stock_count = sum(not torch.equal(stock_weights[k], v) for k, v in plain.items())
        found[name] = {
            "changed": count,
            "theirs": _worst(weights, on_theirs),
            "core": _worst(weights, core.state_dict()),
            "stock changes": by_stock_count,
            "stock": _worst(weights, stock_weights) if by_stock_count == count else 0.0,
            "report": report,
        }
    return found


@loras_of_every_layout.check
def _(found: dict[str, dict[str, Any]]) -> None:
    assert len(found) == 6 * 7
    for name, each in found.items():
        assert each["changed"] == (3 if "qkv" in name else 11), name
        assert "0 of" not in each["report"]
        assert "not used" not in each["report"]
        # peft's magnitude is another formula, which stock LoraLoader leaves out
        compared = ("theirs", "core") if name.startswith("DoRA of peft") else ("theirs", "core", "stock")
        assert all(each[kind] <= PARITY for kind in compared), name
    # what stock LoraLoader leaves out, in whole or in part
    left_out = {name for name, each in found.items() if each["stock changes"] < each["changed"]}
    assert {name for name in found if "base_model" in name or "qkv" in name} <= left_out


def _trained(kind: Any) -> Path:
    """Adapters of the small Krea 2 after a few steps of the trainer's own objective, as the trainer writes them."""
    config = AdapterConfig(type=kind, rank=2, alpha=3)
    model, _ = load_generator(krea_file())
    add_adapters(model, config, seed=0)
    spec, dit = model.config.vlm, model.config.dit
    torch.manual_seed(5)
    states = torch.randn(2, 6, len(spec.taps), spec.hidden_size)
    features = Features(
        states=states, mask=torch.ones(2, 6, dtype=torch.bool), positions=torch.zeros(2, 6, 3)
    )
    latents = torch.randn(2, dit.latent_channels, 4, 4)
    batch = FlowBatch(
        features=features, latents=latents, noise=torch.randn_like(latents)[:, None], t=torch.rand(2, 1)
    )
    objective = FlowMatching(model)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.02)
    with torch.enable_grad():
        for _ in range(5):
            loss, _ = objective(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not unchanged_adapters(model)
    path = FOLDER / "models" / "loras" / f"trained-krea-{kind}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_adapters(path, model, config, weights, {})
    return path


@case()
def trained_loras_by_stock_loader_on_own_krea_2() -> dict[str, Any]:
    """What the trainer writes for Krea 2, applied by stock LoraLoader to ComfyUI's own Krea 2, against merged weights."""
    found = {}
    for kind in ("lora", "dora", "lokr"):
        path, plain = _trained(kind), krea_weights()
        _, theirs = krea_models()
        weights = _weights(stock.LoraLoaderModelOnly().load_lora_model_only(theirs, path.name, STRENGTH)[0])
        core = load_generator(krea_file())[0]
        layers = merge_adapters(core, path, STRENGTH)
        found[kind] = {
            "difference": _worst(weights, core.state_dict()),
            "layers": layers,
            "changed": sum(not torch.equal(weights[name], value) for name, value in plain.items()),
        }
    return found


@trained_loras_by_stock_loader_on_own_krea_2.check
def _(found: dict[str, dict[str, Any]]) -> None:
    for kind, each in found.items():
        assert each["difference"] <= PARITY, kind
        assert each["changed"] == each["layers"] > 40, kind


@refused("CheckpointError", "another-edition", "VLM 01234567", "use it with the model it was trained on")
def lora_of_another_edition() -> None:
    model = load_model(EMBEDDED.generator)
    tensors = {
        f"{BLOCK}.wq.lora_{end}.weight": _random(*size)
        for end, size in {"A": (3, 192), "B": (192, 3)}.items()
    }
    path = _file("another edition", tensors, {VLM_KEY: "0123456789ab"})
    UniFusionLoraLoader.execute(model, path.name, 1.0)


@case()
def lora_on_quantised_layers() -> dict[str, Any]:
    """peft's DoRA needs the base weight, which is dequantised for it."""
    torch.manual_seed(4)
    weight = krea_weights()[f"{BLOCK}.wq.weight"]
    tensors = {f"{BLOCK}.wq.{end}": v for end, v in _changes()["DoRA of peft"](weight).items()}
    path = _file("dora on int8", tensors)
    ours = krea_models("int8 per row")[0]
    changed, report = UniFusionLoraLoader.execute(ours, path.name, 1.0).args
    mm.load_models_gpu([changed], force_patch_weights=True)
    given = changed.model.diffusion_model.blocks[1].attn.wq.weight
    core = load_generator(krea_file("int8 per row"))[0]
    merge_adapters(core, path)
    expected = core.blocks[1].attn.wq.weight
    return {"difference": difference(given.dequantize(), expected), "report": report}


@lora_on_quantised_layers.check
def _(found: dict[str, Any]) -> None:
    # rounded to 8 bits again
    assert found["difference"] <= 0.01
    assert found["report"].endswith("3 of 3 keys are used, in 1 layers")


@case()
def lora_used_in_part() -> str:
    """The report of a file with keys of a text encoder and of a layer that is not there."""
    down, up = _random(3, 64), _random(64, 3)
    key = "diffusion_model.blocks.0.attn.wq"
    tensors = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    tensors |= {"lora_te_a.lora_down.weight": down, f"{key}2.lora_A.weight": down}
    return UniFusionLoraLoader.execute(host_model(), _file("in part", tensors).name, 1.0).args[1]


@lora_used_in_part.check
def _(found: str) -> None:
    assert found.startswith(
        "in-part.safetensors: 2 of 4 keys are used, in 1 layers; 2 are not used, such as "
    )


@refused("changes nothing in this model", "double_blocks.0.img_attn.qkv", "choose an adapter")
def lora_of_another_model() -> Any:
    path = _file("flux", {"double_blocks.0.img_attn.qkv.lora_A.weight": _random(3, 64)})
    return UniFusionLoraLoader.execute(host_model(), path.name, 1.0)
