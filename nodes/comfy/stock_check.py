"""ComfyUI's own Qwen3-VL on a short text, against the same layers computed here.

ComfyUI's code changes between versions, and wrong hidden states would draw wrong images without a sign.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import comfyui_version
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...unifusion_core.errors import VLMError

TRIED = "0.33.0"
"""The version of ComfyUI that the pack was tried with."""
# Relative error of a token's state that 16 bits allow over 36 layers. A neighbouring layer's state differs by more.
TOLERANCE = 0.05
# of Qwen3-VL, whose files of ComfyUI do not name them
_THETA, _EPSILON = 5e6, 1e-6
# text encoders that were found right
_CHECKED: WeakSet[Any] = WeakSet()


def check_states(encoder: Any, taps: list[int], ids: list[int]) -> None:
    """One forward pass of ComfyUI's text encoder (`SDClipModel`) over the text of these token ids, once for each encoder.

    Raises VLMError for hidden states that are not those of Qwen3-VL's layers.
    """
    if encoder in _CHECKED:
        return
    model = encoder.transformer
    embeddings = encoder.process_tokens([ids], encoder.execution_device)[0]
    given = model(
        None,
        embeds=embeddings.clone(),
        intermediate_output=taps,
        final_layer_norm_intermediate=False,
        dtype=torch.float32,
    )[1]
    try:
        expected = _states(model.model.layers, embeddings.float(), taps)
    except AttributeError as missing:
        raise VLMError(_refusal(f"has other parts than Qwen3-VL ({missing})")) from missing
    if given.shape != expected.shape:
        raise VLMError(
            _refusal(f"gives hidden states of the shape {tuple(given.shape)}, not {tuple(expected.shape)}")
        )
    # the first token's state is very large in every layer and would hide the others
    error = (given.float() - expected)[0, :, 1:].norm(dim=-1) / expected[0, :, 1:].norm(dim=-1)
    for tap, worst in zip(taps, error.amax(1).tolist(), strict=True):
        # a NaN is wrong, too
        if not worst <= TOLERANCE:
            raise VLMError(
                _refusal(f"gives other hidden states than Qwen3-VL has (by {worst:.0%} at layer {tap})")
            )
    _CHECKED.add(encoder)


def _refusal(what: str) -> str:
    return (
        f"The Qwen3-VL of Load CLIP in this ComfyUI ({comfyui_version.__version__}) {what}, so images would be wrong: load the "
        f"folder Qwen3-VL-4B-Instruct by Load UniFusion VLM instead, or use ComfyUI {TRIED}, which this pack was tried with."
    )


def _states(layers: Any, x: Float[Tensor, "1 T D"], taps: list[int]) -> Float[Tensor, "1 L T D"]:
    """The inputs of the layers `taps`, from embeddings. Linear layers are the host's, because they may be quantised."""
    states = []
    for number, layer in enumerate(layers):
        if number in taps:
            states.append(x)
        x = x + _attention(layer.self_attn, _normed(x, layer.input_layernorm))
        x = x + _mlp(layer.mlp, _normed(x, layer.post_attention_layernorm))
    return torch.stack(states, 1)


def _attention(attention: Any, x: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 T D"]:
    """Causal grouped-query attention of a text: all three axes of its rotary positions are 0, 1, 2 ..."""
    size = len(attention.q_norm.weight)
    if getattr(attention, "merged_qkv", False):
        query, key, value = attention.qkv_proj(x).split(
            (attention.inner_size, attention.kv_size, attention.kv_size), dim=-1
        )
    else:
        query, key, value = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    query, key, value = (each.unflatten(-1, (-1, size)).transpose(1, 2) for each in (query, key, value))
    mixed = F.scaled_dot_product_attention(
        _rotated(_normed(query, attention.q_norm)),
        _rotated(_normed(key, attention.k_norm)),
        value,
        is_causal=True,
        enable_gqa=True,
    )
    return attention.o_proj(mixed.transpose(1, 2).flatten(2))


def _mlp(mlp: Any, x: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 T D"]:
    if getattr(mlp, "merged_mlp", False):
        gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
    else:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    return mlp.down_proj(F.silu(gate) * up)


def _normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight.to(x), _EPSILON)


def _rotated(x: Float[Tensor, "1 A T K"]) -> Float[Tensor, "1 A T K"]:
    size = x.shape[-1]
    frequencies = _THETA ** (-torch.arange(0, size, 2, device=x.device) / size)
    angles = torch.outer(torch.arange(x.shape[2], device=x.device), frequencies)
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )
