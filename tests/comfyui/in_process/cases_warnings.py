"""What is logged for sizes that draw worse."""

from __future__ import annotations

import re

import torch
from the_pack.nodes.comfy.clip import encode
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.comfy.model import pool
from the_pack.unifusion_core.zoo.tiny import BUILT_IN as EMBEDDED

from .case import case
from .small_unifusion import by_comfyui, conditioning, encoded, features, host_model, messages_of, tiny_clip


@case()
def size_warning() -> list[str]:
    """A trained size, then one that the model was never trained on."""
    model, positive, negative = host_model(), conditioning(features(9)), conditioning(features(5))
    with messages_of("nodes.comfy.host") as said:
        by_comfyui(model, positive, negative, torch.zeros(1, 16, 8, 12))
        by_comfyui(model, positive, negative, torch.zeros(1, 16, 20, 12))
    return said


@size_warning.check
def _(said: list[str]) -> None:
    (sentence,) = said
    assert "96x160 is none of the sizes this model was trained on (96x64)" in sentence
    # 2.5 times as many tokens, and attention
    assert "A step takes about 3 times as long as at 96x64." in sentence


@case()
def habitual_size_warning() -> list[str]:
    """ComfyUI's habitual 1024 x 1024 with the embedded model, before the first step."""
    model = load_model(EMBEDDED.generator, "default").model
    with messages_of("nodes.comfy.host") as said:
        model._check_latents(torch.zeros(1, 16, 128, 128), None)
    return said


@habitual_size_warning.check
def _(said: list[str]) -> None:
    (sentence,) = said
    assert "1024x1024 is none of the sizes this model was trained on (128x128" in sentence
    found = re.search(r"A step takes about (\d+) times as long as at 128x128\.", sentence)
    assert found
    # 64 times as many tokens; attention grows with their square
    assert 64 < int(found[1]) < 64**2


@case()
def edited_size_warning() -> list[str]:
    """An edit in its image's size, then in another size. The last entry: the size in which two images would be edited."""
    model, clip = host_model(), tiny_clip()
    one = encode(clip, "make it blue", [torch.rand(1, 64, 96, 3)], 1)[1]
    positive = pool(model, encoded(9, edited=one.edited))
    negative = conditioning(features(5))
    with messages_of("unifusion_core.images") as said:
        by_comfyui(model, positive, negative, torch.zeros(1, 16, 8, 12))
        by_comfyui(model, positive, negative, torch.zeros(1, 16, 16, 16))
    two = encode(clip, "both", [torch.rand(2, 64, 96, 3)], 1)[1]
    return [*said, str(two.edited)]


@edited_size_warning.check
def _(said: list[str]) -> None:
    sentence, of_two = said
    assert "128x128 is drawn" in sentence
    assert "96x64" in sentence
    assert of_two == "None"
