"""What the embedded model cannot draw is said, and what it was trained on is not warned about.

pytest tests/unit/zoo/test_tiny_limits.py
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from unifusion_core.contracts import Request
from unifusion_core.errors import PromptError
from unifusion_core.images import to_tensor
from unifusion_core.shapes.evaluation.limits import everyday_prompts
from unifusion_core.shapes.world import prompts, scenes
from unifusion_core.shapes.world.captions import caption, parse_caption
from unifusion_core.shapes.world.edits import EDIT_KINDS, sample_instruction
from unifusion_core.shapes.world.references import LOOK_KINDS, REFERENCE_KINDS
from unifusion_core.shapes.world.render import render
from unifusion_core.shapes.world.scorer import read_picture
from unifusion_core.vlm.styles import STYLES
from unifusion_core.zoo import tiny_limits
from unifusion_core.zoo.krea_2 import KREA_2
from unifusion_core.zoo.tiny import TINY


def seen(image: torch.Tensor) -> str:
    """A perfect eye in place of the VLM: the caption of a rendered image."""
    pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    return caption(read_picture(pixels).scene.in_raster_order())


def outside(prompt: str, *captions: str) -> str:
    images = [to_tensor(render(scene)) for text in captions if (scene := parse_caption(text))]
    assert len(images) == len(captions)
    return " ".join(TINY.outside(Request(prompt=prompt, images=images), seen))


def test_the_names_are_those_of_the_training_data() -> None:
    assert tiny_limits.COLORS == scenes.COLORS
    assert tiny_limits.BACKGROUNDS == scenes.BACKGROUNDS
    assert tiny_limits.CELLS == scenes.POSITIONS
    assert {*tiny_limits._SHAPES} - {""} == {*scenes.SHAPES}


def test_no_prompt_of_the_training_data_is_warned_about() -> None:
    rng = random.Random("limits")
    texts = list(prompts.corpus(rng, 3000))
    assert [text for text in texts if outside(text)] == []


@pytest.mark.parametrize("kind", [*EDIT_KINDS, *REFERENCE_KINDS, *LOOK_KINDS])
def test_no_edit_of_the_training_data_is_warned_about(kind: str) -> None:
    rng = random.Random(f"limits {kind}")
    for _ in range(25):
        edit = sample_instruction(rng, kind, None)
        captions = [caption(source) for source in edit.sources]
        assert (edit.instruction, captions, outside(edit.instruction, *captions)) == (
            edit.instruction,
            captions,
            "",
        )


def test_everyday_prompts_outside_of_its_world_are_told_and_those_inside_are_not() -> None:
    everyday = everyday_prompts()
    assert len(everyday) >= 150
    told = [(each, TINY.outside(each.request, seen)) for each in everyday]
    silent = [each.request.prompt for each, warnings in told if each.requirement is None and not warnings]
    false = [each.request.prompt for each, warnings in told if each.requirement and warnings]
    assert (silent, false) == ([], [])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a dog and a red circle", 'does not know "dog"'),
        ("five red circles", '("five" is more)'),
        ("a circle, a square, a star and a cross", "names 4 objects"),
        ("a circle but no star", '("no")'),
        ("ein roter Kreis und ein blauer Stern", "looks like German"),
        ("赤い円", "another script"),
        ("a white circle", '"white" is a background'),
        ("a star on a red background", 'no "red" background'),
        ("a red and blue circle", '("red", "blue")'),
        ("a circle in a square", '"circle in a square"'),
    ],
)
def test_a_warning_names_the_words_concerned(prompt: str, words: str) -> None:
    assert words in outside(prompt)


TWO = "big red circle at top left, small blue star at center, white background."


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (
            "remove the triangle",
            'There is no "triangle". The image shows a big red circle, a small blue star',
        ),
        ("make the green circle blue", 'There is no "green circle"'),
        ("make it green", '"it" may be any of 2 objects'),
        ("put the circle of picture two at the top", 'names "picture two", and 1 image(s) were given'),
        ("don't move the star", '("don\'t")'),
        ("make the background red", 'no "red" background'),
    ],
)
def test_an_edit_of_something_that_is_not_there_is_told(prompt: str, words: str) -> None:
    assert words in outside(prompt, TWO)


def test_a_reference_is_looked_for_in_its_own_image() -> None:
    other = "small green cross at top, black background."
    assert outside("put the cross of picture two into picture one", TWO, other) == ""
    told = outside("put the star of picture two into picture one", TWO, other)
    assert 'There is no "star". Image 2 shows a small green cross' in told


def _photo() -> np.ndarray:
    y, x = np.mgrid[0:96, 0:128]
    return np.stack([x * 2, y * 2, 255 - x], -1).astype(np.uint8)


def _five() -> np.ndarray:
    image = Image.new("RGB", (128, 128), "white")
    for n in range(5):
        ImageDraw.Draw(image).ellipse((4 + 25 * n, 4 + 25 * n, 20 + 25 * n, 20 + 25 * n), fill=(220, 30, 30))
    return np.asarray(image)


@pytest.mark.parametrize(
    "pixels", [_photo(), _five(), np.full((64, 64, 3), 255, np.uint8)], ids=["photo", "five", "blank"]
)
def test_an_image_unlike_its_world_is_told_whatever_the_vlm_sees_in_it(pixels: np.ndarray) -> None:
    request = Request(prompt="make the circle blue", images=[to_tensor(pixels)])
    told = " ".join(TINY.outside(request, lambda image: "big red circle at top left, white background."))
    assert "unlike those that this model was trained on" in told


def test_a_large_copy_of_an_image_of_its_world_is_known() -> None:
    scene = parse_caption(TWO)
    assert scene is not None
    assert tiny_limits.objects_in(to_tensor(render(scene, 640, 448)), lambda image: TWO) is not None


def test_a_style_leaves_the_list_of_a_model_whose_vlm_does_not_follow_it() -> None:
    request, style = Request(prompt="ein roter Kreis"), "translate to English"
    assert style not in TINY.styles
    assert [*TINY.styles, style] == list(STYLES)
    with pytest.raises(PromptError, match="caption, terse, detailed, keep everything else"):
        TINY.with_style(request, style)

    assert KREA_2.styles == tuple(STYLES)
    assert KREA_2.with_style(request, style).style == STYLES[style]
    assert TINY.with_style(request, "make everything red.").style == "make everything red."
