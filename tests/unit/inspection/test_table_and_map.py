"""Layer shares as text and as a map: pytest tests/unit/inspection/test_table_and_map.py"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from unifusion_core.contracts import Features, TokenRole
from unifusion_core.inspection.layer_map import draw_layer_map, spread_over_image
from unifusion_core.inspection.reading import LayerReading
from unifusion_core.inspection.table import lines_of, visible_text, write_table
from unifusion_core.vlm.chat import token_centres

TAPS = (0, 1, 3)
BuildFeatures = Callable[..., Features]


@pytest.fixture
def features(build_features: BuildFeatures) -> Features:
    return build_features(4, num_image=2)


@pytest.fixture
def reading() -> LayerReading:
    shares = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.25, 1.0, -0.25], [0.2, 0.2, 0.6]])
    return LayerReading(
        weights=torch.tensor([0.5, -1.44, 0.125]), shares=shares, attention=(shares.abs(), shares.abs())
    )


def test_a_line_per_text_token_and_one_per_image(features: Features, reading: LayerReading) -> None:
    lines = lines_of(features, ["<p>", "<p>", " red", "\n"])

    table = write_table(reading, lines, TAPS).splitlines()

    assert table[2].split() == ["token", "part", "layer", "0", "layer", "1", "layer", "3", "most", "from"]
    assert table[3].split() == ["pooling", "weight", "+0.500", "-1.440", "+0.125"]
    assert table[4].split("  ")[0] == "image 1: mean of 2 tokens"
    assert table[4].split()[-5:] == ["70", "20", "10", "layer", "0"]
    assert table[5].split() == ["red", "prompt", "25", "100", "-25", "layer", "1"]
    assert table[6].split() == ["\\n", "prompt", "20", "20", "60", "layer", "3"]


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        (" red", "red"),
        ("  ", "(space)"),
        ("", "(space)"),
        ("a\tb", "a\\tb"),
        (" 파란", "파란"),
        ("$x$", "$x$"),
    ],
)
def test_every_token_can_be_seen(text: str, visible: str) -> None:
    assert visible_text(text) == visible


def test_padding_has_no_line(build_features: BuildFeatures) -> None:
    features = build_features(4)
    features.token_info.roles[0, 2:] = int(TokenRole.PADDING)

    assert [line.tokens for line in lines_of(features, ["a"] * 4)] == [(0,), (1,)]


def test_tiles_lie_over_the_thumbnail_in_their_places(build_features: BuildFeatures) -> None:
    """Two tiles side by side, of 2 x 1 and 2 x 2 tokens each to tell them apart, and the thumbnail last."""
    left, right, all_of_it = (0, 0, 1, 0.5), (0, 0.5, 1, 1), (0, 0, 1, 1)
    centres = torch.cat([token_centres(box, 2, 2) for box in (left, right, all_of_it)])
    features = build_features(13, num_image=12)
    features.positions[0, :12, 1:] = centres
    values = torch.arange(13.0)[:, None]

    spread = spread_over_image(values, features, 1, (4, 8))[..., 0]

    rows = [[0, 0, 1, 1, 4, 4, 5, 5], [2, 2, 3, 3, 6, 6, 7, 7]]
    assert spread.tolist() == [rows[0], rows[0], rows[1], rows[1]]
    info = features.token_info
    roles = torch.where(torch.arange(13) < 8, int(TokenRole.PROMPT), info.roles)
    alone = replace(features, tokens=replace(info, roles=roles))
    assert spread_over_image(values, alone, 1, (2, 2))[..., 0].tolist() == [[8, 9], [10, 11]]


def test_the_map_grows_with_tokens_and_images(features: Features, reading: LayerReading) -> None:
    # matplotlib would typeset these as formulas
    lines = lines_of(features, ["<p>", "<p>", "$ _^", "{\\frac"])

    bare = draw_layer_map(reading, features, lines, TAPS)
    with_image = draw_layer_map(reading, features, lines, TAPS, [torch.rand(4, 30, 50)])
    longer = draw_layer_map(reading, features, [*lines, *lines, *lines], TAPS)

    assert bare.dtype == np.uint8
    assert bare.shape[2] == 3
    assert with_image.shape[0] > bare.shape[0]
    assert longer.shape[0] > bare.shape[0]
    assert bare.shape[1] == with_image.shape[1] == longer.shape[1]
    # neither empty nor full
    assert 0.2 < (bare < 250).any(-1).mean() < 0.8


def test_the_map_of_a_very_long_chat_is_bounded(features: Features, reading: LayerReading) -> None:
    lines = lines_of(features, ["a"] * 4) * 200

    assert draw_layer_map(reading, features, lines, TAPS).shape[0] < 2**13
