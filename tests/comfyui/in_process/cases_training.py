"""ComfyUI's Train LoRA on the pack's MODEL: every setting trains, Krea 2 as in ComfyUI's own, and the result applies."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy_extras.nodes_train as train
import torch
from the_pack.nodes.comfy.model import pool
from torch import Tensor

from .case import PARITY, case, difference
from .small_krea import KREA_LATENT, krea_drawn, krea_models, krea_states
from .small_unifusion import CONFIG, by_comfyui, conditioning, encoded, features, host_model

STEPS = 3
SETTINGS = {
    "steps": STEPS,
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "learning_rate": 0.01,
    "rank": 2,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 3,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing, deeper": {"gradient_checkpointing": True, "checkpoint_depth": 3},
    "bf16": {"training_dtype": "bf16", "lora_dtype": "bf16"},
    "bf16, checkpointing": {"training_dtype": "bf16", "lora_dtype": "bf16", "gradient_checkpointing": True},
    "accumulated": {"grad_accumulation_steps": 2, "batch_size": 2},
    "bypass": {"bypass_mode": True},
    "bypass, checkpointing": {"bypass_mode": True, "gradient_checkpointing": True},
    "offloading": {"offloading": True, "gradient_checkpointing": True},
} | {name: {"algorithm": name} for name in train.adapter_maps if name != "LoRA"}


def _trained(
    model: Any, positive: Any, latents: Tensor, **changes: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """The LoRA and the loss of each step. As ComfyUI runs it: nodes in inference mode."""
    settings = {name: [value] for name, value in (SETTINGS | changes).items()}
    torch.manual_seed(0)
    with torch.inference_mode():
        done = train.TrainLoraNode.execute([model], [{"samples": latents}], [positive], **settings)
    lora, losses, _ = done.args
    return lora, losses["loss"]


def _outcome(model: Any, positive: Any, latents: Tensor, **changes: Any) -> dict[str, Any]:
    lora, losses = _trained(model, positive, latents, **changes)
    return {"steps": len(losses), "finite": all(torch.isfinite(value).all() for value in lora.values())}


def _all_trained(found: dict[str, Any]) -> None:
    assert len(found) == len(VARIANTS)
    for name, each in found.items():
        steps = STEPS * VARIANTS[name].get("grad_accumulation_steps", 1)
        assert each == {"steps": steps, "finite": True}, (name, each)


@case(check=_all_trained)
def training_in_prefix_form() -> dict[str, Any]:
    """On two latents and two conditions, which are used in several steps."""
    with torch.inference_mode():
        positive = [*conditioning(features(9, 4)), *conditioning(features(7))]
    latents = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    return {name: _outcome(host_model(), positive, latents, **each) for name, each in VARIANTS.items()}


@case(check=_all_trained)
def training_krea_2() -> dict[str, Any]:
    with torch.inference_mode():
        positive = [[krea_states(9), {}], [krea_states(7), {}]]
    latents = torch.randn(2, 16, 1, 8, 14, generator=torch.Generator().manual_seed(1))
    return {name: _outcome(krea_models()[0], positive, latents, **each) for name, each in VARIANTS.items()}


@case()
def training_on_pooled_conditions() -> dict[str, Any]:
    """The output of Pool UniFusion Features: LAP gets no gradient, the DiT does."""
    model = host_model()
    with torch.inference_mode():
        positive = pool(model, encoded(9, 4))
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    lora, losses = _trained(model, positive, latents, gradient_checkpointing=True)
    moved = {name: bool(value.any()) for name, value in lora.items() if "lora_down" in name}
    return {
        "steps": len(losses),
        "blocks": any(each for name, each in moved.items() if "blocks.0.attn.wq" in name),
        "lap": any(each for name, each in moved.items() if "layerwise" in name),
    }


@training_on_pooled_conditions.check
def _(found: dict[str, Any]) -> None:
    assert found == {"steps": STEPS, "blocks": True, "lap": False}


@case()
def training_as_core_krea_2() -> dict[str, float]:
    """Losses and the trained weights against ComfyUI's own model, and what the LoRA draws in both."""
    with torch.inference_mode():
        positive = [[krea_states(9), {}]]
    latents = torch.randn(1, 16, 1, 8, 14, generator=torch.Generator().manual_seed(1))
    models = krea_models()
    (ours, our_losses), (theirs, their_losses) = (_trained(model, positive, latents) for model in models)
    assert ours.keys() == theirs.keys()
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0])
    applied = [comfy.sd.load_lora_for_models(model, None, ours, 1.0, 0.0)[0] for model in models]
    drawn, drawn_by_core = (krea_drawn(model, sigmas, 2.0, KREA_LATENT) for model in applied)
    return {
        "losses": difference(torch.tensor(our_losses), torch.tensor(their_losses)),
        "drawn": difference(drawn, drawn_by_core),
        "effect": difference(drawn, krea_drawn(models[0], sigmas, 2.0, KREA_LATENT)),
    }


@training_as_core_krea_2.check
def _(found: dict[str, float]) -> None:
    assert found["losses"] <= 10 * PARITY
    assert found["drawn"] <= PARITY
    assert found["effect"] > 10 * PARITY


@case()
def a_trained_lora_has_an_effect() -> dict[str, float]:
    """Every layer of the small generator in prefix form is trained, LAP and refiner included, and applies."""
    model = host_model()
    with torch.inference_mode():
        positive = conditioning(features(9, 4))
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    lora, _ = _trained(model, positive, latents)
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    moved = {name: bool(value.any()) for name, value in lora.items() if "lora_down" in name}
    negative = conditioning(features(5))
    drawn, plain = (by_comfyui(each, positive, negative) for each in (patched, model))
    return {
        "trained layers": sum(moved.values()),
        "blocks": CONFIG.dit.num_blocks,
        "lap": sum(each for name, each in moved.items() if "layerwise" in name),
        "effect": difference(drawn, plain),
    }


@a_trained_lora_has_an_effect.check
def _(found: dict[str, float]) -> None:
    assert found["lap"] > 0
    assert found["trained layers"] > 8 * found["blocks"]
    assert found["effect"] > 10 * PARITY
