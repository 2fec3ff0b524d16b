"""The scorer reads rendered scenes, tolerates the softness of a decoder, and detects every deliberate error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from scipy import ndimage

from unifusion_core.shapes.world.render import DISTANCES, render
from unifusion_core.shapes.world.scenes import (
    ASPECT_SIZES,
    BACKGROUNDS,
    COLORS,
    MAX_OFFSET,
    MAX_SCALE,
    MAX_SHADE,
    POSITION_NAMES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Traits,
    sample_object,
    sample_scene,
)
from unifusion_core.shapes.world.scorer import named, psnr, read_picture, trait_errors

Array = np.ndarray
COUNTS = [pytest.param(250, id="250"), pytest.param(2500, id="2500", marks=pytest.mark.slow)]
SOFTNESS = [
    (0.0, 0, 0.0),
    (0.7, 6, 0.0),
    (1.0, 6, 0.0),
    (0.7, 6, 0.4),
]  # blur (pixels), noise (levels), ringing


def soften(picture: Array, seed: int, *, blur: float = 0.7, noise: int = 6, ringing: float = 0.0) -> Array:
    """What a decoder may do to a picture."""
    soft = picture.astype(np.float32)
    soft = ndimage.gaussian_filter(soft, (blur, blur, 0)) if blur else soft
    soft += ringing * (soft - ndimage.gaussian_filter(soft, (2, 2, 0)))
    soft += np.random.default_rng(seed).uniform(-noise, noise, soft.shape)
    return np.clip(np.round(soft), 0, 255).astype(np.uint8)


def draw(outline: Callable[[Array, Array], Array], radius: float, color: str = "blue") -> Array:
    """Any outline in the middle of a white picture."""
    y, x = np.mgrid[:128, :128] + 0.5
    cover = np.clip(0.5 - outline((x - 64) / radius, (y - 64) / radius) * radius, 0, 1)[..., None]
    white = np.array(BACKGROUNDS["white"])
    return np.round(white + cover * (np.array(COLORS[color]) - white)).astype(np.uint8)


def mix(a: Array, b: Array, share: float = 0.5) -> Array:
    return np.round((1 - share) * a.astype(np.float32) + share * b).astype(np.uint8)


def single(shape: str, color: str = "blue", background: str = "white", *, size: str = "big") -> Scene:
    return Scene(
        objects=(SceneObject(shape=shape, color=color, size=size, cell=(1, 1)),), background=background
    )


def scenes(count: int, seed: int, *, max_objects: int = 3) -> list[tuple[Scene, tuple[int, int]]]:
    rng = random.Random(seed)
    sizes = [ASPECT_SIZES[i % len(ASPECT_SIZES)] for i in range(count)]
    return [(sample_scene(rng, held_out=None, max_objects=max_objects), size) for size in sizes]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("blur", "noise", "ringing"), SOFTNESS)
def test_reads_what_was_drawn(count: int, blur: float, noise: int, ringing: float) -> None:
    exact, place, radius, shade = 0, [], [], []
    for i, (scene, size) in enumerate(scenes(count, seed=1, max_objects=4)):
        reading = read_picture(soften(render(scene, *size), i, blur=blur, noise=noise, ringing=ringing))
        exact += reading.shows(scene)
        errors = trait_errors(reading.scene, scene, size=size).matched
        place += [e.place for e in errors]
        radius += [e.radius for e in errors]
        shade += [e.shade for e in errors]
    assert exact >= 0.995 * count
    assert np.quantile(place, 0.99) <= 0.003
    assert np.quantile(radius, 0.99) <= 0.015
    assert np.median(shade) <= 3


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_shade_of_every_color_gets_its_name(background: str) -> None:
    rng = random.Random(2)
    shades = list(product((-MAX_SHADE, MAX_SHADE), repeat=3))
    for i, (color, shade) in enumerate(product(COLORS, shades)):
        obj = replace(sample_object(rng, (1, 1)), color=color, traits=Traits(shade=shade))
        scene = Scene(objects=(obj,), background=background)
        reading = read_picture(soften(render(scene), i))
        assert reading.shows(scene), (color, shade, reading.problems)


def test_forgives_colors_that_are_off() -> None:
    rng = np.random.default_rng(3)
    cases = scenes(100, seed=3)
    seen = 0
    for i, (scene, size) in enumerate(cases):
        off = soften(render(scene, *size), i).astype(np.float32) + rng.uniform(-20, 20, 3)
        seen += read_picture(np.clip(np.round(off), 0, 255).astype(np.uint8)).shows(scene)
    assert seen >= 0.98 * len(cases)


def test_forgives_a_wavering_outline() -> None:
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[:128, :128]
    seen = 0
    for scene, _ in scenes(60, seed=4):
        waves = [ndimage.gaussian_filter(rng.normal(size=(128, 128)), 3) for _ in range(2)]
        at = [axis + 0.3 * wave / wave.std() for axis, wave in zip((rows, columns), waves, strict=True)]
        picture = render(scene).astype(np.float32)
        bent = np.stack(
            [ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in picture.transpose(2, 0, 1)]
        )
        seen += read_picture(np.round(bent.transpose(1, 2, 0)).astype(np.uint8)).shows(scene)
    assert seen >= 59


@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_parts_neighbours_that_almost_touch(blur: float) -> None:
    for shape, (a, b) in product(("square", "cross"), combinations(COLORS, 2)):
        scale = 1 + MAX_SCALE
        left = SceneObject(
            shape=shape, color=a, size="big", cell=(1, 0), traits=Traits(dx=MAX_OFFSET, scale=scale)
        )
        right = SceneObject(
            shape=shape, color=b, size="big", cell=(1, 1), traits=Traits(dx=-MAX_OFFSET, scale=scale)
        )
        for background, size in (("white", (128, 128)), ("black", (112, 160))):
            scene = Scene(objects=(left, right), background=background)
            reading = read_picture(soften(render(scene, *size), 0, blur=blur))
            assert reading.shows(scene), (a, b, background, reading.problems)


def other(rng: random.Random, names: Iterable[str], name: str) -> str:
    return rng.choice([n for n in names if n != name])


def changed(scene: Scene, change: str, rng: random.Random) -> Scene:
    """The scene with one thing wrong."""
    index = rng.randrange(len(scene.objects))
    obj = scene.objects[index]
    free = [cell for cell in POSITION_NAMES if cell not in {o.cell for o in scene.objects}]
    if change == "background":
        return replace(scene, background=other(rng, BACKGROUNDS, scene.background))
    if change == "extra":
        return replace(scene, objects=(*scene.objects, sample_object(rng, rng.choice(free), held_out=None)))
    rest = scene.objects[:index] + scene.objects[index + 1 :]
    if change == "missing":
        return replace(scene, objects=rest)
    wrong = {
        "shape": lambda: replace(obj, shape=other(rng, SHAPES, obj.shape)),
        "color": lambda: replace(obj, color=other(rng, COLORS, obj.color)),
        "size": lambda: replace(obj, size=other(rng, SIZES, obj.size)),
        "cell": lambda: replace(obj, cell=rng.choice(free)),
    }[change]()
    return replace(scene, objects=(*rest, wrong))


@pytest.mark.parametrize(
    "count", [pytest.param(100, id="100"), pytest.param(700, id="700", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("change", ["shape", "color", "size", "cell", "extra", "missing", "background"])
def test_sees_what_is_wrong(count: int, change: str) -> None:
    rng = random.Random(5)
    unseen = 0
    for i, (scene, size) in enumerate(scenes(count, seed=5)):
        wrong = changed(scene, change, rng)
        reading = read_picture(soften(render(wrong, *size), i))
        unseen += reading.shows(scene) or named(reading.scene) == named(scene)
        assert reading.shows(wrong) or not wrong.objects, reading.problems
    assert unseen == 0


@pytest.mark.parametrize("size", SIZES)
def test_half_of_each_of_two_shapes_is_unreadable(size: str) -> None:
    for a, b in combinations(SHAPES, 2):
        picture = mix(render(single(a, size=size)), render(single(b, size=size)))
        assert not read_picture(soften(picture, 0)).readable, (a, b)


def test_a_shape_between_two_shapes_is_mostly_unreadable() -> None:
    readable = 0
    pairs = list(combinations(SHAPES, 2))
    for (a, b), radius in product(pairs, (12.8, 18)):
        picture = draw(lambda x, y, a=a, b=b: 0.5 * (DISTANCES[a](x, y) + DISTANCES[b](x, y)), radius)
        readable += read_picture(picture).readable
    assert readable <= 0.2 * 2 * len(pairs)  # between square and cross lies something very like a circle


def test_two_colors_in_one_object_are_unreadable() -> None:
    for shape, (a, b) in product(SHAPES, combinations(COLORS, 2)):
        picture = render(single(shape, a))
        picture[:, 64:] = render(single(shape, b))[:, 64:]
        assert not read_picture(soften(picture, 0)).readable, (shape, a, b)


def test_a_faint_object_is_unreadable_or_misnamed() -> None:
    cases = list(product(SHAPES, COLORS, BACKGROUNDS))
    passed = [
        (shape, color, background)
        for shape, color, background in cases
        if read_picture(
            mix(render(single(shape, color, background)), render(Scene(objects=(), background=background)))
        ).shows(single(shape, color, background))
    ]
    assert len(passed) <= 0.05 * len(cases), passed


def test_a_very_blurred_picture_is_unreadable() -> None:
    readable = sum(
        read_picture(soften(render(scene, *size), i, blur=4, noise=0)).readable
        for i, (scene, size) in enumerate(scenes(60, seed=6))
    )
    assert readable <= 3


def noise_picture(rng: np.random.Generator) -> Array:
    return rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)


def with_block(rows: slice, columns: slice, color: tuple[int, int, int]) -> Array:
    picture = render(single("circle"))
    picture[rows, columns] = color
    return picture


UNREADABLE = {
    "nothing drawn": render(Scene(objects=(), background="pink")),
    "noise": noise_picture(np.random.default_rng(7)),
    "a speck": with_block(slice(10, 15), slice(10, 15), (0, 0, 0)),
    "a scratch": with_block(slice(10, 11), slice(10, 60), (0, 0, 0)),
    "a hole": with_block(slice(60, 66), slice(60, 66), (255, 255, 255)),
    "a bar across": with_block(slice(60, 68), slice(0, 128), (0, 0, 0)),
    "a strip of another color": with_block(slice(0, 30), slice(0, 128), BACKGROUNDS["gray"]),
    "an unnamed background": np.where(render(single("star")) == 255, 200, render(single("star"))).astype(
        np.uint8
    ),
    "a slope as background": np.clip(
        render(single("star", background="gray")) + np.linspace(-40, 40, 128)[:, None, None], 0, 255
    ).astype(np.uint8),
    "an unnamed color": np.where(render(single("square")) < 255, 100, 255).astype(np.uint8),
    "between two cells": np.roll(render(single("star")), 21, axis=1),
    "cut off by the border": np.roll(render(single("square")), 55, axis=0)[64:],
    "far too large": draw(DISTANCES["circle"], 30),
    "far too small": draw(DISTANCES["circle"], 6),
    "turned by 20 degrees": draw(
        lambda x, y: DISTANCES["square"](0.94 * x + 0.342 * y, 0.94 * y - 0.342 * x), 16
    ),
    "squeezed": draw(lambda x, y: DISTANCES["cross"](x, 1.4 * y), 18),
    "two in one cell": mix(*[np.roll(draw(DISTANCES["circle"], 8), s, axis=1) for s in (-11, 11)], share=0.5),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_is_unreadable(what: str) -> None:
    reading = read_picture(UNREADABLE[what])
    assert not reading.readable, reading
    assert "background" not in what or not reading.background_clean


def test_trait_errors_measure_known_changes() -> None:
    rng = random.Random(8)
    for i, (scene, size) in enumerate(scenes(60, seed=8)):
        index = rng.randrange(len(scene.objects))
        obj = scene.objects[index]
        dx, dy, factor = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03), rng.uniform(0.93, 1.07)
        traits = replace(
            obj.traits,
            dx=obj.traits.dx / 2 + dx,
            dy=obj.traits.dy / 2 + dy,
            scale=factor,
            shade=tuple(-s for s in obj.traits.shade),
        )
        moved = replace(obj, traits=traits)
        wrong = replace(scene, objects=(*scene.objects[:index], moved, *scene.objects[index + 1 :]))
        reading = read_picture(soften(render(wrong, *size), i))
        errors = trait_errors(reading.scene, scene, size=size)
        assert (errors.missing, errors.extra) == (0, 0), reading.problems
        truth = trait_errors(wrong, scene, size=size)
        for seen, meant in zip(errors.matched, truth.matched, strict=True):
            assert seen.place == pytest.approx(meant.place, abs=0.003)
            assert seen.radius == pytest.approx(meant.radius, abs=0.015)
            assert seen.shade == pytest.approx(meant.shade, abs=3)
        assert truth.matched[index].place == pytest.approx(
            np.hypot(traits.dx - obj.traits.dx, traits.dy - obj.traits.dy), abs=1e-9
        )


def test_trait_errors_pair_equals_with_the_nearest_and_count_the_rest() -> None:
    def star(cell: tuple[int, int], dx: float = 0.0) -> SceneObject:
        return SceneObject(shape="star", color="blue", size="big", cell=cell, traits=Traits(dx=dx))

    cross = SceneObject(shape="cross", color="red", size="small", cell=(1, 1))
    reference = Scene(objects=(star((0, 0)), star((0, 2))), background="white")
    seen = Scene(objects=(star((0, 2), dx=0.01), cross, star((1, 0))), background="white")
    errors = trait_errors(seen, reference, size=(160, 112))
    assert (errors.missing, errors.extra) == (0, 1)
    assert [e.place for e in errors.matched] == pytest.approx([1 / 3, 0.01])
    alone = trait_errors(Scene(objects=(cross,), background="white"), reference)
    assert (alone.matched, alone.missing, alone.extra) == ((), 2, 1)


def test_psnr_of_a_known_error_is_known() -> None:
    a = np.full((4, 6, 3), 100, np.uint8)
    b = a + np.uint8(10)
    b[0] = 100
    rows = np.arange(4)[:, None] + np.zeros((1, 6), int)
    assert psnr(a, b, rows > 0) == pytest.approx(20 * np.log10(25.5))
    assert psnr(a, b) == pytest.approx(20 * np.log10(25.5) + 10 * np.log10(4 / 3))
    assert psnr(a, b, rows == 0) == float("inf")
    assert psnr(a, a) == float("inf")
