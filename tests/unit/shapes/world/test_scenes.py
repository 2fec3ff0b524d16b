"""Scenes with free colours."""

import math
import random

from unifusion_core.shapes.world.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    MAX_SHADE,
    nearest_color,
    sample_scene,
    with_free_colors,
)


def test_every_colour_is_nearest_to_itself() -> None:
    assert all(nearest_color(rgb) == name for name, rgb in COLORS.items())


def test_free_colours_lie_between_the_named_ones_and_hold_no_held_out_pair() -> None:
    rng = random.Random(0)
    beyond = total = 0
    pairs = set()
    for _ in range(400):
        scene = sample_scene(rng)
        free = with_free_colors(rng, scene)
        assert free.background == scene.background
        assert [(o.shape, o.size, o.cell) for o in free.objects] == [
            (o.shape, o.size, o.cell) for o in scene.objects
        ]
        assert not free.held_out
        for obj in free.objects:
            assert nearest_color(obj.rgb) == obj.color
            assert math.dist(obj.rgb, BACKGROUNDS[free.background]) > 60
            pairs.add((obj.color, obj.shape))
            total += 1
            beyond += max(map(abs, obj.traits.shade)) > MAX_SHADE
    assert beyond > 0.8 * total
    assert len(pairs) == 42 - len(HELD_OUT_PAIRS)
