"""How strongly one picture speaks in a condition: fewer of its tokens, or each of them several times.

No picture is made louder by scaling its tokens: LAP, refiner, the projection to the DiT and every DiT block norm a token before
they read it, so a factor on VLM states or pooled tokens only shifts the balance between a block's input and its output. What is
well defined is a token's share of the attention. A token that stands there g times is attended to exactly like one whose
attention logits are raised by log g, in the refiner and in both forms of the DiT, because copies of a picture token have its
place as their rotary position (Krea 2 gives none at all). So strength is a number of tokens, and needs nothing of the generator:
ComfyUI's own Krea 2, which knows no mask and no bias, reads it like ours.

Leaving tokens out is known from text-trained generators that copy a picture too closely (Qwen-VL's picture tokens in Z-Image,
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
    """The features with one picture weaker or stronger; every other token stays as it is, in its order.

    picture          its number in the chat, from 1
    keep             share of its tokens that stay, 0..1, evenly spread over the picture. The thumbnail's are the last to go; of
                     any share above 0 at least one token stays, and a larger share keeps what a smaller one kept
    gain             how often each kept token stands there, 1..MAX_GAIN
    thumbnail_last   as in the chat's template

    Raises ConfigError for impossible numbers, PromptError if no chat has that picture.
    """
    if not 0 <= keep <= 1 or not 1 <= gain <= MAX_GAIN:
        raise ConfigError(
            f"A picture's strength is keep {keep} and gain {gain}; give a share of 0 to 1 and a whole gain of 1 to {MAX_GAIN}."
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
    """Which tokens of one picture stay: its thumbnail's, then those of its tiles, each evenly spread."""
    count = max(1, round(keep * len(places))) if keep > 0 and len(places) else 0
    indices = torch.arange(len(places), device=places.device)
    if count == len(places):
        return indices
    # every tile runs from top to bottom, so the thumbnail meets the tiles where rows begin anew
    anew = (places[1:, 0] < places[:-1, 0]).nonzero()[:, 0] + 1
    border = int(anew[-1 if thumbnail_last else 0]) if len(anew) else 0
    thumbnail, tiles = indices[border:], indices[:border]
    if border and not thumbnail_last:
        thumbnail, tiles = tiles, thumbnail
    of_thumbnail = thumbnail[evenly_spread(places[thumbnail], min(count, len(thumbnail)))]
    of_tiles = tiles[evenly_spread(places[tiles], count - len(of_thumbnail))]
    return torch.cat([of_thumbnail, of_tiles])


def evenly_spread(places: Float[Tensor, "T 2"], count: int) -> Int[Tensor, " count"]:
    """`count` of the places, each in turn the one farthest from all before it, beginning in the middle."""
    chosen: list[int] = []
    nearest = -(places - 0.5).square().sum(1)
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        distance = (places - places[chosen[-1]]).square().sum(1)
        nearest = distance if len(chosen) == 1 else nearest.minimum(distance)
        nearest[chosen[-1]] = -1.0  # never again, even if other tokens lie on the same spot
    return torch.tensor(chosen, dtype=torch.long, device=places.device)
