"""How round a circle is: pytest tests/unit/shapes/evaluation/test_outlines.py"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from unifusion_core.evaluation.subject import Sampling, Subject
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.evaluation import outlines
from unifusion_core.shapes.world.render import object_geometry, render
from unifusion_core.shapes.world.roundness import distance_from_circle
from unifusion_core.shapes.world.scenes import Scene, SceneObject


def one(shape: str, size: str) -> Scene:
    obj = SceneObject(shape=shape, color="blue", size=size, cell=(1, 1))
    return Scene(objects=(obj,), background="white")


@pytest.mark.parametrize("size", ["small", "big"])
def test_a_rendered_circle_is_round_and_other_shapes_are_not(size: str) -> None:
    scene = one("circle", size)
    assert distance_from_circle(render(scene), scene.objects[0], scene) < 0.02
    for shape in ("square", "triangle", "star", "cross"):
        found = distance_from_circle(render(one(shape, size)), scene.objects[0], scene)
        assert found > 0.12, shape


def test_lumps_are_told_by_their_height_and_a_moved_circle_is_still_round() -> None:
    scene = one("circle", "big")
    (obj,) = scene.objects
    x, y, radius = object_geometry(obj, 128, 128)
    rows, columns = np.mgrid[:128, :128] + 0.5

    def drawn(lumps: float, moved: float) -> np.ndarray:
        angle = np.arctan2(rows - y, columns - x - moved)
        outline = radius * (1 + lumps * np.cos(8 * angle))
        cover = np.clip(outline - np.hypot(rows - y, columns - x - moved) + 0.5, 0, 1)[..., None]
        return np.round(255 + cover * (np.array(obj.rgb) - 255.0)).astype(np.uint8)

    assert distance_from_circle(drawn(0.1, 0), obj, scene) == pytest.approx(0.1, abs=0.02)
    assert distance_from_circle(drawn(0, 3), obj, scene) < 0.03


def test_where_nothing_is_drawn_no_outline_is_found() -> None:
    scene = one("circle", "big")
    nothing = np.full((128, 128, 3), 255, np.uint8)
    assert distance_from_circle(nothing, scene.objects[0], scene) == math.inf
    full = np.broadcast_to(np.array(scene.objects[0].rgb, np.uint8), (128, 128, 3))
    assert distance_from_circle(full, scene.objects[0], scene) == math.inf


def test_the_suite_has_a_row_for_each_way(
    random_weights: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Pipeline.settings
    monkeypatch.setattr(Pipeline, "settings", lambda self, **how: settings(self, **{"steps": 1} | how))
    subject = Subject(
        model=random_weights.model, vlm=random_weights.vlm, vae=random_weights.vae, device="cpu"
    )
    rendered, copied, drawn = outlines.evaluate_outlines(subject, Sampling(samples=3))
    assert rendered.rates["within 5% of the radius"].share == 1
    assert rendered.rates["within 5% of the radius"].total >= 3
    assert [row.name for row in (copied, drawn)] == ["circles, after the autoencoder", "circles, drawn"]
