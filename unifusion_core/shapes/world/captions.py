"""The canonical caption of a scene, its variants, and the strict parser of the canonical one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, SceneObject

# in a parsed caption; one more than a random scene has
MAX_OBJECTS = 4


def caption(scene: Scene) -> str:
    """The canonical caption, objects in the scene's order: "big red circle at top left, white background."."""
    return _list_objects(scene, [f"{o.size} {o.color} {o.shape}" for o in scene.objects])


def brief_caption(scene: Scene) -> str:
    """A caption without sizes: "red circle at top left, white background."."""
    return _list_objects(scene, [f"{o.color} {o.shape}" for o in scene.objects])


def colorless_caption(scene: Scene) -> str:
    """A caption without colours, for free colours: "big circle at top left, white background."."""
    return _list_objects(scene, [f"{o.size} {o.shape}" for o in scene.objects])


def _list_objects(scene: Scene, names: Sequence[str]) -> str:
    """Name and place of each object, then the background."""
    placed = [f"{name} at {o.position}" for name, o in zip(names, scene.objects, strict=True)]
    return ", ".join([*placed, f"{scene.background} background."])


def sentence_caption(scene: Scene) -> str:
    """A caption in sentences: "there is a big red circle at top left. the background is white."."""
    objects = [f"there is a {o.size} {o.color} {o.shape} at {o.position}." for o in scene.objects]
    return " ".join([*objects, f"the background is {scene.background}."])


_OBJECT = re.compile(
    rf"({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) at ({'|'.join(POSITIONS)})"
)
_BACKGROUND = re.compile(rf"({'|'.join(BACKGROUNDS)}) background\.")


def parse_caption(text: str) -> Scene | None:
    """The exact inverse of `caption`; None for any other text and for two objects in one cell."""
    *parts, last = text.split(", ")
    background = _BACKGROUND.fullmatch(last)
    matches = [match for part in parts if (match := _OBJECT.fullmatch(part))]
    if background is None or len(matches) != len(parts) or not 1 <= len(parts) <= MAX_OBJECTS:
        return None
    objects = tuple(SceneObject(size=m[1], color=m[2], shape=m[3], cell=POSITIONS[m[4]]) for m in matches)
    if len({o.cell for o in objects}) < len(objects):
        return None
    return Scene(objects=objects, background=background[1])
