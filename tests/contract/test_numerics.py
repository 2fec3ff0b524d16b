"""The generator in `joint` form computes what Krea 2's public code does: pytest tests/contract/test_numerics.py

golden/krea2_velocity.json holds the output of that code's transformer for the same small weights and inputs, one prompt padded.
Weights and inputs come from a formula, so that the comparison needs neither a large file nor a random generator.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Features
from unifusion_core.models.lap import LAPConfig
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def numbers(shape: tuple[int, ...], index: int) -> Tensor:
    """Numbers in -1..1 without a pattern: the sine of a growing square."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * k**2 + index).reshape(shape)


@pytest.fixture
def model(small_config: UniFusionConfig) -> UniFusion:
    model = UniFusion(
        replace(
            small_config,
            lap=LAPConfig(num_heads=3, mlp_size=128),
            dit=replace(small_config.dit, mlp_size=256),
            condition_attention="joint",
            text_positions="zero",
            image_positions="zero",
        )
    )
    for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
        size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data.copy_(numbers(tuple(parameter.shape), index) * size)
    return model.requires_grad_(False)


def test_joint_form_equals_the_public_transformer(model: UniFusion) -> None:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    features = Features(
        states=numbers((2, 5, 3, 24), 1000).float(),
        mask=mask,
        positions=torch.zeros(2, 5, 3),
    )
    latents = numbers((2, 3, 4, 6), 2000).float()

    velocity = model(latents, torch.tensor([0.9, 0.25]), model.prepare(model.pool(features), (2, 3)))

    expected = torch.tensor(json.loads((GOLDEN / "krea2_velocity.json").read_text())).view(2, 3, 4, 6)
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=1e-4)
