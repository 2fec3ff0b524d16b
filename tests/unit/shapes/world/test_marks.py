"""Marks: put on scenes, never mentioned, and found again: pytest tests/unit/shapes/world/test_marks.py"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from unifusion_core.shapes.world import captions, prompts
from unifusion_core.shapes.world.marks import LEVELS, MARGIN, RADII, sample_mark, with_marks
from unifusion_core.shapes.world.render import DISTANCES, object_geometry, render
from unifusion_core.shapes.world.requirements import Requirement
from unifusion_core.shapes.world.scenes import (
    ASPECT_SIZES,
    COLORS,
    SHAPES,
    SIZES,
    Mark,
    Scene,
    SceneObject,
    nearest_color,
    sample_object,
    sample_scene,
)
from unifusion_core.shapes.world.scorer import named, read_picture

SCENES = 100


def mark_in_pixels(obj: SceneObject, size: tuple[int, int]) -> tuple[float, float] | None:
    x, y, radius = object_geometry(obj, *size)
    return None if obj.mark is None else (x + obj.mark.dx * radius, y + obj.mark.dy * radius)


@pytest.mark.parametrize("size", ASPECT_SIZES)
def test_marks_are_found_and_named_properties_stay(size: tuple[int, int]) -> None:
    rng = random.Random(f"marks {size}")
    present, right, near, wrong_in_plain = 0, 0, 0, 0
    objects = 0
    for number in range(SCENES):
        plain = sample_scene(rng, held_out=None)
        marked = with_marks(rng, plain, 1.0 if number % 2 else 0.5)
        assert all(obj.mark is None for obj in plain.objects)
        wrong_in_plain += sum(
            obj.mark is not None for obj in read_picture(render(plain, *size)).scene.objects
        )
        reading = read_picture(render(marked, *size))
        assert reading.shows(plain), (marked, reading.problems)
        seen = {obj.cell: obj for obj in reading.scene.objects}
        for obj in marked.objects:
            objects += 1
            own, found = mark_in_pixels(obj, size), mark_in_pixels(seen[obj.cell], size)
            right += (own is None) == (found is None)
            if own is not None and found is not None:
                present += 1
                near += math.dist(own, found) < 0.5
    print(f"{size}: {right} of {objects} objects right, {near} of {present} marks within half a pixel")
    assert wrong_in_plain == 0
    assert present > SCENES
    assert right >= 0.99 * objects
    assert near >= 0.99 * present


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("color", COLORS)
def test_every_object_can_have_a_mark_inside_it_that_keeps_its_colour(
    shape: str, size: str, color: str
) -> None:
    rng = random.Random(f"{shape} {size} {color}")
    for _ in range(5):
        fresh = sample_object(rng, (1, 1), held_out=None)
        obj = replace(fresh, shape=shape, size=size, color=color)
        mark = sample_mark(rng, obj)
        assert mark is not None
        assert RADII[0] <= mark.radius <= RADII[1]
        assert abs(mark.level) in LEVELS
        assert nearest_color(obj.mark_rgb(mark.level)) == color
        # the whole disc, and a margin
        reach = SIZES[size] * obj.traits.scale
        around = [math.tau * part / 32 for part in range(32)]
        xs, ys = (
            np.array([at + (mark.radius + MARGIN) / reach * turn(angle) for angle in around])
            for at, turn in ((mark.dx, math.cos), (mark.dy, math.sin))
        )
        assert DISTANCES[shape](xs, ys).max() < 1e-6


def test_most_marks_have_the_strongest_level() -> None:
    rng = random.Random("levels")
    scenes = [with_marks(rng, sample_scene(rng, held_out=None)) for _ in range(300)]
    objects = [obj for scene in scenes for obj in scene.objects]
    marks = [obj.mark for obj in objects if obj.mark is not None]
    assert 0.55 < len(marks) / len(objects) < 0.65
    assert sum(abs(mark.level) == LEVELS[0] for mark in marks) > 0.9 * len(marks)
    assert {mark.level > 0 for mark in marks} == {True, False}


def test_no_wording_tells_a_marked_scene_from_a_plain_one() -> None:
    rng = random.Random("words")
    for number in range(50):
        plain = sample_scene(rng, held_out=None)
        marked = with_marks(rng, plain, 1.0)
        assert captions.caption(marked) == captions.caption(plain)
        assert named(marked) == named(plain)
        assert Requirement.of(marked) == Requirement.of(plain)
        for kind in ("full", "terse", "caption"):
            texts = {prompts.word_scene(random.Random(number), scene, kind).text for scene in (plain, marked)}
            assert len(texts) == 1


def test_a_mark_changes_its_disc_alone() -> None:
    obj = SceneObject(shape="square", color="blue", size="big", cell=(1, 1))
    marked = replace(obj, mark=Mark(dx=0.3, dy=-0.2, radius=3.5 / 128, level=45))
    before, after = (render(Scene(objects=(each,), background="white")) for each in (obj, marked))
    changed = (before != after).any(-1)
    x, y = mark_in_pixels(marked, (128, 128)) or (0, 0)
    rows, columns = np.mgrid[:128, :128] + 0.5
    distance = np.hypot(rows - y, columns - x)
    assert changed[distance < 2.5].all()
    assert not changed[distance > 4.5].any()
    assert tuple(after[int(y), int(x)]) == (85, 115, 255)


def test_what_would_lie_beyond_the_outline_is_not_drawn() -> None:
    obj = SceneObject(shape="circle", color="blue", size="big", cell=(1, 1))
    marked = replace(obj, mark=Mark(dx=1.0, dy=0.0, radius=4 / 128, level=-45))
    before, after = (render(Scene(objects=(each,), background="white")) for each in (obj, marked))
    background = (before == 255).all(-1)
    assert (after[background] == 255).all()
    assert (before != after).any()


@pytest.mark.parametrize("blur", [0.7, 1.2])
def test_soft_plain_pictures_have_no_mark(blur: float) -> None:
    rng = random.Random(f"soft {blur}")
    for number in range(40):
        scene = sample_scene(rng, held_out=None)
        pixels = render(scene, *ASPECT_SIZES[number % 3])
        soft = ndimage.gaussian_filter(pixels.astype(float), (blur, blur, 0)).round().astype(np.uint8)
        assert all(obj.mark is None for obj in read_picture(soft).scene.objects), scene


def test_a_mark_that_moved_is_read_where_it_is() -> None:
    obj = SceneObject(shape="circle", color="red", size="big", cell=(0, 0))
    for dx in (-0.4, 0.0, 0.4):
        marked = replace(obj, mark=Mark(dx=dx, dy=0.1, radius=3.5 / 128, level=-45))
        (found,) = read_picture(render(Scene(objects=(marked,), background="gray"))).scene.objects
        assert found.mark is not None
        assert (found.mark.dx, found.mark.dy) == pytest.approx((dx, 0.1), abs=0.02)
        assert found.mark.radius * 128 == pytest.approx(3.5, abs=0.4)
        assert found.mark.level == pytest.approx(-45, abs=3)
