"""Per-image conditioning strength: drops tokens of an image, or repeats each of them.

Scaling an image's tokens would not make it stronger. LAP, the refiner, the projection to the DiT and every DiT block normalise a
token first, so a factor on states or pooled tokens only changes the balance between a block's input and its output.

A token's share of the attention is well defined. g copies of a token act exactly like one token whose attention logits are
raised by log g. This holds in the refiner and in both forms of the DiT, because copies of an image token share its rotary
position (Krea 2 gives condition tokens none). So strength is a number of tokens, and the generator needs no support for it: it
also works with ComfyUI's own Krea 2, which has neither mask nor bias.

Dropping tokens is known from text-trained generators that copy an image too closely (Qwen-VL's image tokens in Z-Image,
somepago.github.io/posts/emergent-rabbit-hole).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..contracts import Features, TokenRole
from ..errors import ConfigError, PromptError

MAX_GAIN = 8


def with_strength(
    features: Features, image: int, *, keep: float = 1.0, gain: int = 1, thumbnail_last: bool = True
) -> Features:
    """The features with one image weaker or stronger. All other tokens and the order are unchanged.

    image            its number in the chat, from 1
    keep             share of its tokens that are kept, 0..1, evenly spread; those of the thumbnail are dropped last. A share
                     above 0 keeps at least one token, and a larger share keeps all tokens of a smaller one
    gain             copies of each kept token, 1..MAX_GAIN
    thumbnail_last   as in the chat's template

    Raises ConfigError for numbers out of range, PromptError if no chat has that image.
    """
    if not 0 <= keep <= 1 or not 1 <= gain <= MAX_GAIN:
        raise ConfigError(
            f"Picture {image} was given keep {keep} and gain {gain}; give a share of 0 to 1 and a whole gain of 1 to {MAX_GAIN}."
        )
    own = (features.token_info.roles == TokenRole.IMAGE) & (features.positions[..., 0] == image)
    if not own.any():
        raise PromptError(
            f"The strength of picture {image} was given, and these features hold {int(features.positions[..., 0].max())} "
            "picture(s): choose one of them, or connect the picture to the node that encodes."
        )
    rows = []
    for row in range(len(own)):
        places = own[row].nonzero()[:, 0]
        chosen = places[_by_importance(features.positions[row, places, 1:], keep, thumbnail_last)]
        copies = features.mask[row].long()
        copies[places] = 0
        copies[chosen] = gain
        order = torch.repeat_interleave(copies)[None]
        rows.append(features.row(row).select(order, torch.ones_like(order, dtype=torch.bool)))
    return Features.cat(rows)


def _by_importance(places: Float[Tensor, "T 2"], keep: float, thumbnail_last: bool) -> Int[Tensor, " kept"]:
    """Indices of the tokens of one image that are kept: those of the thumbnail first, then those of the tiles, evenly spread."""
    count = max(1, round(keep * len(places))) if keep > 0 and len(places) else 0
    indices = torch.arange(len(places), device=places.device)
    if count == len(places):
        return indices
    # within a tile the row never decreases, so a decrease is a border between tiles; the thumbnail is after the last one or
    # before the first
    starts = (places[1:, 0] < places[:-1, 0]).nonzero()[:, 0] + 1
    border = int(starts[-1 if thumbnail_last else 0]) if len(starts) else 0
    thumbnail, tiles = indices[border:], indices[:border]
    if border and not thumbnail_last:
        thumbnail, tiles = tiles, thumbnail
    of_thumbnail = thumbnail[evenly_spread(places[thumbnail], min(count, len(thumbnail)))]
    of_tiles = tiles[evenly_spread(places[tiles], count - len(of_thumbnail))]
    return torch.cat([of_thumbnail, of_tiles])


def evenly_spread(places: Float[Tensor, "T 2"], count: int) -> Int[Tensor, " count"]:
    """Indices of `count` places by farthest point sampling, starting at the centre of the image."""
    chosen: list[int] = []
    nearest = -(places - 0.5).square().sum(1)
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        distance = (places - places[chosen[-1]]).square().sum(1)
        nearest = distance if len(chosen) == 1 else nearest.minimum(distance)
        # not again, even if other tokens are at the same place
        nearest[chosen[-1]] = -1.0
    return torch.tensor(chosen, dtype=torch.long, device=places.device)
