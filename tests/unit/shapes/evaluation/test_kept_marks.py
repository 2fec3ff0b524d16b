"""The suite of kept marks: pytest tests/unit/shapes/evaluation/test_kept_marks.py"""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from unifusion_core.contracts import Request, TokenRole
from unifusion_core.evaluation.subject import Sampling, Subject
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.evaluation import kept_marks as suite
from unifusion_core.shapes.world import edits
from unifusion_core.shapes.world.render import render, render_tensor
from unifusion_core.shapes.world.scenes import Scene, sample_scene
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.zoo.tiny import BUILT_IN, TINY


def plain(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(replace(each, mark=None) for each in scene.objects))


@pytest.mark.parametrize("kind", ["recolor", "move", "add", "object_into", "object_on_background"])
def test_a_faithful_drawing_keeps_all_marks_and_a_plain_one_none(kind: str) -> None:
    rng = random.Random(kind)
    kept, lost, swapped = suite.Kept(), suite.Kept(), suite.Kept()
    marked = 0
    for _ in range(12):
        edit = edits.with_marked_sources(rng, edits.sample_instruction(rng, kind, True))
        objects = edit.untouched
        marked += sum(each.mark is not None for each in objects)
        kept.add(objects, render(edit.target, *suite.SIZE))
        lost.add(objects, render(plain(edit.target), *suite.SIZE))
        # each mark on the other side of its object
        turned = [
            replace(each, mark=each.mark and replace(each.mark, dx=-each.mark.dx, dy=-each.mark.dy))
            for each in edit.target.objects
        ]
        swapped.add(objects, render(replace(edit.target, objects=tuple(turned)), *suite.SIZE))
    row = kept.row(kind)
    assert row.rates["mark within 2 px"].total == marked > 0
    assert row.rates["mark within 2 px"].share == row.rates["mark present"].share == 1
    assert row.rates["mark where there is none"].share == 0
    assert lost.row(kind).rates["mark present"].share == 0
    assert swapped.row(kind).rates["mark within 2 px"].share < 0.5
    nothing = suite.Kept()
    nothing.add(objects, None)
    assert not any(nothing.near)


def test_the_tokens_of_another_image_are_those_of_the_next_chat() -> None:
    backbone = load_vlm(BUILT_IN.vlm)
    rng = random.Random(0)
    requests = [
        Request(prompt="make it red" + ", please" * i, images=[render_tensor(sample_scene(rng))])
        for i in range(3)
    ]
    spec = TINY.config.vlm
    features = backbone.encode(backbone.prepare(requests, spec.template, 1), spec)
    swapped = suite.with_pictures_of_another(features)
    image = features.mask & (features.token_info.roles == TokenRole.IMAGE)
    for row, other in ((0, 2), (1, 0), (2, 1)):
        assert torch.equal(swapped.states[row, image[row]], features.states[other, image[other]])
    assert torch.equal(swapped.states[~image], features.states[~image])
    assert not torch.equal(swapped.states, features.states)


def test_the_suite_draws_every_row(random_weights: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Pipeline.settings
    monkeypatch.setattr(Pipeline, "settings", lambda self, **how: settings(self, **{"steps": 1} | how))
    subject = Subject(
        model=random_weights.model, vlm=random_weights.vlm, vae=random_weights.vae, device="cpu"
    )
    rows = list(suite.evaluate_kept_marks(subject, Sampling(samples=4)))
    assert [row.name for row in rows] == [
        *(f"reconstruction, {tiles} tiles" for tiles in (1, 5, 10)),
        *(f"{title}{condition}" for title in ("edits", "two references") for condition in suite.CONDITIONS),
    ]
    for row in rows:
        assert row.rates["mark within 2 px"].total > 0
