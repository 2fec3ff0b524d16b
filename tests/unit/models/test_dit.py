"""Patches, positions and sizes of the DiT: pytest tests/unit/models/test_dit.py"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unifusion_core.errors import ConfigError
from unifusion_core.models.dit import DiTConfig, from_patches, patch_positions, to_patches


def test_patches_are_in_raster_order_with_channels_first() -> None:
    latents = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))

    patches = to_patches(latents, 2)

    assert torch.equal(patches, F.unfold(latents, 2, stride=2).mT)
    assert torch.equal(from_patches(patches, 2, 4, 6), latents)


def test_positions_are_row_and_column_of_each_patch() -> None:
    positions = patch_positions(2, 3, torch.device("cpu"))

    assert positions.tolist() == [[[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "message"),
    [(3, 1, "multiple of 16"), (8, 1, "multiple of 16"), (4, 3, "share 3 key heads")],
)
def test_sizes_that_do_not_divide_are_refused(heads: int, kv_heads: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiTConfig(
            hidden_size=64,
            num_blocks=1,
            num_heads=heads,
            num_kv_heads=kv_heads,
            mlp_size=8,
            latent_channels=3,
        )


@pytest.mark.parametrize(
    "wrong", [{"num_heads": 0}, {"num_kv_heads": 0}, {"mlp_size": -8}, {"num_blocks": 0}, {"rope_theta": 0.0}]
)
def test_numbers_that_are_not_above_0_are_refused_by_name(wrong: dict[str, int | float]) -> None:
    sizes = {
        "hidden_size": 64,
        "num_blocks": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "mlp_size": 8,
        "latent_channels": 3,
    }
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*: it must be above 0"):
        DiTConfig(**sizes | wrong)
