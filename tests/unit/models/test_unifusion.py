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
from unifusion_core.models.dit import DiTBlock, patch_positions, to_patches
from unifusion_core.models.lap import LayerwiseAttentionPooling, Refiner
from unifusion_core.models.layers import TransformerBlock
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig, initialize

BuildModel = Callable[..., UniFusion]
BuildFeatures = Callable[..., Features]
# rows and columns of patches
GRID = (4, 3)
FORMS = ("prefix", "joint")


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(5))


def velocity_of(model: UniFusion, features: Features, latents: Tensor, t: Tensor) -> Tensor:
    return model(latents, t, model.prepare(model.pool(features), GRID))


def one_masked_pass(model: UniFusion, features: Features, latents: Tensor, t: Tensor) -> Tensor:
    """The prefix form as one stream: condition tokens are modulated at t = 0 and attend to condition tokens only."""
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
        x = block(x, modulation, model._rope(positions), bias)
    patches = model.last(x[:, num_condition:], time)
    return (
        patches.unflatten(1, GRID).unflatten(-1, (3, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)
    )


def test_prepared_keys_and_values_equal_one_masked_pass(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    model, features = build_model(), build_features(7, 4, num_image=2)
    prepared = model.prepare(model.pool(features), GRID)
    # the same prepared condition at every time
    for t in (torch.tensor([0.9, 0.3]), torch.tensor([0.1, 1.0])):
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

    together = velocity_of(model, features, latents, t)[1:]

    torch.testing.assert_close(together, velocity_of(model, alone, latents[1:], t[1:]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_every_input_matters(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor, form: str
) -> None:
    model, features = build_model(condition_attention=form), build_features(5, 5, num_image=2)
    t = torch.tensor([0.7, 0.7])
    v = velocity_of(model, features, latents, t)

    others = {
        "time": velocity_of(model, features, latents, t - 0.2),
        "condition": velocity_of(model, build_features(5, 5, num_image=2, seed=1), latents, t),
        "place of the image tokens": velocity_of(model, build_features(5, 5), latents, t),
    }

    for name, other in others.items():
        assert not torch.allclose(v, other, atol=1e-3), name


def test_forms_differ_with_equal_weights(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    features, t = build_features(5, 5), torch.tensor([0.7, 0.7])

    prefix, joint = (
        velocity_of(build_model(condition_attention=form), features, latents, t) for form in FORMS
    )

    assert not torch.allclose(prefix, joint, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_repeated_condition_serves_several_latents(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor, form: str
) -> None:
    model, features = build_model(condition_attention=form), build_features(5, 3)
    prepared = model.prepare(model.pool(features), GRID)
    t = torch.full((6,), 0.6)

    # conditions 0 0 0 1 1 1, latents 0 1 0 1 0 1
    repeated = model(latents.repeat(3, 1, 1, 1), t, prepared.repeat(3))

    plain = velocity_of(model, features, latents, t[:2])
    swapped = velocity_of(model, features, latents.flip(0), t[:2])
    expected = torch.stack([plain[0], swapped[0], plain[0], plain[1], swapped[1], plain[1]])
    torch.testing.assert_close(repeated, expected, atol=2e-5, rtol=1e-4)


def test_image_tokens_have_their_place_on_the_latent_grid(
    build_model: BuildModel, build_features: BuildFeatures
) -> None:
    features = build_features(3, 2, num_image=1)
    # the second image, patch (1, 2)
    features.positions[:, 0] = torch.tensor([2.0, (1 + 0.5) / GRID[0], (2 + 0.5) / GRID[1]])

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

    v = velocity_of(model, build_features(5, 3), interpolate(latents, noise, t), t)
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

        velocity_of(
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


def test_heads_that_do_not_divide_the_vlms_width_are_refused(small_config: UniFusionConfig) -> None:
    with pytest.raises(ConfigError, match=r"width 24 is not divisible by LAP's 5 heads: give another number"):
        replace(small_config, lap=replace(small_config.lap, num_heads=5))


def test_a_condition_prepared_for_another_size_is_refused(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    model = build_model()
    condition = model.prepare(model.pool(build_features(2)), (3, 4))
    with pytest.raises(ShapeError, match=r"prepared for \(3, 4\) patches, the latents have \(4, 3\)"):
        model(latents, torch.tensor([0.3, 0.8]), condition)


def test_parts_are_registered_under_their_classes(
    build_model: BuildModel, small_config: UniFusionConfig
) -> None:
    """FSDP and other tools wrap modules by their class; a person finds the paper's names in the printed model."""
    model = build_model()

    def of(kind: type) -> list:
        return [module for module in model.modules() if isinstance(module, kind)]

    lap, dit = small_config.lap, small_config.dit
    assert of(LayerwiseAttentionPooling) == [model.txtfusion]
    assert of(Refiner) == [model.txtfusion.refiner_blocks]
    assert len(of(TransformerBlock)) == lap.num_layer_blocks + lap.num_refiner_blocks
    assert of(TransformerBlock) == [*model.txtfusion.layerwise_blocks, *model.txtfusion.refiner_blocks]
    assert of(DiTBlock) == model.dit_blocks == list(model.blocks)
    assert len(of(DiTBlock)) == dit.num_blocks


def test_the_printed_model_names_its_parts(build_model: BuildModel) -> None:
    lines = [line.strip() for line in str(build_model()).splitlines()]

    assert "(txtfusion): TextFusion(" in lines
    assert "LayerwiseAttentionPooling of 3 taps, then Refiner" in lines
    assert "(refiner_blocks): Refiner(" in lines
    assert "(0-1): 2 x TransformerBlock(" in lines
    assert "(0-1): 2 x DiTBlock(" in lines


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_belongs_to_one_registered_module(build_model: BuildModel, form: str) -> None:
    model = build_model(condition_attention=form)

    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    assert len(names) == len(set(names)) == len(list(model.parameters()))
    assert set(names) == set(model.state_dict())


def test_every_block_is_called_through_the_block_call(
    build_model: BuildModel, build_features: BuildFeatures, latents: Tensor
) -> None:
    """A host wraps each block by its index (ComfyUI's patches)."""
    t = torch.tensor([0.7, 0.2])
    for form in FORMS:
        model, called = build_model(condition_attention=form), []

        def wrap(index: int, block: torch.nn.Module, called: list = called) -> Callable[..., Tensor]:
            called.append((index, block))
            return block

        prepared = model.prepare(model.pool(build_features(5, 3)), GRID)

        assert torch.equal(model(latents, t, prepared, wrap), model(latents, t, prepared))
        assert called == list(enumerate(model.blocks)), form
