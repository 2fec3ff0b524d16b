"""Picks the next token of each chat: the likeliest, or a sample from a random generator per chat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import VLM_REMEDY, check_finite
from ..errors import ConfigError


def make_generators(
    num_chats: int, temperature: float, seed: int | Sequence[int] | None
) -> list[torch.Generator] | None:
    """One random generator per chat, on the CPU so that seeds are portable between devices. None for temperature 0.

    seed   one for all chats, or one per chat; None = fresh seeds

    Raises ConfigError for a negative temperature and for another number of seeds than of chats.
    """
    if temperature < 0:
        raise ConfigError(
            f"temperature is {temperature}; give 0 for the likeliest words, or more for variety."
        )
    if not isinstance(seed, Sequence):
        seeds = [seed] * num_chats
    elif len(seed) == num_chats:
        seeds = list(seed)
    else:
        raise ConfigError(f"{len(seed)} seeds were given for {num_chats} chats; give one, or one per chat.")
    if temperature == 0:
        return None
    generators = [torch.Generator() for _ in seeds]
    for generator, each in zip(generators, seeds, strict=True):
        if each is None:
            generator.seed()
        else:
            generator.manual_seed(each)
    return generators


def pick_tokens(
    logits: Float[Tensor, "B vocabulary"], temperature: float, generators: list[torch.Generator] | None
) -> list[int]:
    """The next token of each chat: the likeliest, or a sample by inversion of the cumulative distribution.

    One uniform number per token in float64: rounding in the logits changes a sample only at the boundary between two tokens.
    Raises NumericsError for logits that are NaN or positive infinity.
    """
    if not bool((logits < torch.inf).all()):
        # negative infinity is a token that cannot come
        check_finite(logits.nan_to_num(torch.nan, neginf=0.0), "The VLM's next word", VLM_REMEDY)
    if generators is None:
        return logits.argmax(dim=-1).tolist()
    cumulative = torch.softmax(logits.cpu().double() / temperature, dim=-1).cumsum(dim=-1)
    draws = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    # rounding may leave the last sum just below 1
    return (
        torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
        .clamp(max=logits.shape[1] - 1)[:, 0]
        .tolist()
    )
