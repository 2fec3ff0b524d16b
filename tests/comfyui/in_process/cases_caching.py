"""What is computed once is kept as long as it is of use, and no longer."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from the_pack.nodes.comfy import stock_clip
from the_pack.nodes.comfy.clip import encode, encoder_of, load_clip
from the_pack.nodes.comfy.conditions import SamplingCondition
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.comfy.model import pool
from the_pack.unifusion_core.models.unifusion import PreparedCondition
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY

from .case import case, difference
from .small_qwen import load_small_qwen, small_qwen
from .small_unifusion import by_comfyui, conditioning, features, host_model, images, tiny_clip


@case(equals={"pool": 2, "prepare": 2, "left": 0})
def computed_once() -> dict[str, int]:
    """How often two conditions are pooled and prepared in five steps, and how many objects are left afterwards."""
    model = host_model()
    module = model.model.diffusion_model
    counts = {"pool": 0, "prepare": 0}

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        def call(*args: Any) -> Any:
            counts[name] += 1
            return original(*args)

        return call

    module.pool, module.prepare = counted("pool"), counted("prepare")
    by_comfyui(model, conditioning(features(9)), conditioning(features(5)))
    gc.collect()
    kinds = (PreparedCondition, SamplingCondition)
    return counts | {"left": sum(isinstance(each, kinds) for each in gc.get_objects())}


@case()
def images_encoded_once() -> dict[str, Any]:
    """How often the vision tower runs for three prompts about the same images, and after a LoRA has changed the VLM."""
    clip = tiny_clip()
    runs: list[int] = []
    vision = encoder_of(clip).backbone.model.model.vision_tower
    vision.register_forward_pre_hook(lambda *_: runs.append(1))
    first = encode(clip, "make it blue", images(), 5)[1]
    encode(clip, "remove the star", images(), 5)
    same = encode(clip, "make it blue", images(), 5)[1]
    counts = [len(runs)]
    # as adding a LoRA does
    clip.patcher.patches_uuid = uuid.uuid4()
    encode(clip, "make it blue", images(), 5)
    return {
        "runs": [*counts, len(runs)],
        "difference": difference(first.features.states, same.features.states),
    }


@images_encoded_once.check
def _(found: dict[str, Any]) -> None:
    assert found["runs"] == [1, 2]
    assert found["difference"] == 0


@case()
def images_pooled_once() -> dict[str, Any]:
    """Tokens that went through LAP for three instructions about the same images, with a LoRA, without it again, and with an
    attention patch."""
    model = load_model(BUILT_IN.generator)
    clip = load_clip(BUILT_IN.vlm, model.model.model_config.unifusion.vlm, TINY)
    lap = model.model.diffusion_model.txtfusion.layerwise_blocks[0]
    tokens: list[int] = []
    lap.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[:-2].numel()))

    def pooled(patched: Any, prompt: str) -> tuple[int, int, Any]:
        features = encode(clip, prompt, images(), 5)[1]
        before = sum(tokens)
        condition = pool(patched, features)
        of_images = int((features.features.positions[..., 0] > 0).sum())
        return sum(tokens) - before, features.features.states.shape[1] - of_images, condition[0][0]

    with_lora = model.clone()
    weight = "diffusion_model.txtfusion.layerwise_blocks.0.attn.wq.weight"
    with_lora.add_patches({weight: ("diff", (torch.ones(160, 160),))})
    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(
        *a, **k
    )
    calls = [
        (model, "make it blue"),
        (model, "remove the star"),
        (model, "make it blue"),
        (with_lora, "make it blue"),
    ]
    found = [pooled(*call) for call in [*calls, (model, "make it blue"), (patched, "make it blue")]]
    return {
        "tokens": [each[0] for each in found],
        "text": found[1][1],
        "again": difference(found[2][2], found[0][2]),
        "after the LoRA": difference(found[4][2], found[0][2]),
        "by the LoRA": difference(found[3][2], found[0][2]),
        "patched": difference(found[5][2], found[0][2]),
    }


@images_pooled_once.check
def _(found: dict[str, Any]) -> None:
    first, second, third, with_lora, without_again, patched = found["tokens"]
    assert second == found["text"] < first / 2
    assert third == without_again == 0
    assert with_lora == patched == first
    assert found["again"] == found["after the LoRA"] == 0
    assert found["patched"] <= 1e-6
    assert found["by the LoRA"] > 0.01


@case(equals={"caches added": 1, "images": 1, "caches left": 0, "objects left": 0})
def stock_tiles_go_with_their_encoder() -> dict[str, int]:
    """The tile cache of a stock CLIP that encodes an image, and what is left of it once the CLIP is deleted."""
    gc.collect()
    before = len(stock_clip._TILES)
    with small_qwen() as (_, weights, options):
        clip = load_small_qwen(weights, options)
        encode(clip, "make it blue", [torch.rand(1, 448, 896, 3)], 5)
        added = len(stock_clip._TILES) - before
        encoder = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
        cache = stock_clip._TILES[encoder]
        images_kept, objects = len(cache), [ref(encoder), ref(cache)]
        del clip, encoder, cache
    gc.collect()
    return {
        "caches added": added,
        "images": images_kept,
        "caches left": len(stock_clip._TILES) - before,
        "objects left": sum(each() is not None for each in objects),
    }
