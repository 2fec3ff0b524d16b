"""Strength of an image: which tokens stay, what several copies of a token do, what is left alone.

pytest tests/unit/vlm/test_image_strength.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Features, TokenInfo, TokenRole
from unifusion_core.errors import ConfigError, PromptError
from unifusion_core.models.layers import LayerFactory, attend
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.vlm.chat import token_centres
from unifusion_core.vlm.image_strength import with_strength

# tokens along a tile
SIDE = 6
WHOLE = (0.0, 0.0, 1.0, 1.0)
QUARTERS = [(r / 2, c / 2, (r + 1) / 2, (c + 1) / 2) for r in (0, 1) for c in (0, 1)]


def parts(features: Features) -> dict[str, Tensor]:
    """Every tensor of some features, by name."""
    info = features.token_info
    return {
        "states": features.states,
        "mask": features.mask,
        "positions": features.positions,
        "roles": info.roles,
        "ids": info.ids,
    }


def chat(*tiles_of_pictures: int, words: int = 3, thumbnail_last: bool = True) -> Features:
    """Pictures of one tile (the thumbnail) or five, each between two marks, then words. Token ids count the tokens."""
    roles: list[int] = []
    positions: list[Tensor] = []
    for number, num_tiles in enumerate(tiles_of_pictures, start=1):
        boxes = [WHOLE] if num_tiles == 1 else [*QUARTERS, WHOLE] if thumbnail_last else [WHOLE, *QUARTERS]
        centres = torch.cat([token_centres(box, SIDE, SIDE) for box in boxes])
        roles += [TokenRole.IMAGE_MARK, *[TokenRole.IMAGE] * len(centres), TokenRole.IMAGE_MARK]
        own = torch.cat([torch.full((len(centres), 1), float(number)), centres], 1)
        positions += [torch.zeros(1, 3), own, torch.zeros(1, 3)]
    roles += [TokenRole.PROMPT] * words
    ids = torch.arange(len(roles))[None]
    return Features(
        states=torch.randn(1, len(roles), 3, 24, generator=torch.Generator().manual_seed(len(roles))),
        mask=torch.ones_like(ids, dtype=torch.bool),
        positions=torch.cat([*positions, torch.zeros(words, 3)])[None],
        tokens=TokenInfo(roles=torch.tensor(roles)[None], ids=ids),
    )


def kept_places(features: Features, picture: int = 1) -> Tensor:
    return features.positions[0, features.positions[0, :, 0] == picture, 1:]


@pytest.mark.parametrize(
    ("keep", "count"), [(1.0, 180), (0.5, 90), (0.2, 36), (0.15, 27), (0.001, 1), (0.0, 0)]
)
def test_a_share_of_the_tokens_stays(keep: float, count: int) -> None:
    assert len(kept_places(with_strength(chat(5), 1, keep=keep))) == count


@pytest.mark.parametrize("thumbnail_last", [True, False])
def test_the_thumbnail_is_thinned_last(thumbnail_last: bool) -> None:
    whole = chat(5, thumbnail_last=thumbnail_last)
    thumbnail = whole.token_info.ids[0, 145:181] if thumbnail_last else whole.token_info.ids[0, 1:37]
    # 36 of 180 are the thumbnail
    for keep in (0.9, 0.5, 0.2):
        kept = with_strength(whole, 1, keep=keep, thumbnail_last=thumbnail_last)
        assert torch.isin(thumbnail, kept.token_info.ids).all()
    few = with_strength(whole, 1, keep=0.1, thumbnail_last=thumbnail_last)
    assert torch.isin(few.token_info.ids[few.token_info.roles == TokenRole.IMAGE], thumbnail).all()


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.12])
def test_what_stays_is_spread_evenly(keep: float) -> None:
    """No place of the image is farther from a kept token than in a square grid of so many tokens, but for its rounding."""
    places = kept_places(with_strength(chat(1), 1, keep=keep))
    farthest = torch.cdist(kept_places(chat(1)), places).amin(1).max()
    assert farthest <= 2**0.5 / 2 / len(places) ** 0.5 + 1 / SIDE
    assert places.mean(0) == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_larger_share_keeps_what_a_smaller_one_kept() -> None:
    kept = [
        set(with_strength(chat(5), 1, keep=keep).token_info.ids[0].tolist()) for keep in (0.1, 0.3, 0.6, 1.0)
    ]
    assert all(smaller < larger for smaller, larger in zip(kept[:-1], kept[1:], strict=True))


@pytest.mark.parametrize(("keep", "gain"), [(0.3, 1), (1.0, 3), (0.3, 2), (0.0, 1)])
def test_everything_else_stays_as_it_is(keep: float, gain: int) -> None:
    features = chat(5, 1)
    changed = with_strength(features, 2, keep=keep, gain=gain)
    for name in parts(chat(1)):
        before, after = (parts(f)[name][0][f.positions[0, :, 0] != 2] for f in (features, changed))
        assert torch.equal(before, after)
    assert (changed.token_info.ids[0].diff() >= 0).all()
    numbers, times = changed.token_info.ids[0][changed.positions[0, :, 0] == 2].unique(return_counts=True)
    assert len(numbers) == round(keep * 36)
    assert (times == gain).all()
    assert torch.equal(with_strength(features, 2).states, features.states)


def test_pictures_are_thinned_one_after_the_other_in_any_order() -> None:
    features = chat(5, 5)
    one_way = with_strength(with_strength(features, 1, keep=0.4), 2, gain=2)
    other_way = with_strength(with_strength(features, 2, gain=2), 1, keep=0.4)
    assert all(torch.equal(parts(one_way)[name], parts(other_way)[name]) for name in parts(chat(1)))


def test_chats_of_a_batch_are_padded_anew_and_those_without_the_picture_stay() -> None:
    alone = [chat(5), chat(1), chat(words=4)]
    together = with_strength(Features.cat(alone), 1, keep=0.25)
    for row, features in enumerate(alone):
        expected = with_strength(features, 1, keep=0.25) if row < 2 else features
        length = expected.mask.shape[1]
        assert int(together.mask[row].sum()) == length
        for name in parts(chat(1)):
            assert torch.equal(parts(together)[name][row, :length], parts(expected)[name][0])
            assert not parts(together)[name][row, length:].any()


@pytest.mark.parametrize("form", ["joint", "prefix"])
def test_copies_of_a_token_are_one_token_with_a_larger_share_of_the_attention(
    build_model: Callable[..., UniFusion], form: str
) -> None:
    """The whole model with three copies against one whose attention raises those keys by log 3."""
    model, features, gain = build_model(condition_attention=form), chat(1), 3
    own = features.positions[0, :, 0] == 1
    raised = torch.zeros(len(own)).masked_fill(own, float(torch.tensor(gain).log()))

    def biased(
        q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None, bias: Tensor | None, **more: Any
    ) -> Tensor:
        prefix = more.get("prefix")
        keys = k.shape[2] + (0 if prefix is None else prefix[0].shape[2])
        # LAP: over layers
        if keys < len(raised):
            return attend(q, k, v, rope, bias, **more)
        wider = torch.nn.functional.pad(raised, (0, keys - len(raised)))[None, None, None]
        return attend(q, k, v, rope, wider if bias is None else bias + wider, **more)

    reference = UniFusion(model.config, LayerFactory(attend=biased)).eval().requires_grad_(False)
    reference.load_state_dict(model.state_dict())
    latents, t = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(5)), torch.tensor([0.7])

    def velocity(of: UniFusion, read: Features) -> Tensor:
        return of(latents, t, of.prepare(of.pool(read), (4, 6)))

    expected = velocity(reference, features)
    scale = expected.abs().max()
    assert (velocity(model, with_strength(features, 1, gain=gain)) - expected).abs().max() <= 1e-4 * scale
    assert (velocity(model, features) - expected).abs().max() > 1e-2 * scale


def test_scaled_states_are_no_gain(build_model: Callable[..., UniFusion]) -> None:
    """Why strength is no factor: the projection to the DiT takes it back."""
    model, tokens = build_model(), torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.txtmlp(10 * tokens), model.txtmlp(tokens), rtol=1e-3, atol=1e-3)


def test_impossible_strengths_are_refused() -> None:
    for wrong in ({"keep": 1.5}, {"keep": -0.1}, {"gain": 0}, {"gain": 9}):
        with pytest.raises(ConfigError, match="a share of 0 to 1 and a whole gain of 1 to 8"):
            with_strength(chat(1), 1, **wrong)
    with pytest.raises(PromptError, match=r"picture 3 was given, and these features hold 2 picture\(s\)"):
        with_strength(chat(1, 1), 3)
    with pytest.raises(PromptError, match=r"hold 0 picture\(s\)"):
        with_strength(
            replace(
                chat(1),
                tokens=TokenInfo(
                    roles=torch.full((1, 41), int(TokenRole.PROMPT)), ids=torch.zeros(1, 41, dtype=torch.long)
                ),
                positions=torch.zeros(1, 41, 3),
            ),
            1,
        )
