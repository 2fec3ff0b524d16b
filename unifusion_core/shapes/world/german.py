"""Prompts in German, for the style that translates: what the embedded VLM knows of another language."""

from __future__ import annotations

import random

from .scenes import Scene, SceneObject

_NOUNS = {  # and the endings of adjectives before them
    "circle": ("kreis", "ein", "er"),
    "square": ("quadrat", "ein", "es"),
    "triangle": ("dreieck", "ein", "es"),
    "star": ("stern", "ein", "er"),
    "diamond": ("raute", "eine", "e"),
    "cross": ("kreuz", "ein", "es"),
}
_COLORS = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "purple": "violett",
    "orange": "orange",
    "cyan": "türkis",
}
_SIZES = {"small": "klein", "big": "groß"}
_BACKGROUNDS = {"white": "weiß", "black": "schwarz", "gray": "grau", "brown": "braun", "pink": "rosa"}
_UNBENT = ("orange", "rosa")  # colours without endings
_PLACES = {
    "top left": "oben links",
    "top": "oben",
    "top right": "oben rechts",
    "left": "links",
    "center": "in der mitte",
    "right": "rechts",
    "bottom left": "unten links",
    "bottom": "unten",
    "bottom right": "unten rechts",
}


def german_prompt(rng: random.Random, scene: Scene) -> str:
    """The whole scene in German, objects in the scene's order: "ein großer roter kreis oben links, weißer hintergrund"."""
    article = rng.random() < 0.7
    objects = [_describe(o, article=article) for o in scene.objects]
    listed = (
        f"{', '.join(objects[:-1])} und {objects[-1]}" if len(objects) > 1 and rng.random() < 0.5 else None
    )
    text = listed or ", ".join(objects)
    bare = _BACKGROUNDS[scene.background]
    bent = bare if bare in _UNBENT else f"{bare}er"
    dative = bare if bare in _UNBENT else f"{bare}em"
    return text + rng.choice(
        (f", {bent} hintergrund", f" auf {dative} hintergrund", f", der hintergrund ist {bare}")
    )


def _describe(obj: SceneObject, *, article: bool) -> str:
    noun, indefinite, ending = _NOUNS[obj.shape]
    color = _COLORS[obj.color]
    bent = color if color in _UNBENT else color + ending
    phrase = f"{_SIZES[obj.size]}{ending} {bent} {noun} {_PLACES[obj.position]}"
    return f"{indefinite} {phrase}" if article else phrase
