"""The values that travel between the stages: Features by row, by token and as a batch; what the contracts refuse.

pytest tests/unit/test_contracts.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Conditioning, Features, RewriteSettings, TokenRole, VLMSpec
from unifusion_core.errors import ConfigError, PromptError, ShapeError
from unifusion_core.models.unifusion import UniFusionConfig

BuildFeatures = Callable[..., Features]


def parts(features: Features) -> dict[str, Tensor]:
    """Every tensor of some features, by name."""
    tensors = {"states": features.states, "mask": features.mask, "positions": features.positions}
    if features.tokens is not None:
        tensors |= {"roles": features.tokens.roles, "ids": features.tokens.ids}
    return tensors


def numbered(features: Features) -> Features:
    """The features with token ids that differ from token to token."""
    ids = torch.arange(features.mask.numel()).reshape(features.mask.shape)
    return replace(features, tokens=replace(features.token_info, ids=ids))


# Features


def test_row_is_one_chat_with_a_batch_axis(build_features: BuildFeatures) -> None:
    features = numbered(build_features(5, 3, 4, num_image=2))
    for index in range(3):
        row = features.row(index)
        assert row.states.shape == (1, 5, 3, 24)
        for name, values in parts(row).items():
            assert torch.equal(values[0], parts(features)[name][index])


def test_row_of_features_without_token_info_has_none(build_features: BuildFeatures) -> None:
    assert replace(build_features(5, 3), tokens=None).row(1).tokens is None


@pytest.mark.parametrize("with_tokens", [True, False])
def test_select_takes_tokens_in_the_given_order_and_zeroes_the_rest(
    build_features: BuildFeatures, with_tokens: bool
) -> None:
    features = numbered(build_features(5, 3, num_image=2))
    if not with_tokens:
        features = replace(features, tokens=None)
    order = torch.tensor([[4, 0, 0, 2], [1, 2, 4, 3]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])

    selected = features.select(order, mask)

    assert selected.states.shape == (2, 4, 3, 24)
    assert torch.equal(selected.mask, mask)
    assert (selected.tokens is not None) == with_tokens
    for name, values in parts(selected).items():
        if name != "mask":
            for row, place in mask.nonzero().tolist():
                assert torch.equal(values[row, place], parts(features)[name][row, order[row, place]])
            assert not values[~mask].any()


def test_cat_pads_shorter_rows_at_their_end(build_features: BuildFeatures) -> None:
    several = [numbered(build_features(*lengths, num_image=2)) for lengths in ((5, 3), (7,), (2,))]

    batch = Features.cat(several)

    assert batch.states.shape == (4, 7, 3, 24)
    alone = [features.row(row) for features in several for row in range(len(features.mask))]
    for row, features in enumerate(alone):
        length = features.mask.shape[1]
        for name, values in parts(batch).items():
            assert values.dtype == parts(features)[name].dtype
            assert torch.equal(values[row, :length], parts(features)[name][0])
            assert not values[row, length:].any()


def test_cat_of_one_changes_nothing(build_features: BuildFeatures) -> None:
    features = numbered(build_features(5, 3, num_image=1))
    for name, values in parts(Features.cat([features])).items():
        assert torch.equal(values, parts(features)[name])


def test_cat_with_features_without_token_info_has_none(build_features: BuildFeatures) -> None:
    known = build_features(5)
    assert Features.cat([known, replace(known, tokens=None)]).tokens is None
    assert Features.cat([known, known]).tokens is not None


def test_cat_undoes_row(build_features: BuildFeatures) -> None:
    features = numbered(build_features(5, 3, 4, num_image=2))
    again = Features.cat([features.row(index) for index in range(3)])
    for name, values in parts(again).items():
        assert torch.equal(values, parts(features)[name])


def test_to_changes_the_type_of_the_states_alone(build_features: BuildFeatures) -> None:
    features = numbered(build_features(5, 3, num_image=2))
    moved = features.to("cpu", torch.float64)
    assert moved.states.dtype == torch.float64
    for name, values in parts(moved).items():
        assert torch.equal(values, parts(features)[name].to(values.dtype))
        assert name == "states" or values.dtype == parts(features)[name].dtype
    assert replace(features, tokens=None).to("meta").tokens is None
    assert {values.device.type for values in parts(features.to("meta")).values()} == {"meta"}


def test_token_info_is_the_tokens_or_an_error(build_features: BuildFeatures) -> None:
    features = build_features(5, 3)
    assert features.token_info is features.tokens
    with pytest.raises(PromptError, match="Encode or Rewrite, not from a conditioning"):
        _ = replace(features, tokens=None).token_info


@pytest.mark.parametrize("name", ["mask", "positions", "roles", "ids"])
def test_parts_that_disagree_about_the_tokens_are_refused(build_features: BuildFeatures, name: str) -> None:
    features = build_features(5, 3)
    short = parts(features)[name][:, :-1]
    changed: dict[str, Any] = (
        {name: short}
        if name in ("mask", "positions")
        else {"tokens": replace(features.token_info, **{name: short})}
    )
    with pytest.raises(ShapeError, match=r"is \(2, 4.*\), the states are \(2, 5, 3, 24\)"):
        replace(features, **changed)


def test_features_cannot_be_changed_in_place(build_features: BuildFeatures) -> None:
    features = build_features(5)
    with pytest.raises(AttributeError):
        features.mask = ~features.mask  # pyright: ignore[reportAttributeAccessIssue]
    before = parts(features)["roles"].clone()
    features.select(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[True, False]]))
    assert torch.equal(features.token_info.roles, before)
    assert (before == TokenRole.PROMPT).all()


# Conditioning


def test_a_repeated_conditioning_has_each_row_in_succession() -> None:
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    mask, positions = torch.tensor([[True] * 3, [True, False, False]]), torch.rand(2, 3, 3)
    repeated = Conditioning(tokens=tokens, mask=mask, positions=positions).repeat(2)
    for row, source in enumerate((0, 0, 1, 1)):
        assert torch.equal(repeated.tokens[row], tokens[source])
        assert torch.equal(repeated.mask[row], mask[source])
        assert torch.equal(repeated.positions[row], positions[source])


# Settings


def test_rewrite_settings_are_greedy_unless_told_otherwise() -> None:
    settings = RewriteSettings(max_new_tokens=8, states="one_pass")
    assert settings.temperature == 0
    assert replace(settings, states="reencode", temperature=0.7, seed=[1, 2]).seed == [1, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"states": "both"}, 'states is "both"; choose one_pass or reencode'),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give at least 1"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3; give at least 1"),
        ({"temperature": -0.5}, "temperature is -0.5; give 0 for the likeliest words or more"),
        ({"temperature": float("inf")}, "temperature is inf; give 0"),
        ({"temperature": float("nan")}, "temperature is nan; give 0"),
    ],
)
def test_impossible_rewrite_settings_are_refused(changes: dict[str, Any], told: str) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "states": "one_pass"}
    with pytest.raises(ConfigError, match=told):
        RewriteSettings(**settings | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"taps": ()}, "give at least one layer, ascending and without repetition"),
        ({"taps": (2, 1)}, "ascending and without repetition"),
        ({"taps": (1, 1)}, "ascending and without repetition"),
        ({"taps": (-1, 2)}, r"tap -1 does not exist: the VLM has 5 layers; choose from 0\.\.4"),
        ({"taps": (0, 5)}, r"tap 5 does not exist: the VLM has 5 layers; choose from 0\.\.4"),
        ({"token_selection": "all"}, 'token_selection is "all"; choose "rewrite" or "prompt"'),
    ],
)
def test_impossible_vlm_specs_are_refused(
    small_config: UniFusionConfig, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(small_config.vlm, **changes)


def test_the_selection_decides_which_states_of_a_rewrite_are_read(small_config: UniFusionConfig) -> None:
    spec: VLMSpec = small_config.vlm
    assert replace(spec, token_selection="rewrite").rewrite_states == "one_pass"
    assert replace(spec, token_selection="prompt").rewrite_states == "reencode"
