"""ComfyUI's own Krea 2 model: its VLM spec, and features in its format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy.ldm.krea2.model import SingleStreamDiT

from ...unifusion_core.contracts import VLMSpec
from ...unifusion_core.errors import ConfigError, ShapeError
from ...unifusion_core.zoo.krea_2 import KREA_2
from ...unifusion_core.zoo.spec import GeneratorSpec
from ..sockets import Encoded
from .conditions import flattened
from .model import hosted

KREA_2_VLM = KREA_2.config.vlm


def vlm_spec(model: Any) -> VLMSpec:
    """The VLM that the generator of a MODEL was trained with: a UniFusion model, or ComfyUI's own Krea 2.

    Raises ConfigError for a model of another kind.
    """
    module: Any = getattr(getattr(model, "model", None), "diffusion_model", None)
    if not isinstance(module, SingleStreamDiT):
        return hosted(model).model_config.unifusion.vlm
    if module.txtlayers != len(KREA_2_VLM.taps):
        raise ConfigError(
            f"This Krea 2 model has {module.txtlayers} VLM layers and does not say which; {len(KREA_2_VLM.taps)} are needed, as "
            "in the published models: load a file of the published layout."
        )
    return replace(KREA_2_VLM, hidden_size=module.txtdim)


def generator_spec(model: Any) -> GeneratorSpec:
    """What the generator of a MODEL is. Raises ConfigError as `vlm_spec` does."""
    module: Any = getattr(getattr(model, "model", None), "diffusion_model", None)
    return KREA_2 if isinstance(module, SingleStreamDiT) else hosted(model).model_config.spec


def krea2_conditioning(encoded: Encoded) -> list[list[Any]]:
    """Features as a CONDITIONING for ComfyUI's own Krea 2: the layers of a token concatenated, without a mask.

    Raises ShapeError for features of other layers or another chat template, and for chats of unequal lengths in one batch.
    """
    spec, mask = encoded.spec, encoded.features.mask
    if spec != replace(KREA_2_VLM, hidden_size=spec.hidden_size):
        raise ShapeError(
            f"These features are layers {spec.taps} of {spec.family}; Krea 2 needs layers {KREA_2_VLM.taps} of "
            f"{KREA_2_VLM.family} in its own chat template: connect the Krea 2 model to the `model` input of Load UniFusion VLM."
        )
    if not mask.all():
        lengths = ", ".join(str(int(length)) for length in mask.sum(1))
        raise ShapeError(
            f"These features are prompts of unequal lengths ({lengths} tokens), and ComfyUI's Krea 2 cannot mask the padding: "
            "encode one prompt at a time, or use Load UniFusion Model."
        )
    KREA_2.warn_of_long_condition(mask.shape[1])
    return [[*flattened(encoded.features, spec)]]
