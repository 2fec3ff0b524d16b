"""The designs that LAP is compared with: pytest tests/unit/models/test_fusion_designs.py"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unifusion_core.checkpoints.generator_file import save_generator
from unifusion_core.contracts import Features
from unifusion_core.models.fusion_designs import FUSIONS
from unifusion_core.models.unifusion import UniFusion, initialize
from unifusion_core.shapes.evaluation.designs import load_design
from unifusion_core.zoo.tiny import TINY

NUM_TAPS, WIDTH = len(TINY.config.vlm.taps), TINY.config.vlm.hidden_size


def features(seed: int = 0, length: int = 7) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        states=torch.randn(2, length, NUM_TAPS, WIDTH, generator=generator),
        mask=torch.ones(2, length, dtype=torch.bool),
        positions=torch.zeros(2, length, 3),
    )


def trained_a_little(fusion: str) -> UniFusion:
    """Initial weights give a velocity of 0 for every condition; a little noise on all weights makes every input matter."""
    torch.manual_seed(0)
    model = FUSIONS[fusion](TINY.config)
    initialize(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


@torch.no_grad()
def velocity(model: UniFusion, given: Features) -> torch.Tensor:
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    return model(latents, torch.tensor([0.3, 0.9]), model.prepare(model.pool(given), (4, 4)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_layers_and_tokens_have_an_effect_and_padding_has_none(fusion: str) -> None:
    model, given = trained_a_little(fusion), features()
    plain = velocity(model, given)
    assert torch.isfinite(plain).all()
    for tap in range(NUM_TAPS):
        changed = given.states.clone()
        changed[:, 3, tap] += 1
        assert (velocity(model, replace(given, states=changed)) - plain).abs().amax() > 1e-4, tap
    hidden = replace(given, mask=given.mask & (torch.arange(7) < 5))
    changed = given.states.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(velocity(model, replace(hidden, states=changed)), velocity(model, hidden))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_file_is_loaded_as_the_design_that_it_was_trained_as(fusion: str, tmp_path: Path) -> None:
    model, given = trained_a_little(fusion), features()
    record = {"phases": [{"task": {"fusion": fusion}}]}
    save_generator(model, tmp_path / "generator.safetensors", record, dtype=torch.float32)
    again = load_design(tmp_path / "generator.safetensors")
    assert type(again) is type(model)
    torch.testing.assert_close(velocity(again, given), velocity(model, given), rtol=1e-4, atol=1e-4)


def test_image_tokens_have_their_own_lap() -> None:
    model, given = trained_a_little("lap per modality"), features()
    positions = given.positions.clone()
    positions[:, :3] = torch.tensor([1.0, 0.5, 0.5])
    with_images = replace(given, positions=positions)
    before = model.pool(with_images).tokens
    with torch.no_grad():
        for parameter in model.image_lap.parameters():
            parameter.mul_(1.5)
    after = model.pool(with_images).tokens
    assert (after - before).abs().amax() > 1e-3
    torch.testing.assert_close(
        model.pool(given).tokens, trained_a_little("lap per modality").pool(given).tokens
    )
