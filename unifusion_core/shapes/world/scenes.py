"""Scenes of coloured shapes: their properties, and how they are drawn at random.

A scene has *named* properties (shape, colour, size, place, background), which prompts mention, and *unnamed traits* (exact place,
exact size, shade), which no prompt mentions. Only image tokens can carry the traits.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ...zoo.tiny_limits import BACKGROUNDS, COLORS
from ...zoo.tiny_limits import CELLS as POSITIONS

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
# half of the bounding box's longer side / shorter side of the image
SIZES = {"small": 0.10, "big": 0.14}
CELL_CENTERS = (1 / 6, 1 / 2, 5 / 6)
POSITION_NAMES = {cell: name for name, cell in POSITIONS.items()}
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("green", "circle"),
        ("blue", "triangle"),
        ("yellow", "square"),
        ("purple", "cross"),
        ("orange", "diamond"),
    }
)
# (width, height) in pixels that the embedded model is trained on
ASPECT_SIZES = ((128, 128), (160, 112), (112, 160))

# share of the shorter side
MAX_OFFSET = 0.014
MAX_SCALE = 0.04
# per channel, 0..255
MAX_SHADE = 20
# length of `Traits.relative`
NUM_TRAITS = 6
# RGB distance of a free colour from the background: that of purple from gray, the weakest contrast of named colours
MIN_DISTANCE = 65


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """The unnamed traits of an object.

    dx, dy  offset from the cell's centre, share of the shorter side
    scale   factor on the size
    shade   added to the colour, per channel, 0..255
    """

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    shade: tuple[int, int, int] = (0, 0, 0)

    @property
    def relative(self) -> tuple[float, ...]:
        """dx, dy, scale and the channels of shade, each divided by its maximum: -1..1."""
        place_and_size = (self.dx / MAX_OFFSET, self.dy / MAX_OFFSET, (self.scale - 1) / MAX_SCALE)
        return (*place_and_size, *(part / MAX_SHADE for part in self.shade))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A small disc on an object, which no wording mentions (marks.py).

    dx, dy  its centre from the object's, share of the object's radius
    radius  share of the shorter side
    level   added to every channel of the object's colour, 0..255; negative = darker
    """

    dx: float
    dy: float
    radius: float
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One object with its named properties and unnamed traits; `cell` is (row, column) on the 3 x 3 grid."""

    shape: str
    color: str
    size: str
    cell: tuple[int, int]
    traits: Traits = field(default_factory=Traits)
    mark: Mark | None = None

    @property
    def position(self) -> str:
        return POSITION_NAMES[self.cell]

    @property
    def held_out(self) -> bool:
        return (self.color, self.shape) in HELD_OUT_PAIRS

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The rendered colour, shade included, 0..255."""
        r, g, b = (
            max(0, min(255, base + shade))
            for base, shade in zip(COLORS[self.color], self.traits.shade, strict=True)
        )
        return r, g, b

    def mark_rgb(self, level: int) -> tuple[int, int, int]:
        """The colour of a mark of this level, 0..255."""
        r, g, b = (max(0, min(255, part + level)) for part in self.rgb)
        return r, g, b


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Objects in distinct cells on a flat background."""

    objects: tuple[SceneObject, ...]
    background: str

    @property
    def held_out(self) -> bool:
        """True if any object is a (colour, shape) pair that the generator is never trained on."""
        return any(o.held_out for o in self.objects)

    def in_raster_order(self) -> Scene:
        return replace(self, objects=tuple(sorted(self.objects, key=lambda o: o.cell)))


def sample_traits(rng: random.Random) -> Traits:
    """Random traits, uniform within their limits."""

    def shade() -> int:
        return rng.randint(-MAX_SHADE, MAX_SHADE)

    return Traits(
        dx=rng.uniform(-MAX_OFFSET, MAX_OFFSET),
        dy=rng.uniform(-MAX_OFFSET, MAX_OFFSET),
        scale=rng.uniform(1 - MAX_SCALE, 1 + MAX_SCALE),
        shade=(shade(), shade(), shade()),
    )


def nearest_color(rgb: tuple[int, int, int]) -> str:
    """The name of the colour nearest to an RGB value."""
    return min(COLORS, key=lambda name: math.dist(rgb, COLORS[name]))


def with_free_colors(rng: random.Random, scene: Scene) -> Scene:
    """The scene with its objects in random colours, most of them between the named ones.

    A free colour is stored as the nearest name and a shade beyond `MAX_SHADE`. No object is a held-out pair by that name, and
    none is hard to see.
    """
    ground = BACKGROUNDS[scene.background]
    objects = []
    for obj in scene.objects:
        while True:
            hsv = rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.4, 1.0)
            r, g, b = (round(255 * part) for part in colorsys.hsv_to_rgb(*hsv))
            name = nearest_color((r, g, b))
            if (name, obj.shape) not in HELD_OUT_PAIRS and math.dist((r, g, b), ground) > MIN_DISTANCE:
                break
        base = COLORS[name]
        shade = (r - base[0], g - base[1], b - base[2])
        objects.append(replace(obj, color=name, traits=replace(obj.traits, shade=shade)))
    return replace(scene, objects=tuple(objects))


def free_rgb(rng: random.Random) -> tuple[int, int, int]:
    """A colour from anywhere in RGB."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def with_free_rgb(rng: random.Random, scene: Scene) -> Scene:
    """The scene with its objects in colours from anywhere in RGB, stored as a name and a shade; for an autoencoder, which knows
    no names."""

    def colored(obj: SceneObject) -> SceneObject:
        rgb, base = free_rgb(rng), COLORS[obj.color]
        shade = (rgb[0] - base[0], rgb[1] - base[1], rgb[2] - base[2])
        return replace(obj, traits=replace(obj.traits, shade=shade))

    return replace(scene, objects=tuple(map(colored, scene.objects)))


