"""Choosing the next token of each chat: the likeliest, or drawn by a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError


def draw_generators(
    num_chats: int, temperature: float, seed: int | Sequence[int] | None
) -> list[torch.Generator] | None:
    """One generator per chat, on the CPU so that a seed means the same on every device; None if greedy."""
    if temperature < 0:
        raise ConfigError(
            f"temperature is {temperature}; give 0 for the likeliest words or more for variety."
        )
    if not isinstance(seed, Sequence):
        seeds = [seed] * num_chats
    elif len(seed) == num_chats:
        seeds = list(seed)
    else:
        raise ConfigError(f"{len(seed)} seeds were given for {num_chats} chats; give one, or one for each.")
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
    """The next token of each chat: the likeliest, or drawn by inverting the cumulative distribution.

    In float64 and with one uniform number per token, so that rounding in the logits moves a draw only if it
    falls on an edge.
    """
    if generators is None:
        return logits.argmax(dim=-1).tolist()
    cumulative = torch.softmax(logits.cpu().double() / temperature, dim=-1).cumsum(dim=-1)
    draws = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    # the last sum may lie a rounding below 1
    return (
        torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
        .clamp(max=logits.shape[1] - 1)[:, 0]
        .tolist()
    )
