"""Layer gains, parsed and applied: pytest tests/unit/models/test_layer_gains.py"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unifusion_core.contracts import Features
from unifusion_core.errors import ConfigError
from unifusion_core.models.lap import parse_layer_gains
from unifusion_core.models.unifusion import UniFusion

TAPS = (0, 1, 3)


@pytest.mark.parametrize(
    ("text", "gains"),
    [
        ("", None),
        (" \n", None),
        ("1, 0.5, 2", (1.0, 0.5, 2.0)),
        ("1,\n1,\n0,", (1.0, 1.0, 0.0)),
        ("3: 0.5", (1.0, 1.0, 0.5)),
        ("3:-1, 0 : 0", (0.0, 1.0, -1.0)),
    ],
)
def test_both_notations_are_parsed(text: str, gains: tuple[float, ...] | None) -> None:
    assert parse_layer_gains(text, TAPS) == gains


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1, 1", ["2 layer gains", "3 layers (0, 1, 3)", "3: 0.5"]),
        ("1, 1, 1, 1", ["4 layer gains"]),
        ("1, 1, much", ['"much"', "0 leaves a layer out"]),
        ("1, 1, nan", ['"nan"', "-100 to 100"]),
        ("1, 1, 1e9", ['"1e9"']),
        ("2: 0.5", ['no layer "2"', "0, 1, 3"]),
        ("3:", ['""', "not a number"]),
        ("1, 1, 3: 0.5", ["mix two notations"]),
        ("0, 0, 0", ["removes the whole condition"]),
    ],
)
def test_anything_else_is_refused_in_one_sentence(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_layer_gains(text, TAPS)

    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value)


def test_gains_multiply_the_pooling_weights(
    build_model: Callable[..., UniFusion], build_features: Callable[..., Features]
) -> None:
    model, features, gains = build_model(), build_features(5, 3), (0.0, 1.0, -2.5)

    given = model.pool(features, gains).tokens
    model.txtfusion.projector.weight *= torch.tensor(gains)

    torch.testing.assert_close(given[features.mask], model.pool(features).tokens[features.mask])


def test_gains_of_one_change_nothing(
    build_model: Callable[..., UniFusion], build_features: Callable[..., Features]
) -> None:
    model, features = build_model(), build_features(5)

    assert torch.equal(model.pool(features, (1.0, 1.0, 1.0)).tokens, model.pool(features).tokens)


def test_one_gain_for_each_tap(
    build_model: Callable[..., UniFusion], build_features: Callable[..., Features]
) -> None:
    with pytest.raises(ConfigError, match="2 layer gains were given for 3 layers"):
        build_model().pool(build_features(5), (1.0, 1.0))
