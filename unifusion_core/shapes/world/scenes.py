"""Scenes of the small world: what may stand in a picture, and how scenes are drawn at random.

A scene has *named* properties (shape, colour, size, place, background), which wordings speak of, and
*unnamed traits* (exact place, exact size, shade), which no wording ever mentions: only picture tokens can carry them.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass, field, replace

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 230),
    "yellow": (245, 220, 40),
    "purple": (140, 40, 170),
    "orange": (250, 130, 20),
    "cyan": (40, 210, 220),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "brown": (100, 62, 30),
    "pink": (255, 190, 205),
}
SIZES = {
    "small": 0.10,
    "big": 0.14,
}  # half of the longer side of the bounding box / shorter side of the picture
POSITIONS = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "center": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
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
ASPECT_SIZES = ((128, 128), (160, 112), (112, 160))  # (width, height) the embedded model is trained on

MAX_OFFSET = 0.014  # of the shorter side
MAX_SCALE = 0.04
MAX_SHADE = 20  # per channel, of 255
NUM_TRAITS = 6  # `Traits.relative`
MIN_DISTANCE = (
    65  # of a free colour from the background, in RGB: that of purple from gray, the weakest legal contrast
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What no wording mentions: `dx, dy` (of the shorter side), `scale` (factor), `shade` (added to the colour, 0..255)."""

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    shade: tuple[int, int, int] = (0, 0, 0)

    @property
    def relative(self) -> tuple[float, ...]:
        """dx, dy, scale and the three of shade as shares of their largest values, -1..1."""
        place_and_size = (self.dx / MAX_OFFSET, self.dy / MAX_OFFSET, (self.scale - 1) / MAX_SCALE)
        return (*place_and_size, *(part / MAX_SHADE for part in self.shade))


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One object: its named properties and its unnamed traits. `cell` is (row, column) on the 3 x 3 grid."""

    shape: str
    color: str
    size: str
    cell: tuple[int, int]
    traits: Traits = field(default_factory=Traits)

    @property
    def position(self) -> str:
        return POSITION_NAMES[self.cell]

    @property
    def held_out(self) -> bool:
        return (self.color, self.shape) in HELD_OUT_PAIRS

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as drawn, shade included, 0..255."""
        r, g, b = (
            max(0, min(255, base + shade))
            for base, shade in zip(COLORS[self.color], self.traits.shade, strict=True)
        )
        return r, g, b


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Objects in distinct cells on a flat background."""

    objects: tuple[SceneObject, ...]
    background: str

    @property
    def held_out(self) -> bool:
        """True if any object is a (colour, shape) pair that the generator never trains on."""
        return any(o.held_out for o in self.objects)

    def in_raster_order(self) -> Scene:
        return replace(self, objects=tuple(sorted(self.objects, key=lambda o: o.cell)))


def sample_traits(rng: random.Random) -> Traits:
    """Unnamed traits within their limits, all equally likely."""

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
    """The scene with its objects in any colours, most of them between the named ones: as a name (the nearest one's) and a
    shade far beyond `MAX_SHADE`. No object is a held-out pair by its nearest name, none is hard to see."""
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


def sample_object(rng: random.Random, cell: tuple[int, int], *, held_out: bool | None = False) -> SceneObject:
    """A random object; `held_out` False: never a held-out pair, True: always one, None: any pair."""
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
    """A random scene of 1 to 3 objects in random order.

    `held_out` False: no held-out pair (what the generator trains on); True: at least one object is a held-out pair
    (what is evaluated); None: any pair (what the VLM, which stands for a pretrained one, may see).
    """
    count = num_objects or rng.randint(1, max_objects)
    cells = rng.sample(tuple(POSITION_NAMES), count)
    objects = [sample_object(rng, cell, held_out=False if held_out is False else None) for cell in cells]
    if held_out:
        i = rng.randrange(count)
        objects[i] = sample_object(rng, cells[i], held_out=True)
    return Scene(objects=tuple(objects), background=rng.choice(tuple(BACKGROUNDS)))
