"""Layer gains, and which layers a token reads, through the nodes against the core."""

from __future__ import annotations

from typing import Any

import torch
from the_pack.nodes.comfy.clip import encode, load_clip
from the_pack.nodes.comfy.krea2 import vlm_spec
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.comfy.model import pool, read_layers
from the_pack.nodes.inspect_layers import UniFusionLAPInspect
from the_pack.unifusion_core.inspection import reading
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY

from .case import PARITY, case, close, difference
from .small_unifusion import core_model, encoded, host_model, images


@case()
def layer_gains() -> dict[str, float]:
    """Pooling with gains; as trained without any, and with an empty text."""
    core, model, given = core_model(), host_model(), encoded(9, 4)

    def against(text: str, gains: tuple[float, ...] | None) -> float:
        return difference(pool(model, given, text)[0][0], core.pool(given.features, gains).tokens)

    return {
        "all": against("1, 0, 0.5", (1.0, 0.0, 0.5)),
        "named": against("3: 0.5", (1.0, 1.0, 0.5)),
        "none": against("", None),
        "effect": against("1, 0, 0.5", None),
    }


@layer_gains.check
def _(found: dict[str, float]) -> None:
    assert close(found["all"], found["named"], found["none"])
    assert found["effect"] > 100 * PARITY


@case()
def layers_read() -> dict[str, float]:
    """Shares and attention, and the pooling weights with a LoRA on LAP, which adds 3 to the second."""
    core, model, given = core_model(), host_model(), encoded(9, 4)
    expected, found = reading.read_layers(core, given.features), read_layers(model, given)
    patched = model.clone()
    added = torch.tensor([[0.0, 3.0, 0.0]])
    patched.add_patches({"diffusion_model.txtfusion.projector.weight": ("diff", (added,))}, 1.0)
    return {
        "shares": difference(found.shares, expected.shares),
        "attention": max(map(difference, found.attention, expected.attention)),
        "added by the lora": float(read_layers(patched, given).weights[1] - expected.weights[1]),
    }


@layers_read.check
def _(found: dict[str, float]) -> None:
    assert close(found["shares"], found["attention"])
    assert abs(found["added by the lora"] - 3) <= 1e-4


@case()
def layers_shown() -> dict[str, Any]:
    """What Inspect UniFusion Layers returns for the tiny model and two images."""
    model = load_model(BUILT_IN.generator)
    _, given = encode(load_clip(BUILT_IN.vlm, vlm_spec(model), TINY), "make the $circle$ blue", images(), 5)
    drawn, table = UniFusionLAPInspect.execute(model, given).args
    return {
        "shape": list(drawn.shape),
        "range": [float(drawn.min()), float(drawn.max())],
        "lines": [line.split()[:2] for line in table.splitlines()],
    }


@layers_shown.check
def _(found: dict[str, Any]) -> None:
    batch, height, width, channels = found["shape"]
    assert batch == 1
    assert channels == 3
    assert min(height, width) > 500
    assert 0 <= found["range"][0] < found["range"][1] <= 1
    lines = found["lines"]
    assert lines.count(["image", "1:"]) == lines.count(["image", "2:"]) == 1
    assert ["$", "prompt"] in lines
    assert ["blue", "prompt"] in lines
