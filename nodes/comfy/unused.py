"""Entries of a CONDITIONING that stock nodes add for other models, and what does the same here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .host import warn_once

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
