"""What was pooled before is not pooled again, and the result is the same:

pytest tests/unit/models/test_pooled_tokens.py

The time is measured by tests/benchmarks/second_instruction.py.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from unifusion_core.caching import digest
from unifusion_core.contracts import Features
from unifusion_core.models.pooled_tokens import PooledTokens
from unifusion_core.models.unifusion import UniFusion

# of the largest value
SAME = 1e-6
TAPS, WIDTH = 3, 24


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model(build_model: Callable[..., UniFusion]) -> UniFusion:
    return build_model()


def states(count: int, seed: int) -> Tensor:
    return torch.randn(1, count, TAPS, WIDTH, generator=torch.Generator().manual_seed(seed))


def chat(*images: int, prompt: int, padding: int = 0) -> Features:
    """A chat: two system tokens, each image's tokens (16 from its seed), the prompt's 5, padding."""
    parts, numbers = [states(2, 99)], [0, 0]
    for number, seed in enumerate(images, start=1):
        parts.append(states(16, seed))
        numbers += [number] * 16
    parts.append(states(5, prompt))
    numbers += [0] * 5
    real = len(numbers)
    parts.append(torch.zeros(1, padding, TAPS, WIDTH))
    positions = torch.zeros(1, real + padding, 3)
    positions[0, :real, 0] = torch.tensor(numbers)
    mask = torch.arange(real + padding)[None] < real
    return Features(states=torch.cat(parts, 1), mask=mask, positions=positions)


@contextmanager
def counted(model: UniFusion) -> Iterator[dict[str, int]]:
    """The number of tokens that went through LAP and through the refiner."""
    seen = {"lap": 0, "refiner": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] += inputs[0].shape[:-2].numel() if name == "lap" else inputs[0].shape[:-1].numel()

        return hook

    handles = [
        model.txtfusion.layerwise_blocks[0].register_forward_hook(count("lap")),
        model.txtfusion.refiner_blocks[0].register_forward_hook(count("refiner")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def assert_same(model: UniFusion, features: Features, given: Tensor, **settings: object) -> None:
    expected = model.pool(features, **settings).tokens  # pyright: ignore[reportArgumentType]
    real = features.mask
    assert (given - expected)[real].abs().max() <= SAME * expected[real].abs().max()


def test_a_second_prompt_pays_for_its_own_tokens_alone(model: UniFusion) -> None:
    first, second = chat(1, 2, prompt=10), chat(1, 2, prompt=11)
    model.pool(first, weights="a")

    with counted(model) as seen:
        given = model.pool(second, weights="a").tokens

    # two system tokens and five of the prompt; the refiner is bidirectional
    assert seen == {"lap": 7, "refiner": 39}
    assert_same(model, second, given)


def test_the_same_chat_is_not_pooled_again(model: UniFusion) -> None:
    """As the empty prompt, which every guided image needs."""
    empty = chat(prompt=10)
    before = model.pool(empty, weights="a").tokens.clone()

    with counted(model) as seen:
        given = model.pool(empty, weights="a").tokens

    assert seen == {"lap": 0, "refiner": 0}
    assert torch.equal(given, before)


def test_an_image_in_several_chats_of_a_batch_is_pooled_once(model: UniFusion) -> None:
    batch = Features.cat([chat(1, 2, prompt=10), chat(1, prompt=11), chat(2, 1, prompt=12, padding=3)])

    with counted(model) as seen:
        given = model.pool(batch, weights="a").tokens

    padding = 3 * 3 + 16
    assert seen["lap"] == 2 * 16 + 3 * 7 + padding
    assert_same(model, batch, given)


def test_the_same_images_in_another_order_are_another_batch(model: UniFusion) -> None:
    crossed = Features.cat([chat(1, 2, prompt=10), chat(2, 1, prompt=11)])
    parallel = Features.cat([chat(1, 2, prompt=10), chat(1, 2, prompt=11)])
    model.pool(crossed, weights="a")

    assert_same(model, parallel, model.pool(parallel, weights="a").tokens)


@pytest.mark.parametrize("changed", ["weights", "gains", "dtype", "states"])
def test_what_changes_the_result_is_pooled_again(changed: str, model: UniFusion) -> None:
    features, gains, weights = chat(1, prompt=10), None, "a"
    model.pool(features, weights="a")
    if changed == "weights":
        weights = "b"
        model.txtfusion.projector.weight.mul_(1.5)
    elif changed == "gains":
        gains = (1.0, 0.5, 1.0)
    elif changed == "dtype":
        model, features = model.double(), features.to("cpu", torch.float64)
    else:
        features = chat(3, prompt=10)

    with counted(model) as seen:
        given = model.pool(features, gains, weights=weights).tokens

    assert seen["lap"] >= 16
    assert given.dtype == features.states.dtype
    assert_same(model, features, given, layer_gains=gains)


def test_nothing_is_kept_with_gradients_or_without_a_key(model: UniFusion) -> None:
    model.pool(chat(1, prompt=10))
    with torch.enable_grad():
        model.pool(chat(1, prompt=10), weights="a")

    assert len(model.txtfusion.pooled_before.kept) == 0


def test_a_digest_is_that_of_the_values_whatever_the_strides() -> None:
    values = torch.arange(12.0).view(3, 4)

    assert digest(values.T) == digest(values.T.contiguous()) != digest(values)
    assert digest(values.long()[:1, 3:4]) == digest(torch.tensor([[3]]))
    assert digest(values[:0]) == digest(torch.empty(0, 4))


def test_what_is_kept_is_bounded_and_goes_with_the_model(build_model: Callable[..., UniFusion]) -> None:
    model = build_model()
    model.txtfusion.pooled_before = PooledTokens(limit=20_000)
    for seed in range(30):
        model.pool(chat(seed, prompt=100 + seed), weights="a")
    assert 0 < model.txtfusion.pooled_before.kept.num_bytes <= 20_000

    kept = weakref.ref(model.txtfusion.pooled_before)
    del model
    gc.collect()

    assert kept() is None


def test_changing_the_result_does_not_change_what_is_kept(model: UniFusion) -> None:
    features = chat(1, prompt=10)
    model.pool(features, weights="a").tokens.zero_()

    assert_same(model, features, model.pool(features, weights="a").tokens)
    model.pool(features, weights="a").tokens.zero_()
    assert_same(model, features, model.pool(features, weights="a").tokens)
