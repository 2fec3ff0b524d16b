"""What stock nodes add for other models and this one does not use: entries of a CONDITIONING, and patches on a MODEL."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ...unifusion_core.errors import ConfigError
from .host import warn_once
from .module import PATCHES
from .ops import Options

_PICTURES = (
    "connect the image to Rewrite for UniFusion (VERIFI), or to Encode for UniFusion beside a description"
)
_INPAINTING = "use VAE Encode with Set Latent Noise Mask on the sampler's latent"
# key -> (what it is, what to do)
_UNUSED = {
    "guidance": ("the guidance of FluxGuidance", "set cfg in the sampler"),
    "concat_latent_image": ("the image of InpaintModelConditioning", _INPAINTING),
    "concat_mask": ("the mask of InpaintModelConditioning", _INPAINTING),
    "control": ("a ControlNet", _PICTURES),
    "gligen": ("GLIGEN boxes", "say the places in the prompt, or use Conditioning (Set Area)"),
    "unclip_conditioning": ("the image of unCLIPConditioning", _PICTURES),
    "clip_vision_output": ("the output of CLIP Vision", _PICTURES),
    "reference_image_embeds": ("embeddings of a reference image", _PICTURES),
    "noise_concat": ("a latent joined to the noise", "give it to the sampler as its latent"),
    "camera_conditions": ("camera positions", "describe the view in the prompt"),
    "pooled_output": ("the pooled text of another text encoder", "encode the prompt with this model's CLIP"),
    "pulid": ("a face of PuLID", _PICTURES),
    "aesthetic_score": ("an aesthetic score", "describe the quality in the prompt"),
}


def warn_of_unused(rest: Mapping[str, Any], *, takes_references: bool) -> None:
    """Warns, once in a run, of every entry of a conditioning that has no effect on this model."""
    for key, (what, instead) in _UNUSED.items():
        if rest.get(key) is not None:
            warn_once(f'The conditioning holds {what} ("{key}"), which this model does not use: {instead}.')
    if not rest.get("reference_latents"):
        return
    if not takes_references:
        warn_once(
            'The conditioning holds reference latents ("reference_latents"), which this model does not use: '
            f"{_PICTURES}. A VAE connected to a node that encodes images has no effect either."
        )
    elif rest.get("reference_latents_method") is None:
        warn_once(
            'The conditioning holds reference latents ("reference_latents"), which Krea 2 reads only if Edit Model Reference '
            "Method (FluxKontextMultiReferenceLatentMethod) is between encoder and sampler. Only LoRAs for editing were trained "
            f"on them; without one, {_PICTURES}."
        )


def check_patches(options: Options) -> None:
    """Warns, once in a run, of patches in transformer_options that belong to other architectures.

    Raises ConfigError for a patch of attention that does not take what a transformer with rotary positions gives it.
    """
    for patch in options.get("patches", {}).get("attn1_patch", ()):
        try:
            inspect.signature(patch).bind(0, 0, 0, pe=0, attn_mask=0, extra_options=0)
        except TypeError as error:
            raise ConfigError(
                f"A node between loader and sampler patches the attention in a way made for U-Nets such as SDXL "
                f"({getattr(patch, '__qualname__', type(patch).__name__)}): take the node out."
            ) from error
    names = {name for name, patches in options.get("patches", {}).items() if patches} - set(PATCHES)
    names |= {f"{name} replacement" for name, parts in options.get("patches_replace", {}).items() if parts}
    names -= {"dit replacement"}
    if "rope_options" in options:
        names.add("rope_options")
    if names:
        warn_once(
            f"A node between loader and sampler patches {', '.join(sorted(names))}, which this model does not have: it has "
            "no effect, so take the node out."
        )
