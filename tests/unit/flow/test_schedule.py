"""End points, order and shift of the schedules: pytest tests/unit/flow/test_schedule.py"""

from __future__ import annotations

import math

import pytest
import torch

from unifusion_core.errors import ConfigError
from unifusion_core.flow.schedule import SCHEDULES, build_schedule, krea_raw_shift, shifted


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 20, 300])
@pytest.mark.parametrize("num_tokens", [64, 6400])
def test_schedules_fall_from_one_to_zero(name: str, steps: int, num_tokens: int) -> None:
    times = build_schedule(name, steps, num_tokens)

    assert times.shape == (steps + 1,)
    assert times[0] == 1
    assert times[-1] == 0
    assert (times[1:] < times[:-1]).all()


def test_a_larger_shift_spends_more_steps_on_the_noisy_end() -> None:
    times = torch.linspace(1, 0, 11)

    assert torch.equal(shifted(times, 1.0), times)
    assert (shifted(times, 3.0)[1:-1] > shifted(times, 2.0)[1:-1]).all()
    assert (shifted(times, 2.0)[1:-1] > times[1:-1]).all()
    # shifts multiply
    torch.testing.assert_close(shifted(shifted(times, 2.0), 1.5), shifted(times, 3.0))


def test_krea_schedules_follow_the_public_formula() -> None:
    """Krea 2's public code: t' = e^mu / (e^mu + 1/t - 1), mu 0.5 at 256 and 1.15 at 6400 latent tokens."""
    times = torch.linspace(1, 0, 29)[:-1]

    def public(mu: float) -> torch.Tensor:
        return math.exp(mu) / (math.exp(mu) + (1 / times - 1))

    for num_tokens, mu in ((256, 0.5), (6400, 1.15), (3328, 0.825)):
        assert krea_raw_shift(num_tokens) == pytest.approx(math.exp(mu))
        torch.testing.assert_close(build_schedule("krea-2 raw", 28, num_tokens)[:-1], public(mu))
        torch.testing.assert_close(build_schedule("krea-2 turbo", 28, num_tokens)[:-1], public(1.15))


def test_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match='no schedule "karras"; choose one of uniform, shift 2'):
        build_schedule("karras", 20, 64)


@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 is needed"):
        build_schedule("uniform", steps, 64)
