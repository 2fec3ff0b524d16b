"""The comparison of fusion designs: equal budgets, equal data, nothing held out is trained on.

The pool is made of random states, so that no language model is needed.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unifusion_core.errors import ConfigError
from unifusion_core.models.fusion_designs import FUSIONS
from unifusion_core.shapes.evaluation.fusion import interval
from unifusion_core.shapes.training import fusion
from unifusion_core.shapes.training.fusion import (
    ALL_TAPS,
    DESIGNS,
    EVERY_THIRD,
    build_design,
    config_of,
    draw,
    features_of,
    held_out_captions,
    is_held_out_wording,
    load_encoder,
    load_pool,
    properties_right,
    three_objects,
    training_caption,
)
from unifusion_core.training.objective import FlowMatching
from unifusion_core.zoo.tiny import TINY

WIDTH, LAYERS = 576, 30


def states(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, len(ALL_TAPS), WIDTH, generator=torch.Generator().manual_seed(seed))


def model_of(name: str, seed: int = 1) -> torch.nn.Module:
    design = DESIGNS[name]
    spec = replace(TINY.config.vlm, hidden_size=WIDTH, num_layers=LAYERS, taps=design.taps)
    return build_design(design, config_of(design, spec, [1.0] * len(design.taps)), seed)


def test_the_designs_have_as_many_parameters_within_five_per_cent() -> None:
    sizes = {name: sum(p.numel() for p in model_of(name).parameters()) for name in DESIGNS}
    middle = statistics.median(sizes.values())
    assert all(abs(size / middle - 1) < 0.05 for size in sizes.values()), sizes
    assert {design.fusion for design in DESIGNS.values()} == set(FUSIONS) - {"lap per modality"}


def test_the_taps_are_the_papers_every_third_layer() -> None:
    assert EVERY_THIRD == (2, 5, 8, 11, 14, 17, 20, 23, 26, 29)
    assert DESIGNS["lap"].taps == EVERY_THIRD
    assert DESIGNS["last-layer"].taps == (29,)


def test_no_caption_of_the_training_has_a_held_out_pair_or_wording() -> None:
    wordings = [training_caption(number) for number in range(300)]
    assert not any(each.target.held_out or is_held_out_wording(each.text) for each in wordings)
    assert {each.kind for each in wordings} == {"full", "terse", "caption"}


def test_held_out_captions_have_what_they_are_held_out_for() -> None:
    pairs, wordings = held_out_captions(30, "test"), held_out_captions(30, "test", wording=True)
    assert all(each.target.held_out and not is_held_out_wording(each.text) for each in pairs)
    assert all(is_held_out_wording(each.text) and not each.target.held_out for each in wordings)
    assert [len(each.target.objects) for each in pairs[:4]] == [1, 2, 3, 1]
    three = three_objects(5, "test")
    assert all(len(each.requirement.objects) == 3 for each in three)
    assert all(
        None not in (o.size, o.cell, o.color, o.shape) for each in three for o in each.requirement.objects
    )


@pytest.mark.parametrize(
    ("name", "sees"), [("lap", "all"), ("causal-refiner", "earlier"), ("without-refiner", "own")]
)
def test_the_refiners_see_all_tokens_earlier_ones_or_none(name: str, sees: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.05
            )
    plain = states(6)
    changed = plain.clone()
    changed[3] += 1
    with torch.no_grad():
        before, after = (model.pool(features_of([each], EVERY_THIRD)).tokens[0] for each in (plain, changed))
    moved = ((after - before).abs().amax(-1) > 1e-4).tolist()
    expected = {
        "all": [True] * 6,
        "earlier": [False] * 3 + [True] * 3,
        "own": [False] * 3 + [True] + [False] * 2,
    }
    assert moved == expected[sees]


@pytest.fixture
def pool_path(tmp_path: Path) -> Path:
    lengths = [0, 9, 12, 7, 5]
    kept = [states(length, seed) for seed, length in enumerate(lengths[1:])]
    tensors = {
        "states": torch.cat(kept).bfloat16(),
        "starts": torch.tensor(lengths).cumsum(0),
        "latents": torch.randn(3, 16, 16, 16).half(),
        "scales": torch.ones(len(ALL_TAPS)),
    }
    save_file(tensors, str(tmp_path / "pool.safetensors"), {"fingerprint": "f"})
    return tmp_path / "pool.safetensors"


def task_of(name: str, seed: int, pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> fusion.FusionTask:
    class Encoder:
        def spec(self, taps: tuple[int, ...], selection: str) -> object:
            return replace(TINY.config.vlm, hidden_size=WIDTH, num_layers=LAYERS, taps=tuple(taps))

    monkeypatch.setattr(fusion, "load_encoder", lambda _: Encoder())
    return fusion.FusionTask(DESIGNS[name], seed, pool_path=pool_path)


def test_designs_of_one_seed_have_the_same_captions_noise_and_times(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    for name, seed in (("lap", 1), ("key-value", 1), ("lap", 2)):
        task = task_of(name, seed, pool_path, monkeypatch)
        batches.append(task.collate([task.item(index) for index in range(3)]))
    lap, other, repetition = batches
    for one in ("latents", "noise", "t", "weights"):
        assert torch.equal(getattr(lap, one), getattr(other, one))
    assert not torch.equal(lap.noise, repetition.noise)
    assert lap.features.states.shape[2] == len(EVERY_THIRD)


def test_an_epoch_has_every_caption_once(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("lap", 1, pool_path, monkeypatch)
    numbers = [task.item(index)[1] for index in range(6)]
    assert sorted(numbers[:3]) == sorted(numbers[3:]) == [0, 1, 2]


def test_the_empty_caption_is_the_last_one(pool_path: Path) -> None:
    pool = load_pool(pool_path)
    assert len(pool) == 3
    torch.testing.assert_close(pool.states_of(-1).float(), states(5, 3), rtol=0.01, atol=0.01)
    assert [len(pool.states_of(number)) for number in range(3)] == [9, 12, 7]


@pytest.mark.parametrize("name", ["lap", "key-value", "injection", "ten-layers", "mean"])
def test_a_step_moves_the_weights_of_every_design(name: str) -> None:
    model = model_of(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 2, 16, 16, 16, generator=generator)
    batch = fusion.FlowBatch(
        features=features_of([states(5), states(8, 1)], DESIGNS[name].taps),
        latents=torch.randn(2, 16, 16, 16, generator=generator),
        noise=noise,
        t=torch.rand(2, 2, generator=generator),
    )
    losses = []
    for _ in range(3):
        loss, _ = FlowMatching(model)(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_an_image_depends_on_its_own_caption_alone() -> None:
    from unifusion_core.checkpoints.vae_file import load_autoencoder
    from unifusion_core.zoo.tiny import BUILT_IN

    model, autoencoder = model_of("lap").eval(), load_autoencoder(BUILT_IN.vae).eval()
    empty = features_of([states(5, 9)], EVERY_THIRD)
    both = draw(model, autoencoder, features_of([states(6, 1), states(9, 2)], EVERY_THIRD), empty)
    alone = draw(model, autoencoder, features_of([states(6, 1)], EVERY_THIRD), empty)
    # 16 bits round by the size of the batch
    assert abs(both[0].astype(int) - alone[0].astype(int)).mean() < 2
    assert abs(both[0].astype(int) - both[1].astype(int)).mean() > 4
    wordings = held_out_captions(2, "test")
    assert 0 <= properties_right(both, wordings) <= 1


def test_the_interval_covers_repetitions_and_images() -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    images = rng.random((1, 400))
    same = np.repeat(images, 3, 0)
    low, high = interval(same)
    assert low < images.mean() < high
    # repetitions that differ widen it
    apart = same + np.array([[-0.2], [0.0], [0.2]])
    assert np.diff(interval(apart))[0] > 2 * (high - low)
    assert interval(apart) == interval(apart)


def test_a_missing_language_model_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write it with `unifusion shapes encoder"):
        load_encoder(tmp_path / "none")
