"""From chats to the features that condition a generator: encode, then select tokens."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from ..contracts import VLM_REMEDY, Features, TokenRole, TokenSelection, VLMSpec, check_finite
from ..errors import ConfigError, PromptError
from .base import BaseVLM
from .chat import VLMInputs


def encode_chat(
    backbone: BaseVLM,
    spec: VLMSpec,
    inputs: VLMInputs,
    *,
    reuse_images: bool = False,
    weights: Hashable = None,
) -> Features:
    """Tapped states of the selected tokens, from one causal pass. Arguments as in `VLMBackbone.encode`.

    Raises PromptError for a chat without a selected token, VLMError for taps that this VLM does not have.
    """
    features = backbone.encode(inputs, spec, reuse_images=reuse_images, weights=weights)
    return select_tokens(features, spec.token_selection)


def select_tokens(features: Features, selection: TokenSelection) -> Features:
    """The tokens that become the condition, in the order of the chat, padded with 0 at the end of each row.

    "rewrite"   image tokens, the rewrite (the prompt in chats without one) and the suffix
    "prompt"    everything but the prefix and the end token

    Raises ConfigError for another selection, PromptError for a chat without a selected token, NumericsError for states that are
    NaN or infinite.
    """
    roles = features.token_info.roles
    if selection == "rewrite":
        rewritten = (roles == TokenRole.REWRITE).any(dim=1, keepdim=True)
        words = torch.where(rewritten, int(TokenRole.REWRITE), int(TokenRole.PROMPT))
        keep = (roles == TokenRole.IMAGE) | (roles == words) | (roles == TokenRole.SUFFIX)
    elif selection == "prompt":
        keep = (roles != TokenRole.SYSTEM) & (roles != TokenRole.END)
    else:
        raise ConfigError(f'token_selection is "{selection}"; choose "rewrite" or "prompt"')
    keep = keep & features.mask
    lengths = keep.sum(dim=1)
    if int(lengths.min()) == 0:
        raise PromptError(
            "A chat has no token for the condition; give a prompt, or a template with a suffix."
        )
    # a stable sort moves the selected tokens to the front and keeps their order
    order = torch.sort((~keep).int(), dim=1, stable=True).indices[:, : int(lengths.max())]
    selected = features.select(order, torch.arange(order.shape[1], device=order.device) < lengths[:, None])
    check_finite(selected.states, "Hidden states of the VLM", VLM_REMEDY)
    return selected
