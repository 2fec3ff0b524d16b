"""Muon and AdamW in one optimizer: pytest tests/unit/training/test_optimizer.py"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unifusion_core.training.optimizer import MuonAdamW, orthogonalize, parameter_groups


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50

    result = orthogonalize(matrix)

    assert result.shape == shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.4
    assert values.max() < 1.3


def test_orthogonalizing_keeps_the_singular_directions() -> None:
    left, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    right, _ = torch.linalg.qr(torch.randn(9, 6, generator=torch.Generator().manual_seed(1)))
    matrix = left @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.5, 1.0])) @ right.T

    turned = left.T @ orthogonalize(matrix) @ right

    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-4, rtol=0)
    assert (turned.diagonal() > 0).all()


def test_adamw_part_equals_the_one_of_torch() -> None:
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        MuonAdamW([{"params": [ours], "kind": "adamw", "lr": 0.02}]),
        torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0),
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        gradient = torch.randn(7, 5, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()

    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours, start, atol=1e-2)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_muon_finds_the_minimum_of_a_quadratic(precision: torch.dtype | None) -> None:
    target = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(torch.zeros(8, 5))
    optimizer = MuonAdamW([{"params": [weight], "kind": "muon", "lr": 0.05}], precision=precision)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()

    assert (weight - target).abs().max() < 0.1
    assert {value.dtype for value in (weight, *optimizer.state[weight].values())} == {torch.float32}


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 3), "first": nn.Conv2d(2, 3, 3), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}

    def groups(**options: object) -> dict[str, list[str]]:
        made = parameter_groups(model, learning_rate=1e-3, **options)
        return {group["kind"]: [names[p] for p in group["params"]] for group in made}

    assert groups(muon_learning_rate=0.01) == {
        "muon": ["body.weight", "first.weight"],
        "adamw": ["body.bias", "first.bias"],
    }
    assert groups(muon_learning_rate=0.01, not_muon=("first",))["muon"] == ["body.weight"]
    assert list(groups(muon_learning_rate=0.0)) == ["adamw"]


def test_weight_decay_concerns_matrices_only() -> None:
    model = nn.Linear(4, 3)
    optimizer = MuonAdamW(
        parameter_groups(model, learning_rate=0.1, muon_learning_rate=0.1, weight_decay=0.5)
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    torch.testing.assert_close(model.weight.detach(), before["weight"] * 0.95)
    assert torch.equal(model.bias.detach(), before["bias"])
