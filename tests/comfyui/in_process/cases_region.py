"""An edit of a region: UniFusion Latent from Reference with a mask, against stock nodes, and what stays outside of the mask."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.utils
import torch
from the_pack.nodes.latent_from_reference import UniFusionLatentFromReference
from the_pack.nodes.sample import UniFusionSampler
from the_pack.unifusion_core.images import to_tensor
from the_pack.unifusion_core.shapes.world.captions import parse_caption
from the_pack.unifusion_core.shapes.world.render import render
from the_pack.unifusion_core.shapes.world.scorer import read_picture
from the_pack.unifusion_core.zoo.tiny import BUILT_IN
from torch import Tensor

from .case import case, difference, refused
from .small_unifusion import embedded_model, messages_of, rewritten, stock

BEFORE = "big red circle at top left, small blue star at top right, white background."
INSTRUCTION = "add a big green square at the bottom right"
# from the mask's border: what the autoencoder's convolutions see beyond it, in pixels
MARGIN = 16


def _vae() -> Any:
    weights, metadata = comfy.utils.load_torch_file(str(BUILT_IN.vae), return_metadata=True)
    return comfy.sd.VAE(sd=weights, metadata=metadata)


def _picture() -> Tensor:
    """1 H W 3."""
    scene = parse_caption(BEFORE)
    assert scene
    return to_tensor(render(scene)).movedim(0, -1)[None]


def _corner(height: int = 128, width: int = 128) -> Tensor:
    """A mask (1 H W) of the quarter at the bottom right."""
    mask = torch.zeros(1, height, width)
    mask[:, height // 2 :, width // 2 :] = 1
    return mask


def _latent(picture: Tensor, **more: Any) -> Any:
    return UniFusionLatentFromReference.execute(picture, "own size", 1.0, **more).args[0]


@case()
def region_as_stock_nodes() -> dict[str, float]:
    """Against VAE Encode and Set Latent Noise Mask: the latent, its mask, an image of a batch; then the latent without a VAE."""
    vae, picture, mask = _vae(), _picture(), _corner()
    (expected,) = stock.VAEEncode().encode(vae, picture)
    (expected,) = stock.SetLatentNoiseMask().set_mask(expected, mask)
    given = _latent(picture, vae=vae, mask=mask)
    two = _latent(torch.cat([picture.flip(1), picture]), vae=vae, mask=mask)
    return {
        "samples": difference(given["samples"], expected["samples"]),
        "mask": difference(given["noise_mask"], expected["noise_mask"]),
        "second of a batch": difference(two["samples"][1:], expected["samples"]),
        "entries": float(given.keys() != expected.keys()),
        "empty": float(_latent(picture)["samples"].abs().max()),
    }


@region_as_stock_nodes.check
def _(found: dict[str, float]) -> None:
    assert found == dict.fromkeys(found, 0.0)


@case()
def outside_of_the_region() -> dict[str, Any]:
    """An edit inside a mask with the embedded model: the largest change of a byte outside, against the autoencoder's own copy of
    the image; how much changed inside; and whether the image shows what was asked for."""
    vae, picture, mask = _vae(), _picture(), _corner()
    model, clip = embedded_model()
    positive, _ = rewritten(clip, INSTRUCTION, [picture], style="keep everything else")
    latent = _latent(picture, vae=vae, mask=mask)
    inputs = {"seed": 1, "steps": 20, "cfg": 2.0, "image_cfg": 1.0, "schedule": "automatic"}
    drawn = UniFusionSampler.execute(model, positive, latent, **inputs).args[0]
    (copy,) = stock.VAEDecode().decode(vae, {"samples": latent["samples"]})
    (pixels,) = stock.VAEDecode().decode(vae, drawn)
    change = (pixels - copy).abs().amax(-1)[0]
    start = 64 - MARGIN
    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[start:, start:] = False
    wanted = parse_caption(
        f"{BEFORE.removesuffix(', white background.')}, big green square at bottom right, white background."
    )
    assert wanted
    return {
        "outside": float(change[outside].max()) * 255,
        "inside": float(change[64:, 64:].max()) * 255,
        "latent outside": float((drawn["samples"] - latent["samples"])[..., :8, :].abs().max()),
        "exact": read_picture((pixels[0] * 255).round().byte().numpy()).shows(wanted),
    }


@outside_of_the_region.check
def _(found: dict[str, Any]) -> None:
    assert found["latent outside"] < 1e-5
    assert found["outside"] < 1
    assert found["inside"] > 100
    assert found["exact"]


@refused("ConfigError", "mask", "connect one to `vae`")
def mask_without_a_vae() -> None:
    _latent(_picture(), mask=_corner())


@refused("ShapeError", "The mask is 64x64 and the image 128x96", "Load Image")
def mask_of_another_shape() -> None:
    _latent(torch.zeros(1, 96, 128, 3), vae=_vae(), mask=torch.zeros(1, 64, 64))


@case()
def mask_that_covers_nothing() -> list[str]:
    with messages_of("nodes.comfy.host") as said:
        _latent(_picture(), vae=_vae(), mask=torch.zeros(1, 64, 64))
    return said


@mask_that_covers_nothing.check
def _(said: list[str]) -> None:
    (sentence,) = said
    assert "covers nothing" in sentence
