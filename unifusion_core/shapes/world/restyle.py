"""Styles that change the whole scene, whatever the prompt says: everything red, everything big, at night."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TypeVar

from .lexicon import INDIRECT
from .requirements import Requirement
from .scenes import BACKGROUNDS, COLORS, SIZES, Scene

T = TypeVar("T", Scene, Requirement)

RESTYLE_KINDS = ("color", "size", "background")


def restyle(rng: random.Random, kind: str) -> tuple[str, dict[str, str]]:
    """The text of a random style, and what it sets: {"color": "red"}, {"size": "big"} or {"background": "black"}."""
    if kind == "background":
        value = rng.choice(tuple(BACKGROUNDS))
        forms = (f"on a {value} background", f"use a {value} background", *INDIRECT[value])
    else:
        value = rng.choice(tuple(COLORS if kind == "color" else SIZES))
        forms = (
            f"everything {value}",
            f"make everything {value}",
            f"all in {value}" if kind == "color" else f"all {value}",
        )
    return f"{rng.choice(forms)}.", {kind: value}


def restyled(wanted: T, changes: dict[str, str]) -> T:
    """A scene or requirement with the changes of a style applied."""
    objects = {key: value for key, value in changes.items() if key != "background"}
    return replace(
        wanted,
        objects=tuple(replace(o, **objects) for o in wanted.objects),
        background=changes.get("background", wanted.background),
    )
