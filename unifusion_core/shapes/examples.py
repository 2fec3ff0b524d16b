"""Captioned images of shapes in a style that the embedded model does not know, as an example of training on own data.

The style: what a caption calls a white background is drawn in the colour of water. Half of the images have other backgrounds,
which stay as they are, so that the model learns when not to use the style.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from .world import prompts
from .world.render import render
from .world.scenes import BACKGROUNDS, COLORS, Scene, sample_scene
from .world.scorer import Array

STYLED = "white"
# one of the object colours, because the embedded autoencoder holds it: see training/README.md
STYLE_COLOR = "cyan"
SIZE = (128, 128)


def sample_styled(rng: random.Random, styled: bool) -> Scene:
    """A scene with the background that the style changes, or with another one. No object has the style's colour."""
    while True:
        scene = sample_scene(rng)
        if all(each.color != STYLE_COLOR for each in scene.objects):
            break
    others = [name for name in BACKGROUNDS if name != STYLED]
    return replace(scene, background=STYLED if styled else rng.choice(others))


def render_styled(scene: Scene) -> Array:
    """The image of a scene in the style."""
    image = render(scene, *SIZE).astype(np.float32)
    if scene.background != STYLED:
        return image.astype(np.uint8)
    # the cover of the objects, from two renderings that differ in the background alone
    other = render(replace(scene, background="black"), *SIZE).astype(np.float32)
    white, black = (np.array(BACKGROUNDS[name], np.float32) for name in (STYLED, "black"))
    uncovered = ((image - other) / (white - black)).mean(-1, keepdims=True).clip(0, 1)
    styled = image + uncovered * (np.array(COLORS[STYLE_COLOR], np.float32) - white)
    return np.round(styled).clip(0, 255).astype(np.uint8)


def write_examples(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """Writes NNN.png and NNN.txt; every other image has the style. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = random.Random(f"examples-{seed}-{number}")
        scene = sample_styled(rng, styled=number % 2 == 0)
        wording = prompts.word_scene(rng, scene, rng.choice(("full", "caption")))
        Image.fromarray(render_styled(scene)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(wording.text + "\n")
    return folder
