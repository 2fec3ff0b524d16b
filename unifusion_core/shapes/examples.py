"""Captioned images of shapes in a style that the embedded model does not know, as an example of training on own data.

The style: what a caption calls a white background is drawn pink. Half of the images have other backgrounds and stay as they are,
so that the model learns when not to use the style. The colour is one that the embedded autoencoder holds: of other colours, a
round trip through it alone makes most images unreadable for the scorer (training/README.md).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .world import prompts
from .world.render import render
from .world.scenes import BACKGROUNDS, Scene, sample_scene

STYLED = "white"
DRAWN_AS = "pink"
SIZE = (128, 128)


def sample_styled(rng: random.Random, styled: bool) -> Scene:
    """A scene as its caption says it: with the background that the style changes, or with another one."""
    others = [name for name in BACKGROUNDS if name != STYLED]
    return replace(sample_scene(rng), background=STYLED if styled else rng.choice(others))


def in_style(scene: Scene) -> Scene:
    """The scene as it is drawn."""
    return replace(scene, background=DRAWN_AS) if scene.background == STYLED else scene


def write_examples(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """Writes NNN.png and NNN.txt; every other image has the style. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = random.Random(f"examples-{seed}-{number}")
        scene = sample_styled(rng, styled=number % 2 == 0)
        wording = prompts.word_scene(rng, scene, rng.choice(("full", "caption")))
        Image.fromarray(render(in_style(scene), *SIZE)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(wording.text + "\n")
    return folder
