"""Render a scene: anti-aliased shapes from signed distances, exact to a fraction of a pixel."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .scenes import BACKGROUNDS, CELL_CENTERS, SIZES, Scene, SceneObject

# inner radius / outer radius
STAR_INNER_RADIUS = 0.45
# half width / half height
DIAMOND_HALF_WIDTH = 0.72
# half width of an arm / half side
CROSS_ARM = 0.34

Array = np.ndarray
_HALF_SQRT3 = math.sqrt(3) / 2


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _square(x: Array, y: Array) -> Array:
    return np.maximum(abs(x), abs(y)) - 1


def _triangle(x: Array, y: Array) -> Array:
    # equilateral, side 2, apex up, centred on its bounding box (height sqrt 3); y points down
    return np.maximum(y - _HALF_SQRT3, _HALF_SQRT3 * abs(x) - 0.5 * (y + _HALF_SQRT3))


def _star(x: Array, y: Array) -> Array:
    # the bounding box is 2 wide
    outer = 1 / math.sin(math.radians(72))
    height = outer * (1 + math.cos(math.radians(36)))
    # from the centre of the box to the centre of the star
    y = y - outer + height / 2
    # 0 at the upper tip
    angle = np.arctan2(x, -y)
    sector = math.radians(72)
    # mirrored into half a spike: 0 at a tip, 36 degrees at a notch
    angle = abs((angle + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    half = math.radians(36)
    inner = outer * STAR_INNER_RADIUS
    du, dv = inner * math.cos(half) - outer, inner * math.sin(half)
    length = math.hypot(du, dv)
    # signed distance to the edge from tip to notch
    return (dv * (u - outer) - du * v) / length


def _diamond(x: Array, y: Array) -> Array:
    w = DIAMOND_HALF_WIDTH
    return (abs(x) + w * abs(y) - w) / math.hypot(1, w)


def _cross(x: Array, y: Array) -> Array:
    across = np.maximum(abs(x) - 1, abs(y) - CROSS_ARM)
    down = np.maximum(abs(x) - CROSS_ARM, abs(y) - 1)
    return np.minimum(across, down)


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "diamond": _diamond,
    "cross": _cross,
}


def shape_coverage(shape: str, *, radius: float, center: tuple[float, float], size: tuple[int, int]) -> Array:
    """Share of each pixel that the shape covers, 0..1, (height, width). `radius` and `center` (x, y) are in pixels."""
    width, height = size
    x = (np.arange(width) + 0.5 - center[0]) / radius
    y = (np.arange(height) + 0.5 - center[1]) / radius
    distance = DISTANCES[shape](x[None, :] + 0 * y[:, None], y[:, None] + 0 * x[None, :])
    return np.clip(0.5 - distance * radius, 0, 1)


def object_geometry(obj: SceneObject, width: int, height: int) -> tuple[float, float, float]:
    """Centre x, centre y and radius (half the longer side of the bounding box) in pixels, traits included."""
    short = min(width, height)
    row, column = obj.cell
    x = CELL_CENTERS[column] * width + obj.traits.dx * short
    y = CELL_CENTERS[row] * height + obj.traits.dy * short
    return x, y, SIZES[obj.size] * obj.traits.scale * short


def mark_geometry(obj: SceneObject, width: int, height: int) -> tuple[float, float, float] | None:
    """Centre x, centre y and radius of an object's mark in pixels; None if it has none."""
    if obj.mark is None:
        return None
    x, y, radius = object_geometry(obj, width, height)
    return x + obj.mark.dx * radius, y + obj.mark.dy * radius, obj.mark.radius * min(width, height)


def render(
    scene: Scene, width: int = 128, height: int = 128, *, ground: tuple[int, int, int] | None = None
) -> Array:
    """The image of a scene, (height, width, 3) uint8. `ground`: a colour in place of the named background."""
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = ground or BACKGROUNDS[scene.background]
    for obj in scene.objects:
        x, y, radius = object_geometry(obj, width, height)
        left, right = max(0, int(x - radius - 2)), min(width, int(x + radius + 3))
        top, bottom = max(0, int(y - radius - 2)), min(height, int(y + radius + 3))
        cover = shape_coverage(
            obj.shape, radius=radius, center=(x - left, y - top), size=(right - left, bottom - top)
        )[..., None]
        region = canvas[top:bottom, left:right]
        region += cover * (np.array(obj.rgb, np.float32) - region)
        if obj.mark is not None and (place := mark_geometry(obj, width, height)):
            mark_x, mark_y, mark_radius = place
            # what would lie beyond the outline is cut off
            cover = (
                cover
                * shape_coverage(
                    "circle",
                    radius=mark_radius,
                    center=(mark_x - left, mark_y - top),
                    size=(right - left, bottom - top),
                )[..., None]
            )
            region += cover * (np.array(obj.mark_rgb(obj.mark.level), np.float32) - region)
    return np.round(canvas).astype(np.uint8)


def render_tensor(scene: Scene, width: int = 128, height: int = 128) -> Float[Tensor, "3 H W"]:
    """The image of a scene as models take it, 0..1."""
    return torch.from_numpy(render(scene, width, height)).permute(2, 0, 1).float() / 255
