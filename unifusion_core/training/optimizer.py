"""Muon for weight matrices and AdamW for all other parameters, in one optimizer.

Muon (Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon) replaces the
momentum of a matrix by the nearest semi-orthogonal matrix. torch's implementation orthogonalises in bfloat16, which is 30 times
slower than float32 on CPUs without bfloat16 units; this one does so where asked. AdamW: arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# of the quintic Newton-Schulz iteration in Muon's write-up
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Float[Tensor, "rows columns"], steps: int = 4) -> Float[Tensor, "rows columns"]:
    """Approximates the nearest semi-orthogonal matrix: the singular values of a random matrix become about 0.7..1.2.

    The write-up takes five steps. The fifth changes the singular values by less than 0.02 and costs a twentieth of a training
    step of a small model.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class MuonAdamW(torch.optim.Optimizer):
    """Optimises groups of kind "muon" and of kind "adamw", as `parameter_groups` makes them.

    Weight decay is decoupled: a step multiplies each weight by 1 - lr * weight_decay. Parameters without a gradient are
    unchanged. `base_lr` keeps a group's initial learning rate, for schedules that set `lr`.

    precision   in which Muon orthogonalises, float32 or bfloat16; None = the parameters' own. Momentum and weights keep theirs
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, precision: torch.dtype | None = None) -> None:
        self.precision = precision
        super().__init__(
            groups, {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.98), "eps": 1e-8}
        )
        for group in self.param_groups:
            group.setdefault("base_lr", group["lr"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters in place. `closure` belongs to torch's interface and is not used."""
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, group)

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(momentum, group["momentum"])
        matrix = nesterov.flatten(1)
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        direction = orthogonalize(matrix.to(self.precision or matrix.dtype)).to(matrix.dtype)
        parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * scale)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        count = state["step"].item()
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient.square(), 1 - beta2)
        spread = (state["square"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - beta1**count))


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float = 0.0,
    not_muon: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """The groups of a model's trainable parameters: matrices and convolution kernels for Muon, all others for AdamW.

    learning_rate        of AdamW
    muon_learning_rate   of Muon; 0 = AdamW for all parameters
    weight_decay         of Muon's group; AdamW's has none
    not_muon             parameters whose name contains one of these (embeddings, first and last layers) go to AdamW
    """
    muon, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and not any(part in name for part in not_muon)
            (muon if matrix and muon_learning_rate else rest).append(parameter)
    groups: list[dict[str, Any]] = []
    if muon:
        groups.append(
            {"params": muon, "kind": "muon", "lr": muon_learning_rate, "weight_decay": weight_decay}
        )
    if rest:
        groups.append({"params": rest, "kind": "adamw", "lr": learning_rate, "weight_decay": 0.0})
    return groups
