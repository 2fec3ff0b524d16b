"""ComfyUI's own Krea 2 model: what it reads of a VLM, and features in the form that it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy.ldm.krea2.model import SingleStreamDiT

from ...unifusion_core.contracts import VLMSpec
from ...unifusion_core.errors import ConfigError, ShapeError
from ...unifusion_core.zoo.krea_2 import KREA_2
from ..sockets import Encoded
from .conditions import flattened
from .model import hosted

KREA_2_VLM = KREA_2.config.vlm


def vlm_spec(model: Any) -> VLMSpec:
    """What the generator behind a MODEL wire reads of its VLM: a UniFusion model says it itself, for ComfyUI's own Krea 2 it is
    known. Raises ConfigError for a model of another kind."""
    module: Any = getattr(getattr(model, "model", None), "diffusion_model", None)
    if not isinstance(module, SingleStreamDiT):
        return hosted(model).model_config.unifusion.vlm
    if module.txtlayers != len(KREA_2_VLM.taps):
        raise ConfigError(
            f"This Krea 2 model reads {module.txtlayers} layers of its VLM, the published one {len(KREA_2_VLM.taps)}, and "
            "which ones is not known: choose a file of the published layout."
        )
    return replace(KREA_2_VLM, hidden_size=module.txtdim)


def krea2_conditioning(encoded: Encoded) -> list[list[Any]]:
    """Features as a CONDITIONING for ComfyUI's own Krea 2, which takes the layers of a token side by side and knows no mask.

    Raises ShapeError for features of other layers or in another chat template, and for chats of unequal lengths in one batch.
    """
    spec, mask = encoded.spec, encoded.features.mask
    if spec != replace(KREA_2_VLM, hidden_size=spec.hidden_size):
        raise ShapeError(
            f"These features are layers {spec.taps} of {spec.family}, Krea 2 reads {KREA_2_VLM.taps} of {KREA_2_VLM.family} "
            "in its own chat template: connect the Krea 2 model to the `model` input of Load UniFusion VLM."
        )
    if not mask.all():
        lengths = ", ".join(str(int(length)) for length in mask.sum(1))
        raise ShapeError(
            f"These features are chats of unequal lengths ({lengths} tokens), and ComfyUI's Krea 2 would read the padding: "
            "encode one prompt at a time, or draw with Load UniFusion Model."
        )
    return [[*flattened(encoded.features, spec)]]
