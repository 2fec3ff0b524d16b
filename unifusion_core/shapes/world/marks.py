"""Marks: small discs on objects, a little darker or lighter than their object, at a place that no wording mentions.

They are too small for a thumbnail, so only tiles can carry them. This file puts them on scenes, and finds them in images.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from scipy import ndimage

from .render import DISTANCES
from .scenes import SIZES, Mark, Scene, SceneObject, nearest_color

Array = np.ndarray

# share of the shorter side: 3 to 4 pixels of 128
RADII = (3 / 128, 4 / 128)
# between a mark and the outline of its object, share of the shorter side
MARGIN = 1 / 128
LEVEL = 45
# of a mark, in this order of preference: the strongest that keeps the colour's name
LEVELS = (45, 40, 35)
# of objects in scenes with marks
SHARE = 0.6
# pixels of 128: a mark that is found within them is at its place
NEAR = 2.0
# random places that are tried on an object
TRIES = 1000

# Finding. Lengths are in pixels at 128 px, and colours in levels.
# a pixel belongs to a mark if its colour is this share of the way to the mark's, at least and at most
REACHED = 0.5
BEYOND = 1.6
# and off this way by at most so much in a channel
MAX_OFF = 18
# of a found mark: the middle of a blurred small star is up to 28 levels darker than what is around it
MIN_LEVEL = 30
# radius of a found disc
FOUND_RADII = (2.1, 5.2)
# share of its pixels in the disc of its area
MIN_ROUND = 0.88
# pixels beyond `REACHED`, share of a disc's area with its soft edge
MIN_FULL = 0.55
# share of the ring around it that is not of the mark's colour
MIN_ENCLOSED = 0.7


def sample_mark(rng: random.Random, obj: SceneObject) -> Mark | None:
    """A mark at a random place inside the object; None if every level would change the name of its colour."""
    fitting = [
        s * level for level in LEVELS for s in (1, -1) if nearest_color(obj.mark_rgb(s * level)) == obj.color
    ]
    if not fitting:
        return None
    # both signs where both fit at the first level that has any
    level = rng.choice([each for each in fitting if abs(each) == abs(fitting[0])])
    own_radius = SIZES[obj.size] * obj.traits.scale
    for _ in range(TRIES):
        dx, dy = rng.uniform(-1, 1), rng.uniform(-1, 1)
        room = -float(DISTANCES[obj.shape](np.array([dx]), np.array([dy]))[0]) * own_radius - MARGIN
        if room >= RADII[0]:
            radius = rng.uniform(RADII[0], min(RADII[1], room))
            return Mark(dx=dx, dy=dy, radius=radius, level=level)
    raise AssertionError(f"no room for a mark was found on {obj}")


def with_marks(rng: random.Random, scene: Scene, share: float = SHARE) -> Scene:
    """The scene with marks on this share of its objects."""
    objects = tuple(
        replace(obj, mark=sample_mark(rng, obj)) if rng.random() < share else obj for obj in scene.objects
    )
    return replace(scene, objects=objects)


@dataclass(frozen=True, slots=True)
class FoundMark:
    """A mark in an image: centre and radius in pixels, the level added to its object's colour, and its pixels."""

    x: float
    y: float
    radius: float
    level: int
    pixels: Array


def find_mark(image: Array, rgb: Array, owned: Array, unit: float) -> FoundMark | None:
    """The clearest mark in the pixels of one object.

    image   3 H W, 0..255
    rgb     the object's colour
    owned   H W, True where a pixel is the object's
    unit    pixels of the image per pixel at 128
    """
    found = [_disc(image, rgb, owned, sign, unit) for sign in (1, -1)]
    # the one whose pixels are more
    return max((each for each in found if each is not None), key=lambda each: each.pixels.sum(), default=None)


def _disc(image: Array, rgb: Array, owned: Array, sign: int, unit: float) -> FoundMark | None:
    """The largest disc of a colour that is lighter (sign 1) or darker (-1) than the object's."""
    share, on_way = _share(image, rgb, sign)
    seen = owned & on_way & (share >= REACHED) & (share <= BEYOND)
    # thin lines are soft outlines
    parts, count = cast("tuple[Array, int]", ndimage.label(ndimage.binary_opening(seen)))
    # a frame, because an object may touch the end of the window
    depth = cast("Array", ndimage.distance_transform_edt(np.pad(owned, 1)))[1:-1, 1:-1]
    best: FoundMark | None = None
    for part in range(1, count + 1):
        each = _measure(np.asarray(parts == part), share * (on_way & owned), sign, unit)
        if each is None or (best is not None and each.pixels.sum() <= best.pixels.sum()):
            continue
        # the tip of a soft star has a mark's colour, too
        if depth[int(each.y), int(each.x)] >= each.radius and _is_alone(each, seen):
            best = each
    return best


def _share(image: Array, rgb: Array, sign: int) -> tuple[Array, Array]:
    """How far each pixel is on the way from the object's colour to a mark's, and whether it is on that way."""
    way = np.clip(rgb + sign * LEVEL, 0, 255) - rgb
    off = image - rgb[:, None, None]
    share = np.tensordot(way / max(float(way @ way), 1.0), off, 1)
    return share, np.abs(off - share * way[:, None, None]).max(0) <= MAX_OFF


def _measure(part: Array, share: Array, sign: int, unit: float) -> FoundMark | None:
    """A part as a disc; None if it is none."""
    low, high = (math.pi * (radius * unit) ** 2 for radius in FOUND_RADII)
    # its soft edge counts by its share
    around = ndimage.binary_dilation(part, np.ones((3, 3)))
    weight = np.clip(share, 0, 1) * around
    area = float(weight.sum())
    if not low <= area <= high:
        return None
    rows, columns = np.mgrid[: part.shape[0], : part.shape[1]] + 0.5
    y, x = float((rows * weight).sum() / area), float((columns * weight).sum() / area)
    radius = math.sqrt(area / math.pi)
    inside = np.hypot(rows - y, columns - x) <= radius + 0.5 * unit
    if (part & inside).sum() < MIN_ROUND * part.sum() or part.sum() < MIN_FULL * area:
        return None
    level = round(sign * LEVEL * float(np.median(share[part])))
    if abs(level) < MIN_LEVEL:
        return None
    return FoundMark(
        x=x, y=y, radius=radius, level=level, pixels=np.hypot(rows - y, columns - x) <= radius + 1.5 * unit
    )


def _is_alone(mark: FoundMark, seen: Array) -> bool:
    """Whether what lies around a disc is not of its colour."""
    rows, columns = np.mgrid[: seen.shape[0], : seen.shape[1]] + 0.5
    distance = np.hypot(rows - mark.y, columns - mark.x)
    ring = (distance > mark.radius + 1) & (distance <= mark.radius + 2.5)
    return not ring.any() or float(seen[ring].mean()) <= 1 - MIN_ENCLOSED


def at_object(mark: FoundMark, x: float, y: float, radius: float, short: int) -> Mark:
    """The mark as its object has it: the object's centre and radius are in pixels, as the mark's."""
    return Mark(
        dx=(mark.x - x) / radius, dy=(mark.y - y) / radius, radius=mark.radius / short, level=mark.level
    )
