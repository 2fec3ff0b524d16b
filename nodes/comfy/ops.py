"""ComfyUI's layers and attention in the place of torch's: weights may wait elsewhere, and users' patches apply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

# ComfyUI's transformer_options
Options = dict[str, Any]


class HostAttention:
    """ComfyUI's attention in the place of the core's: honours its command line and what users patch into it."""

    def __init__(self) -> None:
        self.options: Options = {}

    @contextmanager
    def during(self, options: Options) -> Iterator[None]:
        """For one call of the model: what users patched."""
        self.options = options
        try:
            yield
        finally:
            self.options = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        heads = q.shape[1]
        if k.shape[1] != heads:
            k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        if bias is not None:  # some kernels need the query axis written out
            bias = bias.expand(len(q), -1, q.shape[2], -1)
        return optimized_attention(
            q, k, v, heads, mask=bias, skip_reshape=True, transformer_options=self.options
        )


def use_host_layers(module: nn.Module) -> None:
    """Make plain torch layers ComfyUI's, in place: the same weights, but they may wait elsewhere, in another type, and
    are moved and cast while they work. Subclasses (transformers' norms) keep their own ways and are small."""
    ops = comfy.ops.manual_cast
    table = {
        nn.Linear: ops.Linear,
        nn.LayerNorm: ops.LayerNorm,
        nn.Conv2d: ops.Conv2d,
        nn.Conv3d: ops.Conv3d,
        nn.Embedding: ops.Embedding,
    }
    for each in module.modules():
        if type(each) in table:
            each.__class__ = table[type(each)]
            if not hasattr(each, "bias"):
                each.register_parameter("bias", None)  # the manager asks every layer for one


def bring_the_rest(module: nn.Module, device: torch.device) -> None:
    """Move what belongs to no layer of ComfyUI's (transformers' norms, scales and places): a VLM that the manager loads in part
    leaves it where it waits, and nothing would fetch it from there while it works."""
    for each in module.modules():
        if not hasattr(each, "comfy_cast_weights"):
            each._apply(lambda tensor: tensor.to(device), recurse=False)  # Module.to, without the children
