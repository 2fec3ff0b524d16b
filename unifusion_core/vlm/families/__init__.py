"""What differs between VLM families. The rest of `vlm/` is the same for all of them.

To add a family, describe it as a `VLMFamily` in a new file, and add it to `FAMILIES` under transformers' `model_type`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ...errors import VLMError
from .family import VLMFamily
from .internvl import INTERNVL
from .qwen_vl import QWEN2_5_VL, QWEN3_VL

if TYPE_CHECKING:
    # for annotations only: the import takes seconds
    from transformers import PreTrainedModel

FAMILIES: dict[str, VLMFamily] = {
    "internvl": INTERNVL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
}


def find_family(model_type: str) -> VLMFamily:
    """The family with transformers' `model_type`. Raises VLMError for a family that is not supported."""
    if model_type not in FAMILIES:
        remedy = (
            "use the version of this model whose name ends in -hf"
            if model_type == "internvl_chat"
            else "update this pack, or use a supported VLM"
        )
        raise VLMError(
            f'The VLM is of type "{model_type}"; supported are {", ".join(sorted(FAMILIES))}: {remedy}.'
        )
    return FAMILIES[model_type]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of the language model, in order. Their inputs are the taps."""
    return cast(nn.ModuleList, cast(Any, model).model.language_model.layers)
