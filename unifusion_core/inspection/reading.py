"""Which VLM layer every token reads, by LAP's own steps.

LAP's pooled token is a sum of one part per tap, `pooled = sum_l w_l x_l`, with w the projector's weights and x_l the tap's state
after the layer-axis blocks. The share of tap l is the length of its part along the pooled token,

    share_l = <w_l x_l, pooled> / <pooled, pooled>,

which is exact: the shares of a token sum to 1, and a negative one pulls against what the token becomes. The blocks before that
have let the taps read each other; how much attention each tap got there is given beside it.
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
    """What LAP reads of the tokens of one chat, in float32 on the CPU.

    weights    L       the projector's pooling weights
    shares     T L     of the pooled token; each row sums to 1, negative ones pull against the others
    attention          one T L for each layer-axis block: the attention that a tap gets, averaged over heads and over the taps
                       that ask; each row sums to 1
    """

    weights: Float[Tensor, " L"]
    shares: Float[Tensor, "T L"]
    attention: tuple[Float[Tensor, "T L"], ...]


@torch.no_grad()
def read_layers(model: UniFusion, features: Features) -> LayerReading:
    """What the model's LAP reads of one chat's tokens; the features lie where the model does, in its type.

    Raises ShapeError for features of another VLM, or of several chats.
    """
    model.check_features(features)
    if len(features.states) != 1:
        raise ShapeError(
            f"Features of {len(features.states)} chats were given: look at the layers of one at a time."
        )
    lap = model.txtfusion
    *asked, last = lap.block_states(features.states)
    attention = [
        reduce(block.attn.weights(block.prenorm(x)), "T A asking L -> T L", "mean")
        for block, x in zip(cast(list[TransformerBlock], list(lap.layerwise_blocks)), asked, strict=True)
    ]
    weights = lap.pooling_weights(last)
    parts = (last * rearrange(weights, "L -> L 1")).float()  # T L D
    pooled = reduce(parts, "T L D -> T 1 D", "sum")
    length = reduce(pooled * pooled, "T 1 D -> T 1", "sum")
    shares = reduce(parts * pooled, "T L D -> T L", "sum") / length.clamp_min(torch.finfo(length.dtype).tiny)
    return LayerReading(
        weights=weights.float().cpu(), shares=shares.cpu(), attention=tuple(each.cpu() for each in attention)
    )
