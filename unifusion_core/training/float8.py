"""Frozen linear layers in 8 bits, so that adapters of a large generator are trained in half the memory."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..models.unifusion import UniFusion

DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(DTYPE).max


class Float8Linear(nn.Linear):
    """A frozen linear layer whose weight is stored in float8_e4m3fn, with a scale for each output, and computed in its input's
    type."""

    weight_scale: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> Float8Linear:
        """The layer rounded."""
        rounded = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / _LARGEST
        rounded.weight = nn.Parameter((weight / scale).to(DTYPE), requires_grad=False)
        rounded.register_buffer("weight_scale", scale)
        rounded.bias = layer.bias
        return rounded

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:  # noqa: A002  (torch's name)
        """The layer's output for `input`; autocast's type is used where it is on."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        product = _Product.apply(input.to(dtype), self.weight, self.weight_scale)
        return cast(Tensor, product if self.bias is None else product + self.bias.to(dtype))


class _Product(torch.autograd.Function):
    """input @ weight.T, whose backward pass makes the weight again: keeping it would undo what rounding saves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ (weight.to(x.dtype) * scale.to(x.dtype)).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ (weight.to(gradient.dtype) * scale.to(gradient.dtype)), None, None


def quantize_frozen(model: UniFusion) -> None:
    """Rounds the frozen linear layers of all blocks in place, below their adapters too."""
    blocks = (*model.dit_blocks, *model.txtfusion.layerwise_blocks, *model.txtfusion.refiner_blocks)
    for block in blocks:
        for module in list(block.modules()):
            if isinstance(module, BaseTunerLayer):
                layer = module.get_base_layer()
                module.base_layer = Float8Linear.of(cast(nn.Linear, layer))
            else:
                for name, child in list(module.named_children()):
                    if type(child) is nn.Linear and not child.weight.requires_grad and name != "base_layer":
                        setattr(module, name, Float8Linear.of(child))