def sample_object(rng: random.Random, cell: tuple[int, int], *, held_out: bool | None = False) -> SceneObject:
    """A random object; `held_out` False: not a held-out pair, True: a held-out pair, None: any pair."""
    if held_out:
        color, shape = rng.choice(sorted(HELD_OUT_PAIRS))
    else:
        color, shape = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
        while held_out is False and (color, shape) in HELD_OUT_PAIRS:
            color, shape = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
    return SceneObject(
        shape=shape, color=color, size=rng.choice(tuple(SIZES)), cell=cell, traits=sample_traits(rng)
    )


def sample_scene(
    rng: random.Random, *, num_objects: int | None = None, held_out: bool | None = False, max_objects: int = 3
) -> Scene:
    """A random scene of 1 to `max_objects` objects in random order.

    held_out  False: no held-out pair, as in the generator's training; True: at least one, as in evaluation; None: any pair, as in
              the VLM's training
    """
    count = num_objects or rng.randint(1, max_objects)
    cells = rng.sample(tuple(POSITION_NAMES), count)
    objects = [sample_object(rng, cell, held_out=False if held_out is False else None) for cell in cells]
    if held_out:
        i = rng.randrange(count)
        objects[i] = sample_object(rng, cells[i], held_out=True)
    return Scene(objects=tuple(objects), background=rng.choice(tuple(BACKGROUNDS)))


def sample_source(rng: random.Random, held_out: bool | None, num_objects: int | None = None) -> Scene:
    """A random scene in raster order, as an instruction's image; `held_out` False: no held-out pair, else any pair."""
    pairs = False if held_out is False else None
    return sample_scene(rng, num_objects=num_objects, held_out=pairs).in_raster_order()


def free_cell(rng: random.Random, scene: Scene) -> tuple[int, int]:
    """A random cell without an object."""
    taken = {o.cell for o in scene.objects}
    return rng.choice([cell for cell in POSITION_NAMES if cell not in taken])


def moved(rng: random.Random, obj: SceneObject, cell: tuple[int, int]) -> SceneObject:
    """The object in another cell, at a new random offset from the cell's centre."""
    fresh = sample_traits(rng)
    return replace(obj, cell=cell, traits=replace(obj.traits, dx=fresh.dx, dy=fresh.dy))


def another(rng: random.Random, values: Iterable[str], value: str) -> str:
    """Any of the values but this one."""
    return rng.choice([v for v in values if v != value])
