"""The VLM as a CLIP gives the same states and texts as the core's backbone."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from the_pack.nodes.comfy import latents
from the_pack.nodes.comfy.clip import encode, tiles_of
from the_pack.unifusion_core.contracts import Request
from the_pack.unifusion_core.vlm.features import encode_chat
from the_pack.unifusion_core.vlm.folder import load_vlm
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY

from .case import case, difference
from .small_unifusion import images, stock, tiny_clip

PROMPT = "big red circle at top left"


@case()
def vlm_states() -> dict[str, Any]:
    """Features with and without images against the backbone's, and what stock CLIPTextEncode returns."""
    clip, plain, spec = tiny_clip(), load_vlm(BUILT_IN.vlm), TINY.config.vlm
    found: dict[str, Any] = {}
    for name, chosen in (("text", []), ("images", images())):
        request = Request(prompt=PROMPT, images=[each[0].movedim(-1, 0) for each in chosen])
        expected = encode_chat(plain, spec, plain.prepare([request], spec.template, 5))
        tokens, given = encode(clip, PROMPT, chosen, 5)
        found[name] = difference(given.features.states, expected.states)
        found[name + " positions"] = bool((given.features.positions == expected.positions).all())
        found[name + " tiles"] = list(tiles_of(tokens).shape)
    (of_stock,) = stock.CLIPTextEncode().encode(clip, PROMPT)
    found["stock"] = difference(of_stock[0][0], encode(clip, PROMPT, [], 10)[1].features.states.flatten(2))
    found["tokens of the empty prompt"] = stock.CLIPTextEncode().encode(clip, "")[0][0][0].shape[1]
    return found


@vlm_states.check
def _(found: dict[str, Any]) -> None:
    assert found["text"] <= 1e-5
    assert found["images"] <= 1e-5
    assert found["stock"] <= 1e-5
    assert found["text positions"]
    assert found["images positions"]
    assert found["text tiles"] == [1, 64, 64, 3]
    assert found["images tiles"][1:] == [48, 48, 3]
    assert found["images tiles"][0] > 2
    assert found["tokens of the empty prompt"] >= 1


@case()
def vlm_text() -> dict[str, Any]:
    """Stock Generate Text: greedy text equals the backbone's, sampled text depends on the seed alone."""
    clip, plain = tiny_clip(), load_vlm(BUILT_IN.vlm)
    inputs = plain.prepare([Request(prompt="a red ball")], TINY.config.vlm.template)
    tokens = clip.tokenize("a red ball", image=None, skip_template=False, min_length=1, thinking=False)

    def written(**options: Any) -> str:
        return clip.decode(clip.generate(tokens, max_length=12, **options))

    first, again, other = (written(do_sample=True, temperature=2.0, seed=seed) for seed in (1, 1, 2))
    return {
        "greedy": written(do_sample=False) == plain.generate(inputs, max_new_tokens=12)[0],
        "same text by seeds 1 and 1, 1 and 2": [first == again, first == other],
    }


@vlm_text.check
def _(found: dict[str, Any]) -> None:
    assert found["greedy"]
    assert found["same text by seeds 1 and 1, 1 and 2"] == [True, False]


@case(equals="interrupted")
def generation_is_interrupted() -> str:
    clip = tiny_clip()
    tokens = clip.tokenize("a red ball")
    mm.interrupt_current_processing(True)
    try:
        clip.generate(tokens, do_sample=False, max_length=12)
    except mm.InterruptProcessingException:
        return "interrupted"
    finally:
        mm.interrupt_current_processing(False)
    return "ran to its end"


@case(
    equals=[
        [[1, 16, 14, 20], [160, 112]],
        [[1, 16, 13, 25], [200, 104]],
        [[1, 16, 25, 50], [400, 200]],
    ]
)
def latents_for_images() -> list[Any]:
    """Shape of an empty latent in the size of an image, and that size: whole, rounded, and with a limit of pixels."""
    return [
        [list(latent["samples"].shape), size]
        for latent, size in (
            latents.empty_latent_for(torch.zeros(3, 112, 160)),
            latents.empty_latent_for(torch.zeros(3, 101, 203)),
            latents.empty_latent_for(torch.zeros(3, 1000, 2000), 80_000),
        )
    ]
