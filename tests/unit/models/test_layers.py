"""Properties of the layers that LAP, refiner and DiT share: pytest tests/unit/models/test_layers.py"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unifusion_core.models.layers import (
    Attention,
    LayerFactory,
    RMSNorm,
    apply_rope,
    key_bias,
    rope_angles,
    rotary_axes,
    time_embedding,
)

HEAD_SIZE = 32


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3, generator=generator)


def random_positions(count: int, seed: int) -> Tensor:
    return torch.rand(1, count, 3, generator=torch.Generator().manual_seed(seed)) * 20


@pytest.mark.parametrize("head_size", [16, 32, 48, 128])
def test_rotary_axes_share_all_channels_in_pairs(head_size: int) -> None:
    axes = rotary_axes(head_size)

    assert sum(axes) == head_size
    assert all(size > 0 and size % 2 == 0 for size in axes)


def test_rotation_makes_scores_depend_on_relative_positions_only() -> None:
    q, k = torch.randn(2, 1, 3, 5, HEAD_SIZE, generator=torch.Generator().manual_seed(0))
    here, there = random_positions(5, 1), random_positions(5, 2)
    shift = torch.tensor([3.0, -1.5, 7.0])

    def scores(offset: Tensor) -> Tensor:
        by_q = rope_angles(here + offset, HEAD_SIZE, 1000.0)
        by_k = rope_angles(there + offset, HEAD_SIZE, 1000.0)
        return apply_rope(q, by_q) @ apply_rope(k, by_k).mT

    torch.testing.assert_close(scores(shift), scores(torch.zeros(3)), atol=1e-4, rtol=1e-4)
    moved_keys_only = (
        apply_rope(q, rope_angles(here, HEAD_SIZE, 1000.0))
        @ apply_rope(k, rope_angles(there + shift, HEAD_SIZE, 1000.0)).mT
    )
    assert not torch.allclose(moved_keys_only, scores(torch.zeros(3)), atol=1e-2)


def test_each_axis_turns_its_own_channels() -> None:
    x = torch.randn(1, 1, 1, HEAD_SIZE, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor(rotary_axes(HEAD_SIZE)).cumsum(0).tolist()
    for axis, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        position = torch.zeros(1, 1, 3)
        position[..., axis] = 2.5

        turned = (apply_rope(x, rope_angles(position, HEAD_SIZE, 1000.0)) - x).abs()[0, 0, 0] > 1e-6

        assert turned[start:end].any()
        assert not torch.cat([turned[:start], turned[end:]]).any()


def test_rotation_keeps_lengths_and_position_zero_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, HEAD_SIZE, generator=torch.Generator().manual_seed(0))
    positions = random_positions(4, 1).expand(2, -1, -1)

    turned = apply_rope(x, rope_angles(positions, HEAD_SIZE, 1000.0))

    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(apply_rope(x, rope_angles(torch.zeros_like(positions), HEAD_SIZE, 1000.0)), x)
    assert apply_rope(x, None) is x


def test_a_compiled_rotation_holds_no_complex_number() -> None:
    """Inductor has no code for complex operators. The real numbers give the same."""
    x = torch.randn(2, 4, 9, HEAD_SIZE, generator=torch.Generator().manual_seed(3))
    rope = rope_angles(torch.randn(1, 9, 3) * 40, HEAD_SIZE, 1000.0)
    types: set[torch.dtype] = set()

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        values = (node.meta.get("example_value") for node in graph.graph.nodes)
        types.update(value.dtype for value in values if isinstance(value, Tensor))
        return graph.forward

    compiled = torch.compile(apply_rope, backend=backend, fullgraph=True)(x, rope)

    assert types == {torch.float32}
    torch.testing.assert_close(compiled, apply_rope(x, rope), atol=1e-6, rtol=1e-6)


def test_key_bias_equals_removal_of_the_padded_tokens() -> None:
    attention = Attention(64, 4, 2, LayerFactory())
    randomize(attention)
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(7)[None] < 5

    padded = attention(x, bias=key_bias(mask, x.dtype))[:, :5]

    torch.testing.assert_close(padded, attention(x[:, :5]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attention(x)[:, :5], padded, atol=1e-3)


def test_key_bias_survives_16_bit() -> None:
    bias = key_bias(torch.tensor([[True, False]]), torch.float16)

    assert bias.dtype == torch.float16
    assert torch.isfinite(bias).all()
    assert bias[0, 0, 0, 0] == 0


def test_grouped_queries_equal_full_attention_with_repeated_keys() -> None:
    grouped, full = Attention(64, 4, 2, LayerFactory()), Attention(64, 4, 4, LayerFactory())
    randomize(grouped)
    weights = grouped.state_dict()
    for name in ("wk.weight", "wv.weight"):
        weights[name] = weights[name].unflatten(0, (2, 16)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(weights)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(grouped(x), full(x), atol=1e-5, rtol=1e-5)


def test_prefix_keys_come_before_the_own_keys() -> None:
    attention = Attention(64, 4, 2, LayerFactory())
    randomize(attention)
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1))

    whole = attention(x)[:, 3:]
    with_prefix = attention(x[:, 3:], prefix=attention.keys_values(x[:, :3]))

    torch.testing.assert_close(with_prefix, whole, atol=1e-5, rtol=1e-5)


def test_rms_norm_scale_is_zero_centred_and_computed_in_float32() -> None:
    norm = RMSNorm(24, LayerFactory())
    x = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0)) * 50

    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(2, 3), atol=1e-4, rtol=1e-4)
    norm.scale.data.fill_(1)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.full((2, 3), 4.0), atol=1e-3, rtol=1e-4)
    # the squares overflow 16 bits
    huge = (x * 100).half()
    assert norm(huge).dtype == torch.float16
    assert torch.isfinite(norm(huge)).all()


def test_time_embedding_tells_close_times_apart() -> None:
    times = torch.linspace(0, 1, 1001)

    embedded = time_embedding(times, 256)

    assert embedded.shape == (1001, 256)
    distance = (embedded[1:] - embedded[:-1]).norm(dim=-1)
    assert distance.min() > 0.5
