"""Properties of Layerwise Attention Pooling: pytest tests/unit/models/test_lap.py"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unifusion_core.errors import ConfigError
from unifusion_core.live_bytes import LiveBytes
from unifusion_core.models.lap import LAPConfig, LayerwiseAttentionPooling
from unifusion_core.models.layers import LayerFactory

B, T, L, D = 2, 7, 3, 24


@pytest.fixture
def lap() -> LayerwiseAttentionPooling:
    module = LayerwiseAttentionPooling(
        LAPConfig(num_heads=3, mlp_size=40), num_taps=L, size=D, factory=LayerFactory()
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return module.requires_grad_(False)


@pytest.fixture
def states() -> Tensor:
    return torch.randn(B, T, L, D, generator=torch.Generator().manual_seed(1))


def test_one_vector_per_token(lap: LayerwiseAttentionPooling, states: Tensor) -> None:
    assert lap(states).shape == (B, T, D)


def test_tokens_do_not_see_each_other(lap: LayerwiseAttentionPooling, states: Tensor) -> None:
    changed = states.clone()
    changed[1, 4] += 1

    difference = (lap(changed) - lap(states)).abs().amax(-1) > 1e-4

    assert difference.nonzero().tolist() == [[1, 4]]


def test_every_layer_is_read(lap: LayerwiseAttentionPooling, states: Tensor) -> None:
    for layer in range(L):
        changed = states.clone()
        changed[:, :, layer] += 1
        assert not torch.allclose(lap(changed), lap(states), atol=1e-2)


def test_only_the_pooling_weights_distinguish_the_layers(
    lap: LayerwiseAttentionPooling, states: Tensor
) -> None:
    order = torch.tensor([2, 0, 1])
    before = lap(states)

    assert not torch.allclose(lap(states[:, :, order]), before, atol=1e-2)
    lap.projector.weight.data = lap.projector.weight[:, order]
    torch.testing.assert_close(lap(states[:, :, order]), before, atol=1e-5, rtol=1e-4)


def test_blocks_without_output_leave_a_weighted_sum_of_layers(
    lap: LayerwiseAttentionPooling, states: Tensor
) -> None:
    for block in lap.layerwise_blocks:
        block.attn.wo.weight.data.zero_()
        block.mlp.down.weight.data.zero_()

    expected = torch.einsum("btld,l->btd", states, lap.projector.weight[0])

    torch.testing.assert_close(lap(states), expected, atol=1e-5, rtol=1e-4)


def test_tap_scales_bring_layers_to_equal_size(lap: LayerwiseAttentionPooling, states: Tensor) -> None:
    before = lap(states)
    lap.tap_scales = (0.5, 2.0, 8.0)

    torch.testing.assert_close(lap(states * torch.tensor(lap.tap_scales)[:, None]), before)


def test_tap_scales_are_one_for_each_tap() -> None:
    config = LAPConfig(num_heads=3, mlp_size=40, tap_scales=(1.0, 2.0))

    with pytest.raises(ConfigError, match="2 tap scales for 3 taps"):
        LayerwiseAttentionPooling(config, num_taps=L, size=D, factory=LayerFactory())


def test_a_lap_without_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 0 heads"):
        LAPConfig(num_heads=0, mlp_size=8)
    with pytest.raises(ConfigError, match="refiner with -1 blocks"):
        LAPConfig(num_heads=1, mlp_size=8, num_refiner_blocks=-1)
    with pytest.raises(ConfigError, match="width is 0"):
        LayerwiseAttentionPooling(
            LAPConfig(num_heads=1, mlp_size=8), num_taps=L, size=0, factory=LayerFactory()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tokens_of_many_layers_need_little_memory(dtype: torch.dtype) -> None:
    """10 taps x 2560 tokens x 4096 on the meta device."""
    config = LAPConfig(num_heads=32, mlp_size=11008, tap_scales=(1.0,) * 10)
    lap = LayerwiseAttentionPooling(
        config, num_taps=10, size=4096, factory=LayerFactory(device="meta", dtype=dtype)
    )
    states = torch.empty(1, 2560, 10, 4096, device="meta", dtype=dtype)
    with torch.no_grad(), LiveBytes() as memory:
        pooled = lap(states)
    print(f"{dtype}: {memory.peak / states.nbytes:.2f} of the taps")
    # freed tensors are not counted
    assert memory.now == pooled.nbytes
    assert memory.peak < 1.5 * states.nbytes


def test_chunks_pool_as_the_whole_does(
    lap: LayerwiseAttentionPooling, states: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lap(states)
    monkeypatch.setattr("unifusion_core.models.lap.CHUNK", 4 * L * D)
    with torch.no_grad():
        torch.testing.assert_close(lap(states), whole, atol=1e-6, rtol=1e-6)
