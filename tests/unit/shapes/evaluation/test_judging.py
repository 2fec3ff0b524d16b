"""Judging and counting: Wilson's interval, and images and captions that are right, wrong or missing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from unifusion_core.evaluation.rates import Rate
from unifusion_core.shapes.evaluation.judging import (
    NOTHING,
    Tally,
    judge_failure,
    score_captions,
    score_pictures,
)
from unifusion_core.shapes.world.captions import caption
from unifusion_core.shapes.world.render import render
from unifusion_core.shapes.world.requirements import ObjectRequirement, Requirement
from unifusion_core.shapes.world.scenes import Scene, SceneObject, sample_scene

CIRCLE = SceneObject(shape="circle", color="red", size="big", cell=(0, 0))
SQUARE = SceneObject(shape="square", color="blue", size="small", cell=(1, 2))
SCENE = Scene(objects=(CIRCLE, SQUARE), background="white")


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (475, 500, 0.9272, 0.9659)],
)
def test_wilson_interval_against_published_values(right: int, total: int, low: float, high: float) -> None:
    assert Rate(right, total).interval() == pytest.approx((low, high), abs=2e-4)


def test_nothing_counted_tells_nothing() -> None:
    assert math.isnan(Rate(0, 0).share)
    assert Rate(0, 0).interval() == (0.0, 1.0)
    assert Tally(()).rates() == {}


def test_rendered_scenes_are_exact_and_their_neighbours_are_not() -> None:
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(6)]
    pictures = [render(scene) for scene in scenes]
    tally = score_pictures(pictures, [Requirement.of(scene) for scene in scenes])
    assert tally.rate() == Rate(6, 6)
    others = [replace(s, background="white" if s.background != "white" else "black") for s in scenes]
    tally = score_pictures(pictures, [Requirement.of(scene) for scene in others])
    assert (tally.rate().right, tally.rate("background").right, tally.rate("shape").share) == (0, 0, 1.0)


def test_attributes_are_counted_per_object_that_fixes_them() -> None:
    recolored = replace(SCENE, objects=(CIRCLE, replace(SQUARE, color="green")))
    tally = score_pictures([render(SCENE)], [Requirement.of(recolored)])
    assert tally.rate("color") == Rate(1, 2)
    assert tally.rate("shape") == Rate(2, 2)
    assert tally.rate("exact") == Rate(0, 1)
    only_shapes = Requirement(objects=(ObjectRequirement(shape="circle"), ObjectRequirement(shape="square")))
    open_tally = score_pictures([render(SCENE)], [only_shapes])
    assert set(open_tally.rates()) == {"exact", "readable", "count", "shape"}
    assert open_tally.rate() == Rate(1, 1)


def test_a_picture_counts_by_its_share_of_right_properties() -> None:
    recolored = replace(SCENE, objects=(CIRCLE, replace(SQUARE, color="green")))
    shown = [render(SCENE), render(recolored)]
    share, reach = score_pictures(shown, [Requirement.of(SCENE)] * 2).properties()
    assert share == pytest.approx((1 + 9 / 10) / 2), "one of 10: count, background, and four of either object"
    assert reach == pytest.approx(1.959964 * (1 / 10) / math.sqrt(2) / math.sqrt(2))


def test_noise_is_unreadable_and_never_exact() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    anything = Requirement(objects=(ObjectRequirement(),))
    tally = score_pictures([noise], [anything])
    assert (tally.rate("readable").right, tally.rate().right) == (0, 0)


def test_captions_must_parse_and_fulfil_what_is_fixed() -> None:
    want = Requirement.of(SCENE)
    texts = [
        caption(SCENE),
        f" {caption(SCENE)}",
        caption(replace(SCENE, background="pink")),
        "two nice shapes",
        "",
    ]
    assert [j.exact for j in score_captions(texts, [want] * 5).judgements] == [
        True,
        True,
        False,
        False,
        False,
    ]
    terse = replace(want, background=None)
    assert score_captions(texts[2:3], [terse]).rate() == Rate(1, 1)


def test_failures_count_as_wrong_in_every_respect() -> None:
    rates = Tally((judge_failure(Requirement.of(SCENE)),)).rates()
    assert len(rates) == 8  # all but relations, which the scene does not fix
    assert all(rate.right == 0 for rate in rates.values())
    assert not NOTHING.objects


def test_tallies_add() -> None:
    good = score_captions([caption(SCENE)], [Requirement.of(SCENE)])
    bad = score_captions([""], [Requirement.of(SCENE)])
    assert (good + bad).rate() == Rate(1, 2)
