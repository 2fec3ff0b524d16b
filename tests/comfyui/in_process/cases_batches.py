"""A batch of pictures with a prompt for each, and a seed for each image of a batch: the same as one after the other."""

from __future__ import annotations

from typing import Any

import comfy_extras.nodes_custom_sampler as custom_sampler
import torch
from the_pack.nodes.comfy.clip import encode, rewrite
from the_pack.nodes.comfy.model import pool
from the_pack.nodes.encode import UniFusionImageEncode
from the_pack.nodes.rewrite import UniFusionVerifiRewrite
from the_pack.nodes.sample import UniFusionSampler
from the_pack.unifusion_core import Pipeline
from the_pack.unifusion_core.images import to_tensor
from the_pack.unifusion_core.shapes.world.captions import parse_caption
from the_pack.unifusion_core.shapes.world.render import render
from torch import Tensor

from .case import PARITY, case, difference, refused
from .small_unifusion import (
    by_comfyui,
    conditioning,
    embedded_model,
    encoded,
    features,
    host_model,
    images,
    tiny_clip,
)

EACH = "one prompt each"
SIZE = (1, 16, 16, 16)


def _pictures(*captions: str) -> Tensor:
    """B H W 3."""
    scenes = [parse_caption(text) for text in captions]
    return torch.stack([to_tensor(render(scene)).movedim(0, -1) for scene in scenes if scene])


# of unequal numbers of objects, so that the rewrites have unequal lengths
THREE = _pictures(
    "big red circle at top left, white background.",
    "small blue star at center, big green square at bottom, black background.",
    "big cyan cross at right, pink background.",
)
SETTINGS = {
    "style": "caption",
    "own_style": "",
    "locked_text": "",
    "seed": 0,
    "temperature": 0.0,
    "max_new_tokens": 128,
    "states": "automatic",
}


def _sampled(model: Any, positive: Any, latent: Any, **more: Any) -> Tensor:
    inputs = {"seed": 3, "steps": 4, "cfg": 2.0, "image_cfg": 1.0, "schedule": "automatic"}
    return UniFusionSampler.execute(model, positive, latent, **inputs | more).args[0]["samples"]


@case()
def one_edit_per_picture() -> dict[str, Any]:
    """Three pictures in one batch, and one after the other: rewrites, tiles, and the latents drawn of one latent, in both modes
    of seeds."""
    model, clip = embedded_model()

    def rewritten(pictures: Tensor, batch: str) -> tuple[Any, str]:
        done = UniFusionVerifiRewrite.execute(
            clip, "make it yellow", 5, pictures={"picture_1": pictures}, batch=batch, **SETTINGS
        )
        return done.args

    together, text = rewritten(THREE, EACH)
    alone = [rewritten(picture[None], "all in one prompt") for picture in THREE]
    latent = {"samples": torch.zeros(SIZE)}
    drawn = _sampled(model, together, latent, batch_seeds="counted up")
    singles = [_sampled(model, each, latent, seed=3 + i) for i, (each, _) in enumerate(alone)]
    tiles = UniFusionImageEncode.execute(clip, "", 5, {"picture_1": THREE}, EACH).args[1]
    return {
        "texts": text.split("\n\n") == [each for _, each in alone],
        "different": len({each for _, each in alone}),
        "unequal lengths": not bool(together.features.mask.all()),
        "drawn": difference(drawn, torch.cat(singles)),
        "stock sampler": difference(
            _by_stock(model, pool(model, together), pool(model, encode(clip, "", (), 1)[1])),
            _sampled(model, together, {"samples": torch.zeros(3, *SIZE[1:])}, schedule="shift 3"),
        ),
        "tiles": len(tiles),
        "effect": difference(drawn[:1], drawn[1:2]),
    }


def _by_stock(model: Any, positive: Any, negative: Any) -> Tensor:
    """Stock SamplerCustomAdvanced with a latent for each prompt."""
    latent = {"samples": torch.zeros(3, *SIZE[1:])}
    guider = custom_sampler.CFGGuider.execute(model, positive, negative, 2.0).args[0]
    noise = custom_sampler.RandomNoise.execute(3).args[0]
    sampler = custom_sampler.KSamplerSelect.execute("euler").args[0]
    sigmas = custom_sampler.BasicScheduler.execute(model, "simple", 4, 1.0).args[0]
    return custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0][
        "samples"
    ]


@one_edit_per_picture.check
def _(found: dict[str, Any]) -> None:
    assert found["texts"]
    assert found["different"] == 3
    assert found["unequal lengths"]
    assert found["drawn"] <= PARITY
    assert found["stock sampler"] <= PARITY
    assert found["tiles"] == 3 * 5
    assert found["effect"] > 0.1


