"""Muon for weight matrices, AdamW for everything else, in one optimizer.

Muon (Keller Jordan, public write-up "Muon: an optimizer for hidden layers", 2024) replaces the momentum of a matrix by
its nearest semi-orthogonal matrix. torch's own orthogonalises in bfloat16, which CPUs without bfloat16 units do 30 times
slower than float32; here the precision is the parameters' own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz iteration of the public write-up


def orthogonalize(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest semi-orthogonal matrix, approximately: singular values of a random matrix end in about 0.7..1.2. The write-up
    takes five steps; the fifth changes those by less than 0.02 and costs a twentieth of a small model's training step."""
    a, b, c = _COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class MuonAdamW(torch.optim.Optimizer):
    """Two kinds of parameter groups: `{"kind": "muon"}` and `{"kind": "adamw"}`, see `parameter_groups`."""

    def __init__(self, groups: Iterable[dict]) -> None:
        super().__init__(
            groups, {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.98), "eps": 1e-8}
        )
        for group in self.param_groups:
            group.setdefault("base_lr", group["lr"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, group)

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(momentum, group["momentum"])
        matrix = nesterov.flatten(1)
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        parameter.add_(orthogonalize(matrix).view_as(parameter), alpha=-group["lr"] * scale)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
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
) -> list[dict]:
    """Matrices and convolution kernels go to Muon; vectors, and names that contain one of `not_muon` (embeddings, first
    and last layers), to AdamW. Parameters without gradients are left out. `muon_learning_rate` 0: AdamW for all."""
    muon, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and not any(part in name for part in not_muon)
            (muon if matrix and muon_learning_rate else rest).append(parameter)
    groups = []
    if muon:
        groups.append(
            {"params": muon, "kind": "muon", "lr": muon_learning_rate, "weight_decay": weight_decay}
        )
    if rest:
        groups.append({"params": rest, "kind": "adamw", "lr": learning_rate, "weight_decay": 0.0})
    return groups
