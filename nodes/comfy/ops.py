"""ComfyUI's layers and attention inside the core's modules, so that offloading, casting and users' patches apply."""

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
    """ComfyUI's attention as a `layers.Attend`. It honours ComfyUI's command line and users' attention patches."""

    def __init__(self) -> None:
        self.options: Options = {}

    @contextmanager
    def during(self, options: Options) -> Iterator[None]:
        """Applies the patches in `options` (transformer_options) during one call of the model."""
        self.options = options
        try:
            yield
        finally:
            self.options = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        heads = q.shape[1]
        if k.shape[1] != heads:
            k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        if bias is not None:
            # some kernels need a full query axis
            bias = bias.expand(len(q), -1, q.shape[2], -1)
        return optimized_attention(
            q, k, v, heads, mask=bias, skip_reshape=True, transformer_options=self.options
        )


def use_host_layers(module: nn.Module) -> None:
    """Turns plain torch layers into ComfyUI's in place. The weights stay the same; ComfyUI may offload and cast them.

    Subclasses such as transformers' norms are small and stay as they are.
    """
    # basedpyright takes `comfy.ops` for this file
    ops = comfy.ops.manual_cast  # pyright: ignore[reportAttributeAccessIssue]
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
                # ComfyUI's model manager asks every layer for its bias
                each.register_parameter("bias", None)


def move_other_parameters(module: nn.Module, device: torch.device) -> None:
    """Moves the parameters and buffers that belong to no layer of ComfyUI's, such as transformers' norms, to `device`.

    ComfyUI's model manager leaves them where they are when it loads a VLM in part.
    """
    for each in module.modules():
        if not hasattr(each, "comfy_cast_weights"):
            # Module.to without the children
            each._apply(lambda tensor: tensor.to(device), recurse=False)
