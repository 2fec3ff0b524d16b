"""The words of prompts: synonyms and indirect words beside the names in `scenes`."""

from __future__ import annotations

from .scenes import POSITIONS, SHAPES

# Words that only a rewriter can resolve. The embedded VLM was trained on these and no others.
INDIRECT: dict[str, tuple[str, ...]] = {
    "red": ("blood", "a tomato"),
    "green": ("grass", "a leaf"),
    "blue": ("the sea", "the sky"),
    "yellow": ("a banana", "the sun"),
    "purple": ("a plum", "grapes"),
    "orange": ("a carrot", "a pumpkin"),
    "cyan": ("ice", "turquoise"),
    "circle": ("round shape", "disc", "ball"),
    "square": ("shape with four equal sides", "box"),
    "triangle": ("shape with three corners", "pyramid"),
    "star": ("shape with five points",),
    "diamond": ("rhombus", "kite"),
    "cross": ("plus sign",),
    "white": ("in the snow",),
    "black": ("at night", "in the dark"),
    "gray": ("in the fog",),
    "brown": ("on wood", "on soil"),
    "pink": ("on bubblegum",),
}

SIZE_WORDS = {"small": ("small", "small", "tiny", "little"), "big": ("big", "big", "large", "huge")}
NUMBERS = {2: ("two", "two", "2"), 3: ("three", "three", "3"), 4: ("four", "four", "4")}
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
OPENINGS = (
    *[""] * 6,
    "a picture of",
    "a picture of",
    "picture of",
    "a picture with",
    "an image of",
    "an image with",
    "a drawing of",
    "a scene with",
    "please draw",
    "draw",
    "draw me",
    "can you draw",
    "show me",
    "show",
    "i want",
    "i want to see",
    "i would like",
    "give me",
    "make",
    "create",
    "generate",
    "paint",
    "please paint",
)


def _corner_places(vertical: str, other: str, side: str) -> tuple[list[str], list[str]]:
    bare = [f"{vertical} {side}", f"{other} {side}", f"{vertical} {side} corner", f"{other} {side} corner"]
    prepositional = [
        f"at {vertical} {side}",
        f"at the {vertical} {side}",
        f"in the {vertical} {side}",
        f"in the {other} {side}",
        f"in the {vertical} {side} corner",
        f"in the {other} {side} corner",
    ]
    return bare, prepositional


def _edge_places(side: str, *, upright: bool) -> tuple[list[str], list[str]]:
    """Places along an edge; an upright edge is "on the left", since "left of" would be a relation."""
    if upright:
        bare = [side, f"center {side}", f"middle {side}"]
        return bare, [
            f"at {side}",
            f"on the {side}",
            f"on the {side} side",
            f"at the {side} edge",
            f"at center {side}",
        ]
    bare = [side, f"{side} center", f"{side} middle"]
    return bare, [
        f"at {side}",
        f"at the {side}",
        f"at the {side} edge",
        f"at the {side} center",
        f"at {side} center",
    ]


_PLACES: dict[str, tuple[list[str], list[str]]] = {
    "top left": _corner_places("top", "upper", "left"),
    "top": _edge_places("top", upright=False),
    "top right": _corner_places("top", "upper", "right"),
    "left": _edge_places("left", upright=True),
    "center": (
        ["center", "middle", "centre"],
        ["at center", "in the center", "in the middle", "at the center", "in the centre"],
    ),
    "right": _edge_places("right", upright=True),
    "bottom left": _corner_places("bottom", "lower", "left"),
    "bottom": _edge_places("bottom", upright=False),
    "bottom right": _corner_places("bottom", "lower", "right"),
}
BARE_PLACES = {cell: tuple(_PLACES[name][0]) for name, cell in POSITIONS.items()}
PLACES = {cell: tuple(_PLACES[name][1]) for name, cell in POSITIONS.items()}
