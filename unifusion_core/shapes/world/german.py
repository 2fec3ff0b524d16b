"""Prompts in German, for the style "translate to English"."""

from __future__ import annotations

import random

from .scenes import Scene, SceneObject

# noun, indefinite article, ending of an adjective between them
_NOUNS = {
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
# colours that take no ending
_INVARIABLE = ("orange", "rosa")
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
    """The whole scene in German, in the scene's order: "ein großer roter kreis oben links, weißer hintergrund"."""
    article = rng.random() < 0.7
    objects = [_describe(o, article=article) for o in scene.objects]
    listed = (
        f"{', '.join(objects[:-1])} und {objects[-1]}" if len(objects) > 1 and rng.random() < 0.5 else None
    )
    text = listed or ", ".join(objects)
    bare = _BACKGROUNDS[scene.background]
    nominative = bare if bare in _INVARIABLE else f"{bare}er"
    dative = bare if bare in _INVARIABLE else f"{bare}em"
    return text + rng.choice(
        (f", {nominative} hintergrund", f" auf {dative} hintergrund", f", der hintergrund ist {bare}")
    )


def _describe(obj: SceneObject, *, article: bool) -> str:
    noun, indefinite, ending = _NOUNS[obj.shape]
    color = _COLORS[obj.color]
    inflected = color if color in _INVARIABLE else color + ending
    phrase = f"{_SIZES[obj.size]}{ending} {inflected} {noun} {_PLACES[obj.position]}"
    return f"{indefinite} {phrase}" if article else phrase
