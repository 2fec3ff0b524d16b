"""ComfyUI's layers and attention inside the core's modules, so that offloading, casting and users' patches apply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops
import torch
from comfy.cli_args import args
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules import attention as host
from torch import Tensor, nn

from ...unifusion_core.models.layers import Prefix, apply_rope

# ComfyUI's transformer_options
Options = dict[str, Any]


class HostAttention:
    """ComfyUI's attention as a `layers.Attend`. It honours ComfyUI's command line and users' patches, in the order in which
    ComfyUI's own Krea 2 calls them."""

    def __init__(self) -> None:
        self.options: Options = {}

    @contextmanager
    def during(self, options: Options) -> Iterator[None]:
        """Applies the patches in `options` (transformer_options) to layers that get none of their own: LAP and refiner."""
        self.options = options
        try:
            yield
        finally:
            self.options = {}

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rope: Tensor | None,
        bias: Tensor | None,
        *,
        prefix: Prefix | None = None,
        transformer_options: Options | None = None,
    ) -> Tensor:
        options = self.options if transformer_options is None else transformer_options
        # only the DiT's blocks have an index
        patches = options.get("patches", {}) if "block_index" in options else {}
        for patch in patches.get("attn1_patch", ()):
            changed = patch(q, k, v, pe=rope, attn_mask=bias, extra_options=options)
            q, k, v = changed.get("q", q), changed.get("k", k), changed.get("v", v)
            rope, bias = changed.get("pe", rope), changed.get("attn_mask", bias)
        heads = q.shape[1]
        q, k = _rotated(q, rope), _rotated(k, rope)
        if prefix is not None:
            k, v = torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2)
        more = {}
        if k.shape[1] != heads:
            if _TAKES_GROUPS and "optimized_attention_override" not in options:
                more["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        if bias is not None and bias.ndim == 4:
            # some kernels need a full query axis
            bias = bias.expand(len(q), -1, q.shape[2], -1)
        out = _attention_for(q.device)(
            q, k, v, heads, mask=bias, skip_reshape=True, transformer_options=options, **more
        )
        for patch in patches.get("attn1_output_patch", ()):
            out = patch(out, options)
        return out


def _attention_for(device: torch.device) -> Any:
    """ComfyUI's attention. Its fallback saves the memory of GPUs; on a CPU torch's own saves as much and is faster."""
    chosen = host.optimized_attention_masked
    asked_for = args.use_quad_cross_attention
    if device.type == "cpu" and chosen is host.attention_sub_quad and not asked_for:
        return host.attention_pytorch
    return chosen


# kernels that share key heads among query heads take the argument `enable_gqa`, since this helper of theirs exists
_TAKES_GROUPS = hasattr(comfy.ops, "repeat_kv_for_gqa")


def _rotated(x: Tensor, rope: Tensor | None) -> Tensor:
    """By ComfyUI's fused operator; on a CPU, and where gradients are needed, the core's own is faster or the only one."""
    if rope is None:
        return x
    # a patch may have shortened the tokens
    rope = rope[:, :, : x.shape[2]]
    if x.device.type == "cpu" or torch.is_grad_enabled():
        return apply_rope(x, rope)
    return apply_rope1(x, rope)


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
