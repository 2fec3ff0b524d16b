"""The straight path between noise and clean latents: pytest tests/unit/flow/test_path.py"""

from __future__ import annotations

import torch

from unifusion_core.flow.path import clean_from_velocity, interpolate, sample_training_times, velocity

CLEAN, NOISE = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_time_one_is_noise_and_time_zero_is_clean() -> None:
    assert torch.equal(interpolate(CLEAN, NOISE, torch.ones(2)), NOISE)
    assert torch.equal(interpolate(CLEAN, NOISE, torch.zeros(2)), CLEAN)


def test_each_element_of_a_batch_has_its_own_time() -> None:
    point = interpolate(CLEAN, NOISE, torch.tensor([0.25, 1.0]))

    torch.testing.assert_close(point[0], 0.75 * CLEAN[0] + 0.25 * NOISE[0])
    assert torch.equal(point[1], NOISE[1])


def test_velocity_is_the_derivative_of_the_path() -> None:
    clean, noise = CLEAN.double(), NOISE.double()
    step = 1e-3

    ahead, behind = (
        interpolate(clean, noise, torch.full((2,), 0.4 + s, dtype=torch.float64)) for s in (step, -step)
    )

    torch.testing.assert_close((ahead - behind) / (2 * step), velocity(clean, noise))


def test_clean_latents_follow_from_any_point_and_its_velocity() -> None:
    point = interpolate(CLEAN, NOISE, torch.full((2,), 0.7))

    torch.testing.assert_close(clean_from_velocity(point, velocity(CLEAN, NOISE), 0.7), CLEAN)


def test_training_times_lie_inside_the_path_and_follow_their_mean() -> None:
    times = [
        sample_training_times(4000, means=(mean,), spread=1.0, generator=torch.Generator().manual_seed(0))
        for mean in (-1.0, 0.0, 1.0)
    ]

    assert all(((t > 0) & (t < 1)).all() for t in times)
    medians = [t.median().item() for t in times]
    assert medians == sorted(medians)
    assert abs(medians[1] - 0.5) < 0.03


def test_several_means_take_turns() -> None:
    times = sample_training_times(5, means=(20.0, -20.0), generator=torch.Generator().manual_seed(0))

    assert [round(t) for t in times.tolist()] == [1, 0, 1, 0, 1]
