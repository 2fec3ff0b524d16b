"""The denoising loop: seeds, guidance, callback, refusals: pytest tests/unit/test_sampling.py"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Conditioning, Features
from unifusion_core.errors import ConfigError, ShapeError
from unifusion_core.flow.schedule import build_schedule
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.sampling import make_noise, sample

SCHEDULE = build_schedule("uniform", 3, 12)


class InterruptError(Exception):
    """Raised by a callback, as ComfyUI's interrupt is."""


@pytest.fixture(params=["prefix", "joint"])
def model(request: pytest.FixtureRequest, build_model: Callable[..., UniFusion]) -> UniFusion:
    return build_model(condition_attention=request.param)


@pytest.fixture
def conditions(model: UniFusion, build_features: Callable[..., Features]) -> tuple[Conditioning, ...]:
    """Three conditions of one row each and of unequal lengths."""
    return tuple(model.pool(build_features(length, seed=length)) for length in (5, 3, 4))


def noise_for(seeds: list[int]) -> Tensor:
    return make_noise(seeds, 3, 8, 6)


def test_an_image_depends_on_its_own_seed_alone(
    model: UniFusion, conditions: tuple[Conditioning, ...]
) -> None:
    together = sample(model, conditions[0], noise_for([7, 8, 9]), SCHEDULE, negative=conditions[1], cfg=3.0)
    alone = sample(model, conditions[0], noise_for([8]), SCHEDULE, negative=conditions[1], cfg=3.0)

    assert torch.equal(noise_for([7, 8])[1], noise_for([8])[0])
    torch.testing.assert_close(together[1:2], alone, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_one_condition_per_latent(model: UniFusion, build_features: Callable[..., Features]) -> None:
    both = model.pool(build_features(5, 3))
    rows = [
        Conditioning(
            tokens=both.tokens[i : i + 1], mask=both.mask[i : i + 1], positions=both.positions[i : i + 1]
        )
        for i in range(2)
    ]

    together = sample(model, both, noise_for([1, 2]), SCHEDULE)

    for i, row in enumerate(rows):
        torch.testing.assert_close(
            together[i : i + 1], sample(model, row, noise_for([i + 1]), SCHEDULE), atol=2e-5, rtol=1e-4
        )


def test_a_prepared_condition_gives_the_same_latents(
    model: UniFusion, conditions: tuple[Conditioning, ...]
) -> None:
    prepared = model.prepare(conditions[0], (4, 3))

    first = sample(model, conditions[0], noise_for([7]), SCHEDULE)

    assert torch.equal(sample(model, prepared, noise_for([7]), SCHEDULE), first)


def test_cfg_one_does_not_use_the_negative(model: UniFusion, conditions: tuple[Conditioning, ...]) -> None:
    positive, negative, other = conditions
    unguided = sample(model, positive, noise_for([7]), SCHEDULE)

    assert torch.equal(
        sample(model, positive, noise_for([7]), SCHEDULE, negative=negative, cfg=1.0), unguided
    )
    one, two = (
        sample(model, positive, noise_for([7]), SCHEDULE, negative=n, cfg=3.0) for n in (negative, other)
    )
    assert not torch.allclose(one, two, atol=1e-3)
    assert not torch.allclose(one, unguided, atol=1e-3)


def test_the_image_only_branch_has_its_own_scale(
    model: UniFusion, conditions: tuple[Conditioning, ...]
) -> None:
    positive, negative, images = conditions

    def latents_for(image_only: Conditioning | None, image_cfg: float) -> Tensor:
        return sample(
            model,
            positive,
            noise_for([7]),
            SCHEDULE,
            negative=negative,
            cfg=3.0,
            image_only=image_only,
            image_cfg=image_cfg,
        )

    torch.testing.assert_close(latents_for(images, 3.0), latents_for(None, 1.0), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latents_for(images, 5.0), latents_for(None, 1.0), atol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_callback_sees_every_step_and_ends_at_the_result(
    model: UniFusion, conditions: tuple[Conditioning, ...], solver: str
) -> None:
    seen: list[tuple[int, int, Tensor]] = []

    latents = sample(
        model,
        conditions[0],
        noise_for([7, 8]),
        SCHEDULE,
        solver=solver,
        on_step=lambda *step: seen.append(step),
    )

    assert [(done, steps) for done, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(clean.shape == latents.shape for _, _, clean in seen)
    torch.testing.assert_close(seen[-1][2], latents, atol=1e-5, rtol=1e-4)


def test_callback_may_interrupt(model: UniFusion, conditions: tuple[Conditioning, ...]) -> None:
    steps: list[int] = []

    def stop_at_two(done: int, num_steps: int, clean: Tensor) -> None:
        steps.append(done)
        if done == 2:
            raise InterruptError

    with pytest.raises(InterruptError):
        sample(model, conditions[0], noise_for([7]), SCHEDULE, on_step=stop_at_two)
    assert steps == [1, 2]


def test_refusals_say_what_to_do(model: UniFusion, conditions: tuple[Conditioning, ...]) -> None:
    positive, negative, _ = conditions

    with pytest.raises(ShapeError, match="6 x 7 do not divide into patches of 2: pad"):
        sample(model, positive, make_noise([7], 3, 7, 6), SCHEDULE)
    with pytest.raises(ShapeError, match="4 channels, this model generates 3"):
        sample(model, positive, make_noise([7], 4, 8, 6), SCHEDULE)
    with pytest.raises(ShapeError, match="not finite numbers"):
        sample(model, positive, noise_for([7]) * float("nan"), SCHEDULE)
    with pytest.raises(ShapeError, match="needs a negative condition"):
        sample(model, positive, noise_for([7]), SCHEDULE, cfg=3.0)
    with pytest.raises(ShapeError, match="needs a negative condition"):
        sample(model, positive, noise_for([7]), SCHEDULE, image_only=negative)
    two = model.prepare(positive, (4, 3)).repeat(2)
    with pytest.raises(ShapeError, match="2 conditions for 3 latents"):
        sample(model, two, noise_for([7, 8, 9]), SCHEDULE)
    with pytest.raises(ConfigError, match='no solver "dpm"'):
        sample(model, positive, noise_for([7]), SCHEDULE, solver="dpm")


def test_times_and_sums_are_exact_where_the_model_computes_in_16_bits(
    build_model: Callable[..., UniFusion], build_features: Callable[..., Features]
) -> None:
    """A time in 16 bits is off by up to 0.004, which the time embedding multiplies by 1000."""
    model = build_model().to(torch.bfloat16)
    features = build_features(4)
    condition = model.pool(features.to("cpu", torch.bfloat16))
    schedule, given = torch.tensor([1.0, 0.987, 0.5, 0.0]), []
    handle = model.register_forward_pre_hook(lambda module, args: given.append((args[0].dtype, args[1])))
    latents = sample(model, condition, torch.randn(2, 3, 4, 6).to(torch.bfloat16), schedule)
    handle.remove()
    assert [dtype for dtype, _ in given] == [torch.bfloat16] * 3
    torch.testing.assert_close(torch.stack([t[0] for _, t in given]), schedule[:-1])
    assert latents.dtype == torch.float32
