"""What differs between VLM families; everything else in `vlm/` is the same for all.

To add a family, describe it with `VLMFamily` in a file of its own and name it in `FAMILIES`, keyed by transformers'
`model_type`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ...errors import VLMError
from .family import VLMFamily
from .internvl import INTERNVL
from .qwen_vl import QWEN2_5_VL, QWEN3_VL

if TYPE_CHECKING:
    # for annotations alone: it takes seconds to import
    from transformers import PreTrainedModel

FAMILIES: dict[str, VLMFamily] = {
    "internvl": INTERNVL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
}


def find_family(model_type: str) -> VLMFamily:
    """The family of a transformers `model_type`; VLMError naming the supported ones if there is none."""
    if model_type not in FAMILIES:
        hint = (
            " Take the version of this model whose name ends in -hf." if model_type == "internvl_chat" else ""
        )
        raise VLMError(
            f'The VLM is of type "{model_type}"; supported are {", ".join(sorted(FAMILIES))}.{hint}'
        )
    return FAMILIES[model_type]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The language model's layers in their order; what each of them reads is a tap."""
    return cast(nn.ModuleList, cast(Any, model).model.language_model.layers)
