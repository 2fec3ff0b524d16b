"""Properties of the bidirectional refiner: pytest tests/unit/models/test_refiner.py"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unifusion_core.models.lap import LAPConfig, Refiner
from unifusion_core.models.layers import LayerFactory

B, T, D = 2, 7, 24


@pytest.fixture
def refiner() -> Refiner:
    module = Refiner(LAPConfig(num_heads=3, mlp_size=40), size=D, factory=LayerFactory())
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return module.requires_grad_(False)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))


ALL = torch.ones(B, T, dtype=torch.bool)


@pytest.mark.parametrize("changed_token", [0, T - 1])
def test_every_token_sees_every_other(refiner: Refiner, tokens: Tensor, changed_token: int) -> None:
    changed = tokens.clone()
    changed[0, changed_token] += 1

    difference = (refiner(changed, ALL) - refiner(tokens, ALL)).abs().amax(-1) > 1e-5

    assert difference[0].all()
    assert not difference[1].any()


def test_padding_equals_removal(refiner: Refiner, tokens: Tensor) -> None:
    mask = torch.arange(T)[None] < torch.tensor([[T], [4]])
    padded = tokens.clone()
    padded[~mask] = 1e3

    torch.testing.assert_close(
        refiner(padded, mask)[1:, :4], refiner(tokens[1:, :4], ALL[1:, :4]), atol=1e-5, rtol=1e-4
    )


def test_order_of_tokens_does_not_matter(refiner: Refiner, tokens: Tensor) -> None:
    order = torch.randperm(T, generator=torch.Generator().manual_seed(2))

    torch.testing.assert_close(
        refiner(tokens[:, order], ALL), refiner(tokens, ALL)[:, order], atol=1e-5, rtol=1e-4
    )
