"""Layers shared by LAP, refiner and DiT. Parameter names follow Krea 2's public checkpoint (`wq`, `qknorm`, `prenorm`).

Norms and the time embedding are computed in float32 and rotary angles in float64, whatever the type of the weights.

In these layers S is the axis that attention runs over (taps in LAP, VLM tokens in the refiner, condition and latent tokens in the
DiT), and M is the width of the module that contains them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

# signature of `attend`; the attention of a host may take more keyword arguments
Attend = Callable[..., Tensor]
# keys, already rotated, and values of earlier tokens, each B kv_heads T K
Prefix = tuple[Tensor, Tensor]


def attend(
    q: Float[Tensor, "B A S K"],
    k: Float[Tensor, "B kv_heads S K"],
    v: Float[Tensor, "B kv_heads S K"],
    rope: Rope | None,
    bias: Float[Tensor, "#B 1 #S keys"] | None,
    *,
    prefix: Prefix | None = None,
) -> Float[Tensor, "B S AK"]:
    """Scaled dot-product attention of rotated queries and keys with an additive bias. Fewer key heads than query heads are shared
    by groups (grouped-query attention, arXiv 2305.13245). `bias` covers all keys, those of `prefix` first."""
    q, k = apply_rope(q, rope), apply_rope(k, rope)
    if prefix is not None:
        k, v = torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=q.shape[1] != k.shape[1])
    return rearrange(out, "B A S K -> B S (A K)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFactory:
    """Creates the layers of a model.

    operations      the module that `Linear` is taken from. ComfyUI passes its own, which cast and offload weights
    attend          the attention; same signature as `attend`
    device, dtype   of new parameters
    """

    operations: ModuleType | Any = nn
    attend: Attend = attend
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def linear(self, inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
        """A linear layer of `operations`."""
        return self.operations.Linear(inputs, outputs, bias=bias, device=self.device, dtype=self.dtype)

    def parameter(self, *shape: int) -> nn.Parameter:
        """A parameter that is not a layer's weight, 0 at the start."""
        return nn.Parameter(torch.zeros(shape, device=self.device, dtype=self.dtype))


