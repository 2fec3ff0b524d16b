"""Shares and attention of the layers, by properties: pytest tests/unit/inspection/test_reading.py"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from unifusion_core.contracts import Features
from unifusion_core.errors import ShapeError
from unifusion_core.inspection.reading import read_layers
from unifusion_core.models.unifusion import UniFusion

Model = Callable[..., UniFusion]
MakeFeatures = Callable[..., Features]


def test_shares_and_attention_sum_to_one(build_model: Model, build_features: MakeFeatures) -> None:
    reading = read_layers(build_model(), build_features(7))

    assert reading.shares.shape == (7, 3)
    assert len(reading.attention) == 2
    assert all((attention > 0).all() for attention in reading.attention)
    for each in (reading.shares, *reading.attention):
        torch.testing.assert_close(each.sum(-1), torch.ones(7))


def test_a_share_is_what_the_pooled_token_loses_without_the_layer(
    build_model: Model, build_features: MakeFeatures
) -> None:
    model, features = build_model(), build_features(7)
    shares = read_layers(model, features).shares
    pooled = model.txtfusion.pool(features.states)[0]

    for tap in range(3):
        without = model.txtfusion.pool(features.states, [float(each != tap) for each in range(3)])[0]
        lost = ((pooled - without) * pooled).sum(-1) / pooled.square().sum(-1)
        torch.testing.assert_close(shares[:, tap], lost, atol=1e-5, rtol=1e-4)


def test_a_layer_without_a_weight_has_no_share(build_model: Model, build_features: MakeFeatures) -> None:
    model = build_model()
    model.txtfusion.projector.weight[0, 1] = 0

    reading = read_layers(model, build_features(7))

    assert reading.weights[1] == 0
    assert (reading.shares[:, 1] == 0).all()
    assert (reading.shares[:, [0, 2]] != 0).all()


def test_attention_is_what_the_blocks_compute_with(build_model: Model, build_features: MakeFeatures) -> None:
    """Weights times values, gated and projected, is the block's own attention."""
    model, features = build_model(), build_features(7)
    attention = model.txtfusion.layerwise_blocks[0].attn
    x = torch.randn(4, 3, 24)

    _, v = attention.keys_values(x)
    mixed = (attention.weights(x) @ v).transpose(1, 2).flatten(2)

    torch.testing.assert_close(attention.wo(mixed * torch.sigmoid(attention.gate(x))), attention(x))
    first = next(model.txtfusion.block_states(features.states))
    asked = attention.weights(model.txtfusion.layerwise_blocks[0].prenorm(first)).mean((1, 2))
    torch.testing.assert_close(read_layers(model, features).attention[0], asked)


def test_a_token_of_nothing_is_no_division_by_zero(build_model: Model, build_features: MakeFeatures) -> None:
    features = build_features(3)
    features.states[:] = 0

    assert (read_layers(build_model(), features).shares == 0).all()


def test_features_of_another_vlm_are_refused(build_model: Model, build_features: MakeFeatures) -> None:
    features = build_features(3)
    wide = replace(features, states=torch.zeros(1, 3, 3, 32))

    with pytest.raises(ShapeError, match="width 32, this model reads 3 layers of width 24"):
        read_layers(build_model(), wide)


def test_several_chats_are_refused(build_model: Model, build_features: MakeFeatures) -> None:
    with pytest.raises(ShapeError, match="2 chats"):
        read_layers(build_model(), build_features(3, 3))
