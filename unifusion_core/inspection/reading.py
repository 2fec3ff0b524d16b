"""The share of each VLM layer in every pooled token, and the attention between the layers inside LAP.

A pooled token is a sum with one summand per tap, `pooled = sum_l w_l x_l`: w are the projector's weights, x_l is the tap's state
after LAP's blocks. The share of tap l is the length of its summand along the sum,

    share_l = <w_l x_l, pooled> / <pooled, pooled>.

It is exact: the shares of a token sum to 1, and a negative share opposes the sum. Before the sum, the taps of a token attend
to each other, so a tap's content can also arrive through another tap; `LayerReading.attention` shows how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from ..contracts import Features
from ..errors import ShapeError
from ..models.layers import TransformerBlock
from ..models.unifusion import UniFusion


@dataclass(frozen=True, kw_only=True)
class LayerReading:
    """The layers of one chat's tokens, in float32 on the CPU.

    weights    L       the projector's pooling weights
    shares     T L     shares of the pooled token; each row sums to 1, negative shares oppose the sum
    attention          one T L for each block of LAP: the attention that a tap receives, averaged over heads and over the taps
                       that attend to it; each row sums to 1
    """

    weights: Float[Tensor, " L"]
    shares: Float[Tensor, "T L"]
    attention: tuple[Float[Tensor, "T L"], ...]


@torch.no_grad()
def read_layers(model: UniFusion, features: Features) -> LayerReading:
    """Shares, attention and pooling weights of one chat. The features are on the model's device and in its type.

    Raises ShapeError for features of another VLM or of several chats.
    """
    model.check_features(features)
    if len(features.states) != 1:
        raise ShapeError(
            f"Features of {len(features.states)} chats were given: give those of one chat: a single image in the node that "
            "encodes, or `features.row(i)`."
        )
    lap = model.txtfusion
    *inputs, last = lap.block_states(features.states)
    blocks = cast(list[TransformerBlock], list(lap.layerwise_blocks))
    attention = [
        reduce(block.attn.weights(block.prenorm(x)), "T A queries L -> T L", "mean")
        for block, x in zip(blocks, inputs, strict=True)
    ]
    weights = lap.pooling_weights(last)
    parts = (last * rearrange(weights, "L -> L 1")).float()
    pooled = reduce(parts, "T L D -> T 1 D", "sum")
    length = reduce(pooled * pooled, "T 1 D -> T 1", "sum")
    shares = reduce(parts * pooled, "T L D -> T L", "sum") / length.clamp_min(torch.finfo(length.dtype).tiny)
    return LayerReading(
        weights=weights.float().cpu(), shares=shares.cpu(), attention=tuple(each.cpu() for each in attention)
    )
