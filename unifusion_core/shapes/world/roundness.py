"""How round the outline of an object is.

The outline is where the object's colour is half of the way to the background's, sought from outside along rays.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from .render import object_geometry
from .scenes import BACKGROUNDS, Scene, SceneObject

Array = np.ndarray

SIDE = 128
RAYS = 64
# in radii: where a ray begins, outside, and ends
REACH = (1.5, 0.5)
STEPS = 200


def distance_from_circle(picture: Array, obj: SceneObject, scene: Scene) -> float:
    """Largest distance of an object's outline from the best circle, share of that circle's radius.

    The image is square. Infinite if a ray finds no outline.
    """
    x, y, radius = object_geometry(obj, SIDE, SIDE)
    ground = np.array(BACKGROUNDS[scene.background], np.float64)
    way = np.array(obj.rgb, np.float64) - ground
    share = (picture.astype(np.float64) - ground) @ way / (way @ way)
    points = []
    for angle in np.arange(RAYS) * 2 * math.pi / RAYS:
        along = np.linspace(*REACH, STEPS) * radius
        # centres of pixels lie at halves
        rows, columns = y + along * math.sin(angle) - 0.5, x + along * math.cos(angle) - 0.5
        inside = ndimage.map_coordinates(share, [rows, columns], order=1, mode="nearest") >= 0.5
        if inside[0] or not inside.any():
            return math.inf
        first = along[int(inside.argmax())]
        points.append((first * math.cos(angle), first * math.sin(angle)))
    return _off_the_best_circle(np.array(points))


def _off_the_best_circle(points: Array) -> float:
    """Least squares for x² + y² = 2ax + 2by + c, the algebraic fit of a circle."""
    unknowns = np.column_stack([2 * points, np.ones(len(points))])
    (a, b, c), *_ = np.linalg.lstsq(unknowns, (points**2).sum(1), rcond=None)
    radius = math.sqrt(c + a * a + b * b)
    return float(np.abs(np.hypot(points[:, 0] - a, points[:, 1] - b) - radius).max() / radius)
