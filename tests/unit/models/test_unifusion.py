"""Properties of the whole generator, both forms of attention: pytest tests/unit/models/test_unifusion.py"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Features
from unifusion_core.errors import ConfigError, ShapeError
from unifusion_core.flow.path import interpolate, velocity
from unifusion_core.models.dit import patch_positions, to_patches
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig, initialize

BuildModel = Callable[..., UniFusion]
BuildFeatures = Callable[..., Features]
GRID = (4, 3)  # rows and columns of patches
FORMS = ("prefix", "joint")


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(5))


def draw(model: UniFusion, features: Features, latents: Tensor, t: Tensor) -> Tensor:
    return model(latents, t, model.prepare(model.pool(features), GRID))


def one_masked_pass(model: UniFusion, features: Features, latents: Tensor, t: Tensor) -> Tensor:
    """The prefix form written out as one stream: condition tokens modulated at t = 0 and seeing conditions only."""
    condition = model.pool(features)
    x = torch.cat([condition.tokens, model.first(to_patches(latents, 2))], 1)
    num_condition, num_latent = condition.tokens.shape[1], GRID[0] * GRID[1]
    time, at_t = model._time(t, x.dtype)
    _, at_zero = model._time(torch.zeros_like(t), x.dtype)
    modulation = torch.cat([at_zero.expand(-1, num_condition, -1), at_t.expand(-1, num_latent, -1)], 1)
    positions = torch.cat(
        [
            model._condition_positions(condition, GRID),
            patch_positions(*GRID, latents.device).expand(len(x), -1, -1),
        ],
        1,
    )
    is_condition = torch.arange(num_condition + num_latent) < num_condition
    real = torch.cat([condition.mask, torch.ones(len(x), num_latent, dtype=torch.bool)], 1)
    allowed = real[:, None, :] & (is_condition[None, None, :] | ~is_condition[None, :, None])
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo().min)[:, None]
    for block in model.blocks:
        x = block(x, modulation, rope=model._rope(positions), bias=bias)
    patches = model.last(x[:, num_condition:], time)
    return (
        patches.unflatten(1, GRID).unflatten(-1, (3, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)
    )


def test_prepared_keys_and_values_equal_one_masked_pass(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    model, features = build_model(), build_features(7, 4, num_image=2)
    prepared = model.prepare(model.pool(features), GRID)
    for t in (
        torch.tensor([0.9, 0.3]),
        torch.tensor([0.1, 1.0]),
    ):  # the same prepared condition at every time
        v = model(latents + t[:, None, None, None], t, prepared)

        torch.testing.assert_close(
            v, one_masked_pass(model, features, latents + t[:, None, None, None], t), atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("form", FORMS)
def test_padding_of_a_condition_changes_nothing(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor, form: str
) -> None:
    model, features = build_model(condition_attention=form), build_features(7, 4, num_image=2)
    alone = Features(**{name: getattr(features, name)[1:, :4] for name in ("states", "mask", "positions")})
    t = torch.tensor([0.7, 0.7])

    together = draw(model, features, latents, t)[1:]

    torch.testing.assert_close(together, draw(model, alone, latents[1:], t[1:]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_every_input_matters(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor, form: str
) -> None:
    model, features = build_model(condition_attention=form), build_features(5, 5, num_image=2)
    t = torch.tensor([0.7, 0.7])
    v = draw(model, features, latents, t)

    others = {
        "time": draw(model, features, latents, t - 0.2),
        "condition": draw(model, build_features(5, 5, num_image=2, seed=1), latents, t),
        "place of the picture tokens": draw(model, build_features(5, 5), latents, t),
    }

    for name, other in others.items():
        assert not torch.allclose(v, other, atol=1e-3), name


def test_forms_differ_with_equal_weights(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    features, t = build_features(5, 5), torch.tensor([0.7, 0.7])

    prefix, joint = (draw(build_model(condition_attention=form), features, latents, t) for form in FORMS)

    assert not torch.allclose(prefix, joint, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_repeated_condition_serves_several_latents(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor, form: str
) -> None:
    model, features = build_model(condition_attention=form), build_features(5, 3)
    prepared = model.prepare(model.pool(features), GRID)
    t = torch.full((6,), 0.6)

    repeated = model(
        latents.repeat(3, 1, 1, 1), t, prepared.repeat(3)
    )  # conditions 0 0 0 1 1 1, latents 0 1 0 1 0 1

    plain = draw(model, features, latents, t[:2])
    swapped = draw(model, features, latents.flip(0), t[:2])
    expected = torch.stack([plain[0], swapped[0], plain[0], plain[1], swapped[1], plain[1]])
    torch.testing.assert_close(repeated, expected, atol=2e-5, rtol=1e-4)


def test_picture_tokens_stand_on_the_latent_grid(
    build_model: BuildModel, build_features: BuildFeatures
) -> None:
    features = build_features(3, 2, num_image=1)
    place = torch.tensor([2.0, (1 + 0.5) / GRID[0], (2 + 0.5) / GRID[1]])  # second picture, patch (1, 2)
    features.positions[:, 0] = place

    def positions(**changes: str) -> list:
        model = build_model(**changes)
        return model._condition_positions(model.pool(features), GRID).round(decimals=4).tolist()

    assert positions()[0] == [[-2, 1, 2], [1, 0, 0], [2, 0, 0]]
    assert positions()[1][:2] == [[-2, 1, 2], [1, 0, 0]]
    assert positions(image_positions="zero")[0] == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    assert positions(text_positions="zero", image_positions="zero")[0] == [[0, 0, 0]] * 3


def test_start_values_give_zero_velocity_and_finite_gradients(
    small_config: UniFusionConfig, build_features: BuildFeatures, latents: Tensor
) -> None:
    model = UniFusion(small_config)
    initialize(model, torch.Generator().manual_seed(0))
    t = torch.tensor([0.8, 0.2])
    noise = torch.randn_like(latents)

    v = draw(model, build_features(5, 3), interpolate(latents, noise, t), t)
    loss = (v - velocity(latents, noise)).square().mean()
    loss.backward()

    assert torch.equal(v, torch.zeros_like(v))
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.last.linear.weight.grad.abs().max() > 0


def test_start_values_pool_the_average_of_the_layers(
    small_config: UniFusionConfig, build_features: BuildFeatures
) -> None:
    model, features = UniFusion(small_config), build_features(5, 5)
    initialize(model, torch.Generator().manual_seed(0))

    torch.testing.assert_close(model.txtfusion(features.states, features.mask), features.states.mean(2))


def test_training_reaches_lap_refiner_and_dit(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    for form in FORMS:
        model = build_model(condition_attention=form).requires_grad_(True)

        draw(
            model, build_features(5, 3, num_image=2), latents, torch.tensor([0.8, 0.2])
        ).square().mean().backward()

        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert silent == [], form


def test_features_of_another_vlm_are_refused(build_model: BuildModel, build_features: BuildFeatures) -> None:
    features = build_features(3)

    with pytest.raises(ShapeError, match=r"2 layers of width 24, this model reads 3 layers .* trained with"):
        build_model().pool(replace(features, states=features.states[:, :, :2]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("condition_attention", "prefix or joint"),
        ("text_positions", "index or zero"),
        ("image_positions", "grid"),
    ],
)
def test_unknown_switches_name_the_choices(small_config: UniFusionConfig, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f'{name} is "other"; choose {message}'):
        replace(small_config, **{name: "other"})


def test_a_condition_prepared_for_another_size_is_refused(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    model = build_model()
    condition = model.prepare(model.pool(build_features(2)), (3, 4))
    with pytest.raises(ShapeError, match=r"prepared for \(3, 4\) patches, the latents have \(4, 3\)"):
        model(latents, torch.tensor([0.3, 0.8]), condition)
