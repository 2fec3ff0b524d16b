"""What the run says about input that would otherwise be ignored, or about numbers that broke."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy_extras.nodes_flux as flux
import node_helpers
import torch
from comfy_execution.utils import CurrentNodeContext
from server import PromptServer
from the_pack.nodes.comfy.clip import encode
from the_pack.nodes.comfy.model import pool
from the_pack.nodes.sockets import Encoded
from the_pack.unifusion_core.images import to_tensor
from the_pack.unifusion_core.shapes.world.captions import parse_caption
from the_pack.unifusion_core.shapes.world.render import render
from torch import Tensor

from .case import case, refused
from .small_krea import KREA_LATENT, krea_models, krea_states
from .small_unifusion import (
    LATENT,
    by_comfyui,
    conditioning,
    encoded,
    features,
    host_model,
    messages_of,
    rewritten,
    tiny_clip,
)


def _shown(run: Callable[[], Any], prompt_id: str = "1") -> dict[str, str]:
    """The last text on each node of the browser, for a run of node 5."""
    shown: dict[str, str] = {}

    class Server:
        def send_progress_text(self, text: str, node_id: str) -> None:
            shown[node_id] = text

    plain, PromptServer.instance = getattr(PromptServer, "instance", None), Server()
    try:
        with CurrentNodeContext(prompt_id, "5"):
            run()
    finally:
        PromptServer.instance = plain
    return shown


# Conditioning that the model cannot use -------------------------------------------------------------


def _stock_entries() -> dict[str, Any]:
    """Entries as stock nodes add them, for a positive conditioning of the small generator."""
    plain, image = conditioning(features(9)), torch.rand(1, 64, 96, 3)
    latent = torch.zeros(1, 16, 8, 12)
    return {
        "guidance": flux.FluxGuidance.execute(plain, 3.5).args[0],
        "reference_latents": node_helpers.conditioning_set_values(plain, {"reference_latents": [latent]}),
        "concat_latent_image": node_helpers.conditioning_set_values(
            plain, {"concat_latent_image": latent, "concat_mask": torch.ones(1, 64, 96)}
        ),
        "unclip_conditioning": node_helpers.conditioning_set_values(
            plain, {"unclip_conditioning": [{"strength": 1.0}]}
        ),
        "pooled_output": node_helpers.conditioning_set_values(plain, {"pooled_output": torch.zeros(1, 4)}),
        "clip_vision_output": node_helpers.conditioning_set_values(plain, {"clip_vision_output": image}),
    }


@case()
def unused_entries() -> dict[str, Any]:
    """What the sampler's node shows for each, whether the picture is the plain one, and the plain one's text."""
    negative = conditioning(features(5))
    plain = by_comfyui(host_model(), conditioning(features(9)), negative)
    found = {"nothing": [_shown(lambda: by_comfyui(host_model(), conditioning(features(9)), negative)), True]}
    for key, positive in _stock_entries().items():
        drawn: list[Tensor] = []
        said = _shown(lambda p=positive, d=drawn: d.append(by_comfyui(host_model(), p, negative)), key)
        found[key] = [said, torch.equal(drawn[0], plain)]
    return found


@unused_entries.check
def _(found: dict[str, Any]) -> None:
    assert found.pop("nothing") == [{}, True]
    assert len(found) == 6
    for key, (said, same) in found.items():
        assert same
        assert f'"{key}"' in said["5"], key
    assert "VERIFI" in found["reference_latents"][0]["5"]
    assert "Set Latent Noise Mask" in found["concat_latent_image"][0]["5"]


@case()
def references_without_a_method() -> list[str]:
    """On Krea 2: what is said with and without the node that sets the method."""
    model, _ = krea_models()
    plain = [[krea_states(12), {"reference_latents": [torch.zeros(1, 16, 1, 4, 4)]}]]
    with_method = flux.FluxKontextMultiReferenceLatentMethod.execute(plain, "index").args[0]
    negative = [[krea_states(6), {}]]
    return [
        _shown(lambda p=positive: by_comfyui(model, p, negative, KREA_LATENT, 1.0), str(number)).get("5", "")
        for number, positive in enumerate((plain, with_method))
    ]


@references_without_a_method.check
def _(said: list[str]) -> None:
    without, with_method = said
    assert "Edit Model Reference Method" in without
    assert with_method == ""


@case()
def warnings_of_a_node_add_up() -> dict[str, Any]:
    """Two sentences of one node, the same again in the same run, and in the next run."""
    entries = _stock_entries()
    both = node_helpers.conditioning_set_values(entries["guidance"], entries["concat_latent_image"][0][1])
    model, negative = host_model(), conditioning(features(5))

    def twice() -> None:
        by_comfyui(model, both, negative)
        by_comfyui(model, both, negative)

    with messages_of("nodes.comfy.host") as logged:
        first, second = (_shown(twice, run)["5"].splitlines() for run in ("a", "b"))
    return {"first": len(first), "same": first == second, "logged": len(logged)}


@warnings_of_a_node_add_up.check
def _(found: dict[str, Any]) -> None:
    assert found == {"first": 3, "same": True, "logged": 6}


# Prompts ------------------------------------------------------------------------------------------


@case()
def prompts_that_are_not_understood() -> dict[str, str]:
    clip, noise = tiny_clip(), torch.rand(1, 64, 96, 3)
    scene = parse_caption("big red circle at top left, white background.")
    assert scene
    image = to_tensor(render(scene)).movedim(0, -1)[None]

    def stock_edit(prompt: str) -> Any:
        return clip.tokenize(prompt, images=[image])

    runs = {
        "instruction in Encode": lambda: encode(clip, "make the circle green", [image], 1),
        "instruction in a stock node": lambda: stock_edit("make the circle green"),
        "image alone": lambda: encode(clip, "", [image], 1),
        "instruction in Rewrite": lambda: rewritten(clip, "make the circle green", [image]),
        "instruction about what is not there": lambda: rewritten(clip, "remove the star", [image]),
        "image unlike its world": lambda: rewritten(clip, "make the circle green", [noise]),
        "locked cat": lambda: rewritten(clip, "a red circle", locked_text="a cat"),
        "German": lambda: rewritten(clip, "ein roter Kreis"),
        "cat": lambda: encode(clip, "a cat", [], 1),
        "cat in a stock node": lambda: clip.tokenize("a (cat:1.5)"),
        "cat in Rewrite": lambda: rewritten(clip, "a red circle on a cat"),
        "known": lambda: encode(clip, "big red circle, white background", [], 1),
    }
    return {name: _shown(run, name).get("5", "") for name, run in runs.items()}


@prompts_that_are_not_understood.check
def _(found: dict[str, str]) -> None:
    for name in ("instruction in Encode", "instruction in a stock node"):
        assert "Rewrite for UniFusion" in found[name]
    for name in ("cat", "cat in Rewrite", "locked cat"):
        assert 'does not know "cat"' in found[name]
    assert (
        'There is no "star". The image shows a big red circle' in found["instruction about what is not there"]
    )
    assert "looks like German" in found["German"]
    assert "unlike those that this model was trained on" in found["image unlike its world"]
    assert "plain text" in found["cat in a stock node"]
    assert 'does not know "cat"' in found["cat in a stock node"]
    for name in ("image alone", "instruction in Rewrite", "known"):
        assert found[name] == "", name


# Conditions longer than trained ---------------------------------------------------------------------


def _krea_encoded(length: int) -> Encoded:
    spec = krea_models()[0].model.model_config.unifusion.vlm
    states = krea_states(length).unflatten(-1, (len(spec.taps), spec.hidden_size))
    mask = torch.ones(1, length, dtype=torch.bool)
    read = type(features(1))(states=states, mask=mask, positions=torch.zeros(1, length, 3))
    return Encoded(features=read, spec=spec)


@case()
def conditions_longer_than_trained() -> list[str]:
    """Pooled, and as stock nodes give them: of 512 tokens and of 513."""
    model, _ = krea_models()
    said = []
    for length in (512, 513):
        states = [[krea_states(length), {}]]
        said += [
            _shown(lambda n=length: pool(model, _krea_encoded(n)), f"p{length}").get("5", ""),
            _shown(lambda s=states: by_comfyui(model, s, s, KREA_LATENT, 1.0), f"s{length}").get("5", ""),
        ]
    return said


@conditions_longer_than_trained.check
def _(said: list[str]) -> None:
    # a small file of random weights is told, too
    assert not any("tokens" in each for each in said[:2])
    for each in said[2:]:
        assert "513 tokens" in each
        assert "512" in each
        assert "max_tiles" in each


# Numbers that broke ---------------------------------------------------------------------------------


def _broken(value: float) -> Tensor:
    states = features(9).states.clone()
    states[0, 3, 1, 2] = value
    return states


@refused("NumericsError", "Conditioning", "NaN or infinite", "bf16 or fp32")
def nan_in_a_conditioning() -> None:
    positive = conditioning(features(9))
    positive[0][0] = _broken(float("nan")).flatten(2)
    by_comfyui(host_model(), positive, conditioning(features(5)))


@refused("NumericsError", "Latent", "NaN or infinite")
def nan_in_a_latent() -> None:
    latent = LATENT.clone()
    latent[0, 0, 0, 0] = float("inf")
    by_comfyui(host_model(), conditioning(features(9)), conditioning(features(5)), latent)


@refused("NumericsError", "sampling step", "LoRAs")
def overflow_in_the_generator() -> None:
    model = host_model()
    model.add_patches({"diffusion_model.blocks.1.mlp.down.weight": ("diff", (torch.full((64, 72), 1e38),))})
    by_comfyui(model, conditioning(features(9)), conditioning(features(5)))


@refused("NumericsError", "Pooled condition", "LoRAs")
def overflow_in_lap() -> None:
    model = host_model()
    name = "diffusion_model.txtfusion.projector.weight"
    model.add_patches({name: ("diff", (torch.full((1, 3), 3e38),))})
    pool(model, encoded(9))


def _clip_that_overflows() -> Any:
    clip = tiny_clip()
    with torch.no_grad():
        clip.cond_stage_model.backbone.model.model.language_model.layers[2].mlp.down_proj.weight.fill_(3e38)
    return clip


@refused("NumericsError", "VLM", "bf16 or fp32")
def overflow_in_the_vlm() -> None:
    encode(_clip_that_overflows(), "big red circle", [], 1)


@refused("NumericsError", "VLM", "bf16 or fp32")
def overflow_in_a_rewrite() -> None:
    rewritten(_clip_that_overflows(), "a big red circle")


# Empty input --------------------------------------------------------------------------------------


@refused("ShapeError", "holds no image", "IMAGE")
def empty_batch_of_images() -> None:
    encode(tiny_clip(), "a red circle", [torch.zeros(0, 64, 64, 3)], 1)


@refused("ShapeError", "holds no image", "IMAGE")
def image_without_pixels() -> None:
    tiny_clip().tokenize("a red circle", images=[torch.zeros(1, 0, 64, 3)])


@refused("ShapeError", "holds no image", "latent")
def empty_batch_of_latents() -> None:
    by_comfyui(host_model(), conditioning(features(9)), conditioning(features(5)), torch.zeros(0, 16, 8, 12))


@refused("ShapeError", "5 frames")
def latent_of_a_video() -> None:
    model, _ = krea_models()
    states = [[krea_states(6), {}]]
    by_comfyui(model, states, states, torch.zeros(1, 16, 5, 8, 8))


@refused("ShapeError", "holds no tokens", "CLIP Text Encode")
def conditioning_without_tokens() -> None:
    by_comfyui(host_model(), [[None, {}]], conditioning(features(5)))
