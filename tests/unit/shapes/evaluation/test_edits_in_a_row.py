"""Ten edits in a row: what counts as drift, and how images are handed on.

pytest tests/unit/shapes/evaluation/test_edits_in_a_row.py
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unifusion_core.contracts import Request
from unifusion_core.images import to_pixels, to_tensor
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.evaluation import edits_in_a_row
from unifusion_core.shapes.evaluation.edits_in_a_row import ALONE, EDITS, WAYS, Step
from unifusion_core.shapes.world.render import render
from unifusion_core.shapes.world.scenes import Scene, SceneObject, Traits

KEPT = SceneObject(shape="square", color="blue", size="big", cell=(2, 2))
SCENE = Scene(
    objects=(SceneObject(shape="circle", color="red", size="big", cell=(0, 0)), KEPT), background="white"
)


def step_of(scene: Scene) -> Step:
    step = Step()
    for each in (scene, scene):
        mask = torch.zeros(128, 128)
        mask[:50, :50] = 1
        step.add(to_tensor(render(each)), SCENE, render(SCENE), kept=(KEPT,), mask=mask)
    return step


def test_an_image_that_nothing_changed_has_not_drifted() -> None:
    row = step_of(SCENE).row("x")
    assert {name: rate.right for name, rate in row.rates.items()} == {"exact": 2, "readable": 2}
    assert row.values["PSNR outside dB"] == pytest.approx(120)
    assert row.values["place, % of the side"] < 0.05
    assert row.values["shade, levels"] < 1


def test_known_drift_is_told_in_its_units() -> None:
    moved = replace(KEPT, traits=Traits(dx=0.02, dy=0.0, scale=1.0, shade=(9, 9, -9)))
    row = step_of(replace(SCENE, objects=(SCENE.objects[0], moved))).row("x")
    assert row.values["place, % of the side"] == pytest.approx(2, abs=0.1)
    # all moved alike
    assert row.values["of it common to all"] == pytest.approx(2, abs=0.1)
    assert row.values["shade, levels"] == pytest.approx(9, abs=1)
    assert row.values["PSNR outside dB"] < 30


def test_what_the_mask_lets_change_does_not_count_as_drift() -> None:
    recoloured = replace(SCENE, objects=(replace(SCENE.objects[0], color="green"), KEPT))
    row = step_of(recoloured).row("x")
    assert row.rates["exact"].right == 0
    assert row.values["PSNR outside dB"] == pytest.approx(120)


def test_files_hand_on_what_they_hold_and_numbers_are_handed_on_unrounded() -> None:
    image = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))
    png, numbers = (WAYS[name][0](image) for name in ("PNG files", "nothing rounded"))
    assert torch.equal(numbers, image)
    assert torch.equal(png, torch.from_numpy(to_pixels(image[None])[0]).permute(2, 0, 1) / 255)
    assert not torch.equal(png, image)
    assert torch.equal(WAYS["PNG files"][0](png), png)


def test_copies_of_a_perfect_autoencoder_do_not_drift() -> None:
    perfect = SimpleNamespace(encode=lambda images: images, decode=lambda latents: latents)
    for hand_on in ALONE.values():
        steps = list(edits_in_a_row._copies(perfect, [SCENE], hand_on))
        assert len(steps) == EDITS
        assert steps[-1].row("x").values["PSNR outside dB"] == pytest.approx(120)


def test_an_unrounded_image_is_the_image_of_its_seed(random_weights: SimpleNamespace) -> None:
    pipe = Pipeline.load(random_weights.model, random_weights.vlm, random_weights.vae)
    how = pipe.settings(steps=1)
    features = pipe.encode([Request(prompt="a red circle")])
    (pixels,) = pipe.sample(features, [5], how)
    images = pipe.sample_unrounded(features, [5], how)
    assert images.shape == (1, 3, 128, 128)
    np.testing.assert_array_equal(to_pixels(images)[0], pixels)