def key_bias(mask: Bool[Tensor, "B S"], dtype: torch.dtype) -> Float[Tensor, "B 1 1 S"]:
    """Additive attention bias that hides padded keys. Without padding give None instead: kernels without a bias are faster.

    The bias is additive because kernels disagree about the meaning of boolean masks.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


def key_bias_if_padded(mask: Bool[Tensor, "B S"], dtype: torch.dtype) -> Float[Tensor, "B 1 1 S"] | None:
    """`key_bias`, or None without padding. The check waits for the device."""
    return None if bool(mask.all()) else key_bias(mask, dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467) with a zero-centred scale: the factor is 1 + `scale`. Computed in float32."""

    def __init__(self, size: int, factory: LayerFactory, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = factory.parameter(size)

    def forward(self, x: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch M"]:
        """The normed `x`, in its own type."""
        weight = self.scale.to(device=x.device, dtype=torch.float32) + 1
        return F.rms_norm(x.float(), x.shape[-1:], weight, self.eps).to(x.dtype)


class QKNorm(nn.Module):
    """RMS norms of queries and keys, over each head's channels (QK-norm, after arXiv 2010.04245)."""

    def __init__(self, head_size: int, factory: LayerFactory) -> None:
        super().__init__()
        self.qnorm = RMSNorm(head_size, factory)
        self.knorm = RMSNorm(head_size, factory)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The normed queries and keys."""
        return self.qnorm(q), self.knorm(k)


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202): down(silu(gate x) * up x)."""

    def __init__(self, size: int, mlp_size: int, factory: LayerFactory) -> None:
        super().__init__()
        self.gate = factory.linear(size, mlp_size)
        self.up = factory.linear(size, mlp_size)
        self.down = factory.linear(mlp_size, size)

    def forward(self, x: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch M"]:
        """The MLP's output, without the residual."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Grouped-query attention with QK-norm and a sigmoid gate on its output, as in Krea 2."""

    def __init__(self, size: int, num_heads: int, num_kv_heads: int, factory: LayerFactory) -> None:
        super().__init__()
        self.head_size = size // num_heads
        self.attend = factory.attend
        self.wq = factory.linear(size, num_heads * self.head_size)
        self.wk = factory.linear(size, num_kv_heads * self.head_size)
        self.wv = factory.linear(size, num_kv_heads * self.head_size)
        self.gate = factory.linear(size, size)
        self.qknorm = QKNorm(self.head_size, factory)
        self.wo = factory.linear(size, size)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        rope: Rope | None = None,
        bias: Float[Tensor, "#B 1 #S keys"] | None = None,
        **more: Any,
    ) -> Float[Tensor, "B S M"]:
        """The attention's output, without the residual. `more` are keyword arguments of `attend`."""
        return self.attend_to(x, *self.keys_values(x), rope, bias, **more)

    def keys_values(
        self, x: Float[Tensor, "B S M"]
    ) -> tuple[Float[Tensor, "B kv_heads S K"], Float[Tensor, "B kv_heads S K"]]:
        """The keys of `x` before they are rotated, and its values."""
        k = self.qknorm.knorm(rearrange(self.wk(x), "B S (kv_heads K) -> B kv_heads S K", K=self.head_size))
        return k, rearrange(self.wv(x), "B S (kv_heads K) -> B kv_heads S K", K=self.head_size)

    def attend_to(
        self,
        x: Float[Tensor, "B S M"],
        k: Float[Tensor, "B kv_heads S K"],
        v: Float[Tensor, "B kv_heads S K"],
        rope: Rope | None,
        bias: Float[Tensor, "#B 1 #S keys"] | None,
        **more: Any,
    ) -> Float[Tensor, "B S M"]:
        """`forward` with the keys and values of `x` already computed."""
        attended = self.attend(self.queries(x), k, v, rope, bias, **more)
        return self.wo(attended * torch.sigmoid(self.gate(x)))

    def queries(self, x: Float[Tensor, "B S M"]) -> Float[Tensor, "B A S K"]:
        """The queries of `x` before they are rotated."""
        return self.qknorm.qnorm(rearrange(self.wq(x), "B S (A K) -> B A S K", K=self.head_size))

    def weights(self, x: Float[Tensor, "B S M"]) -> Float[Tensor, "B A S S"]:
        """The attention weights without positions or padding, in float32; rows sum to 1. For inspection of LAP: `attend` never
        materialises them, and key heads are not shared there."""
        q, (k, _) = self.queries(x), self.keys_values(x)
        return torch.softmax(q.float() @ k.float().mT * self.head_size**-0.5, -1)


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP without time or positions: the block of LAP and refiner."""

    def __init__(self, size: int, num_heads: int, mlp_size: int, factory: LayerFactory) -> None:
        super().__init__()
        self.prenorm = RMSNorm(size, factory)
        self.postnorm = RMSNorm(size, factory)
        self.attn = Attention(size, num_heads, num_heads, factory)
        self.mlp = SwiGLU(size, mlp_size, factory)

    def forward(
        self, x: Float[Tensor, "B S D"], bias: Float[Tensor, "#B 1 #S S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """The block's output for `x`. `bias` as in `key_bias`."""
        x = x + self.attn(self.prenorm(x), None, bias)
        return x + self.mlp(self.postnorm(x))


# the rotation ((cos, -sin), (sin, cos)) of each pair of channels
Rope = Float[Tensor, "#B 1 S half_K 2 2"]


def rotary_axes(head_size: int) -> tuple[int, int, int]:
    """The number of a head's channels that encode each axis: index, row, column. `head_size` is a multiple of 16."""
    unit = 6 * (head_size // 16)
    return head_size - 2 * unit, unit, unit


def rope_angles(positions: Float[Tensor, "B S 3"], head_size: int, theta: float) -> Rope:
    """Rotary angles (RoPE, arXiv 2104.09864) of tokens at (index, row, column).

    Computed in float64, because indices may be large. Positions may be negative and fractional.
    """
    # other devices (Apple's mps, Intel's xpu, DirectML) have no float64
    has_float64 = positions.device.type in ("cpu", "cuda", "meta")
    exact = positions.to(positions.device if has_float64 else "cpu").double()
    angles = []
    for axis, size in enumerate(rotary_axes(head_size)):
        frequency = theta ** -(torch.arange(0, size, 2, dtype=torch.float64, device=exact.device) / size)
        angles.append(exact[..., axis, None] * frequency)
    angle = torch.cat(angles, -1)[:, None]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2)).float().to(positions.device)


def apply_rope(x: Float[Tensor, "B A S K"], rope: Rope | None) -> Float[Tensor, "B A S K"]:
    """Rotates each pair of neighbouring channels by its token's angle. None leaves `x` unchanged."""
    if rope is None:
        return x
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # inductor fuses real numbers and has no code for complex ones
        even, odd = pairs.unbind(-1)
        turned = torch.stack([rope[..., i, 0] * even + rope[..., i, 1] * odd for i in range(2)], -1)
    else:
        # on a CPU, one complex product is about twice as fast as the same in real numbers; the first row is cos - i sin
        turn = torch.view_as_complex(rope[..., 0, :]).conj()
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return turned.flatten(-2).to(x.dtype)


def time_embedding(t: Float[Tensor, " B"], size: int) -> Float[Tensor, "B size"]:
    """Sinusoidal embedding of times in 0..1, multiplied by 1000; periods 2 pi to 20000 pi. `size` is even."""
    frequency = torch.exp(
        -torch.log(torch.tensor(1e4)) * torch.arange(size // 2, device=t.device) / (size // 2)
    )
    angle = 1000 * t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)