@case()
def a_single_picture_beside_a_batch() -> dict[str, float]:
    """It is in every prompt; without a choice all are in one."""
    clip, extra = tiny_clip(), images()[0]
    _, together = encode(clip, "both", [THREE, extra], 5, EACH)
    singles = [encode(clip, "both", [picture[None], extra], 5)[1] for picture in THREE]
    _, one = encode(clip, "both", [THREE, extra], 5)
    return {
        "features": max(
            difference(together.features.states[i : i + 1], each.features.states)
            for i, each in enumerate(singles)
        ),
        "chats without a choice": len(one.features.mask) - 1,
    }


@a_single_picture_beside_a_batch.check
def _(found: dict[str, float]) -> None:
    assert found["features"] <= PARITY
    assert found["chats without a choice"] == 0


@case(at_most=PARITY)
def seeds_of_a_batch() -> dict[str, float]:
    """Image i of a batch against a run of its own with seed + i: of a whole batch, of images taken out of one, at the largest
    seed, and against a `Pipeline`."""
    model, positive = host_model(), conditioning(features(9))
    negative = conditioning(features(5))
    latent = torch.randn(4, 16, 8, 12, generator=torch.Generator().manual_seed(5))

    def drawn(samples: Tensor, seed: int, choice: str, numbers: list[int] | None = None) -> Tensor:
        given = {"samples": samples} | ({} if numbers is None else {"batch_index": numbers})
        return _sampled(model, positive, given, seed=seed, batch_seeds=choice, negative=negative, denoise=0.7)

    def alone(seed: int, i: int) -> Tensor:
        return drawn(latent[i : i + 1], (seed + i) % 2**64, "one for all")

    counted = drawn(latent, 11, "counted up")
    return {
        "batch": difference(counted, torch.cat([alone(11, i) for i in range(4)])),
        "taken out": difference(drawn(latent[2:], 11, "counted up", [2, 3]), counted[2:]),
        "largest": difference(
            drawn(latent[:2], 2**64 - 1, "counted up"), torch.cat([alone(2**64 - 1, i) for i in range(2)])
        ),
        "pipeline": _against_pipeline(),
    }


def _against_pipeline() -> float:
    """Latents of two images of a prompt by the node, and by the library's own sampler with seeds 3 and 4."""
    model, clip = embedded_model()
    prompt = "big red circle at top left, white background."
    positive, negative = (encode(clip, each, (), 1)[1] for each in (prompt, ""))
    given = _sampled(
        model, positive, {"samples": torch.zeros(2, *SIZE[1:])}, negative=negative, batch_seeds="counted up"
    )
    pipe = Pipeline.load()
    latents: list[Tensor] = []
    pipe(
        prompt, rewrite=False, seed=[3, 4], steps=4, on_step=lambda step, steps, clean: latents.append(clean)
    )
    return difference(given, latents[-1])


@case()
def the_seeds_make_a_difference() -> list[float]:
    """The second image of a batch in both ways; the first is the same."""
    model, positive, negative = host_model(), conditioning(features(9)), conditioning(features(5))
    each = [
        _sampled(
            model, positive, {"samples": torch.zeros(2, 16, 8, 12)}, negative=negative, batch_seeds=choice
        )
        for choice in ("one for all", "counted up")
    ]
    return [difference(each[0][:1], each[1][:1]), difference(each[0][1:], each[1][1:])]


@the_seeds_make_a_difference.check
def _(found: list[float]) -> None:
    assert found[0] <= PARITY
    assert found[1] > 0.01


@refused("ShapeError", "batches of 2 and 3 images", "all in one prompt")
def batches_of_unequal_sizes() -> None:
    rewrite(
        tiny_clip(),
        "make it blue",
        [THREE, THREE[:2]],
        5,
        style="caption",
        locked_text="",
        states="automatic",
        max_new_tokens=64,
        temperature=0.0,
        seed=0,
        batch=EACH,
    )


def _three_prompts() -> Any:
    rows = [features(9, seed=seed) for seed in range(3)]
    return encoded(9, features=type(rows[0]).cat(rows))


@refused("ShapeError", "3 prompts and the latent 2 image(s)", "Repeat Latent Batch")
def fewer_latents_than_prompts() -> None:
    model = host_model()
    _sampled(model, _three_prompts(), {"samples": torch.zeros(2, 16, 8, 12)}, negative=encoded(5))


@refused("ShapeError", "3 prompts and the latent 1 image(s)", "Repeat Latent Batch")
def fewer_latents_than_prompts_in_a_stock_sampler() -> None:
    model = host_model()
    by_comfyui(model, pool(model, _three_prompts()), conditioning(features(5)))
