"""One call from Python: what it accepts, what it refuses, and that it draws what the command line draws.

pytest tests/unit/test_python_api.py
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unifusion_core import Pipeline, UniFusionError
from unifusion_core.cli.main import main
from unifusion_core.errors import ConfigError, PromptError, ShapeError
from unifusion_core.images import to_tensor
from unifusion_core.zoo.krea_2 import KREA_2
from unifusion_core.zoo.tiny import TINY

WORDS = "a big red circle at the top left, white background"
QUICK: dict[str, Any] = {"steps": 2, "size": (64, 64)}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.load(device="cpu")


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def picture(width: int = 48, height: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, []),
        ({"rewrite": False}, ["--no-rewrite"]),
        ({"rewrite": "small cyan star at center, black background."}, ["--rewrite-text", "LOCKED"]),
        ({"style": "terse"}, ["--style", "terse"]),
        ({"size": (160, 112), "steps": 5, "cfg": 3.0}, ["--size", "160x112", "--steps", "5", "--cfg", "3"]),
        ({"schedule": "uniform", "steps": 4}, ["--schedule", "uniform", "--steps", "4"]),
        ({"images": ["in.png"]}, ["--image", "in.png"]),
        ({"images": ["in.png"], "max_tiles": 1}, ["--image", "in.png", "--max-tiles", "1"]),
        ({"images": ["in.png"], "image_cfg": 1.5}, ["--image", "in.png", "--image-cfg", "1.5"]),
    ],
)
def test_it_draws_what_the_command_line_draws(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("in.png")
    words = [str(how["rewrite"]) if word == "LOCKED" else word for word in words]
    assert main(["generate", WORDS, *words, "--seed", "7", "--out", "out.png"]) == 0
    with Image.open("out.png") as drawn:
        assert np.array_equal(levels(drawn), levels(pipe(WORDS, seed=7, **how)))


def test_it_rewrites_what_the_command_line_rewrites(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rewrite", "a ball the colour of a tomato"]) == 0
    assert capsys.readouterr().out.strip() == pipe.rewrite("a ball the colour of a tomato").text
    both = pipe.rewrite(["a red circle", "a ball the colour of a tomato"])
    assert [each.request.prompt for each in both] == ["a red circle", "a ball the colour of a tomato"]


def test_every_kind_of_image_is_the_same_image(pipe: Pipeline, tmp_path: Path) -> None:
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "in.png")
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    kinds = [
        Image.fromarray(pixels),
        pixels,
        pixels.astype(np.float64) / 255,
        torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
        tmp_path / "in.png",
        str(tmp_path / "in.png"),
        opaque,
        Image.fromarray(opaque),
    ]
    first = to_tensor(kinds[0])
    assert first.shape == (3, 40, 48)
    for kind in kinds:
        torch.testing.assert_close(to_tensor(kind), first, rtol=0, atol=1e-6)
    gray = to_tensor(pixels[..., 0])
    assert torch.equal(gray[0], gray[2])


def test_lists_give_lists(pipe: Pipeline) -> None:
    one = pipe(WORDS, seed=3, **QUICK)
    assert isinstance(one, Image.Image)
    seeds = pipe(WORDS, seed=[3, 4], **QUICK)
    assert len(seeds) == 2
    assert np.abs(levels(seeds[0]) - levels(one)).max() <= 1
    assert np.abs(levels(seeds[1]) - levels(one)).max() > 1
    prompts = pipe([WORDS, "a small blue star"], seed=3, **QUICK)
    assert np.abs(levels(prompts[0]) - levels(one)).max() <= 1
    pair = pipe([WORDS, WORDS], seed=[3, 4], **QUICK)
    assert np.abs(levels(pair[1]) - levels(seeds[1])).max() <= 1
    assert len(pipe([WORDS], seed=3, **QUICK)) == 1


def test_many_images_are_drawn_in_parts(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unifusion_core.pipeline.PIXELS_PER_BATCH", 2 * 64 * 64)
    counts: list[int] = []
    generate = pipe.generate
    monkeypatch.setattr(
        pipe, "generate", lambda requests, *rest, **how: counts.append(len(requests)) or generate(requests, *rest, **how)
    )  # fmt: skip
    assert len(pipe(WORDS, seed=[1, 2, 3], **QUICK)) == 3
    assert counts == [2, 1]


def test_steps_are_told_and_an_exception_cancels(pipe: Pipeline) -> None:
    told: list[tuple[int, int, tuple[int, ...]]] = []
    pipe(
        WORDS, on_step=lambda step, steps, latents: told.append((step, steps, tuple(latents.shape))), **QUICK
    )
    assert told == [(1, 2, (1, 16, 8, 8)), (2, 2, (1, 16, 8, 8))]

    stop = threading.Event()

    def cancel(step: int, steps: int, latents: torch.Tensor) -> None:
        stop.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(WORDS, on_step=cancel, steps=50, size=(64, 64))
    assert stop.is_set()


def test_an_edit_has_its_images_size_and_a_prompt_the_models(pipe: Pipeline) -> None:
    assert pipe(WORDS, steps=1).size == TINY.size
    assert pipe("make it red", images=[picture(64, 80)], steps=1).size == (64, 80)


def test_defaults_come_from_the_loaded_model(random_weights: SimpleNamespace) -> None:
    pipe = Pipeline.load(random_weights.model, random_weights.vlm, random_weights.vae, device="cpu")
    usual = pipe.settings()
    assert (usual.size, usual.steps, usual.cfg, usual.schedule) == ((128, 128), 20, 2.0, "shift 3")
    pipe.spec = KREA_2
    usual = pipe.settings()
    assert (usual.size, usual.steps, usual.cfg, usual.schedule) == ((1024, 1024), 8, 1.0, "krea-2 turbo")
    raw = pipe.settings(schedule="krea-2 raw")
    assert (raw.steps, raw.cfg) == (28, 5.5)


@pytest.mark.parametrize(
    ("prompt", "how", "kind", "sentence"),
    [
        (None, {}, PromptError, "The prompt is None; give a text, or a list of texts"),
        (3, {}, PromptError, "The prompt is 3"),
        ([], {}, PromptError, "No prompt was given"),
        ([WORDS, None], {}, PromptError, "give a text, or a list of texts"),
        (WORDS, {"images": "in.png"}, ShapeError, "images is a str; give a list"),
        (WORDS, {"images": picture()}, ShapeError, "images is a ndarray; give a list"),
        (WORDS, {"images": None}, ShapeError, "images is a NoneType; give a list"),
        (WORDS, {"images": [None]}, ShapeError, "An image of type NoneType was given"),
        (WORDS, {"images": ["nowhere.png"]}, ShapeError, "There is no picture nowhere.png"),
        (WORDS, {"images": [np.zeros((4, 4, 3), np.int64)]}, ShapeError, "An array of int64 was given"),
        (WORDS, {"images": [np.zeros((2, 3, 4, 3), np.uint8)]}, ShapeError, "as height x width x channels"),
        (WORDS, {"images": [torch.zeros(4, 4)]}, ShapeError, "channels x height x width"),
        (WORDS, {"images": [torch.zeros(3, 4, 4, dtype=torch.uint8)]}, ShapeError, "floats in 0..1"),
        (WORDS, {"images": [torch.full((3, 4, 4), torch.nan)]}, ShapeError, "NaN or infinite"),
        (WORDS, {"seed": 2**64}, ConfigError, "give a whole number from 0 to 2^63 - 1"),
        (WORDS, {"seed": -1}, ConfigError, "The seed is -1"),
        (WORDS, {"seed": 1.5}, ConfigError, "The seed is 1.5"),
        (WORDS, {"seed": "7"}, ConfigError, "The seed is '7'"),
        (WORDS, {"seed": None}, ConfigError, "The seed is None"),
        (WORDS, {"seed": []}, ConfigError, "0 seeds were given for 1 prompts"),
        ([WORDS] * 3, {"seed": [1, 2]}, ConfigError, "2 seeds were given for 3 prompts"),
        (WORDS, {"cfg": float("nan")}, ConfigError, "cfg is nan; give a number"),
        (WORDS, {"cfg": "2"}, ConfigError, "cfg is '2'; give a number"),
        (WORDS, {"image_cfg": 2.0}, ConfigError, "give images, or leave image_cfg out"),
        (WORDS, {"image_cfg": float("inf"), "images": [picture()]}, ConfigError, "image_cfg is inf"),
        (WORDS, {"steps": 0}, ConfigError, "steps is 0; give a whole number of at least 1"),
        (WORDS, {"steps": 2.5}, ConfigError, "steps is 2.5"),
        (WORDS, {"max_tiles": 0}, ConfigError, "max_tiles is 0"),
        (WORDS, {"size": (130, 128)}, ShapeError, "near are 128x128 and 136x128"),
        (WORDS, {"size": 128}, ConfigError, "size is 128; give (width, height)"),
        (WORDS, {"size": "128x128"}, ConfigError, "give (width, height)"),
        (WORDS, {"size": (128.0, 128)}, ConfigError, "give (width, height)"),
        (WORDS, {"schedule": "karras"}, ConfigError, 'there is no schedule "karras"'),
        (WORDS, {"rewrite": " "}, PromptError, "the rewrite is empty"),
        (WORDS, {"rewrite": 1}, ConfigError, "rewrite is 1; give True, False, a text or None"),
        (WORDS, {"style": "terse", "rewrite": False}, ConfigError, "nothing is rewritten"),
        (WORDS, {"style": None}, PromptError, "The style is None"),
        (WORDS, {"style": "keep everything else"}, PromptError, "add a picture"),
        ("ein roter Kreis", {"style": "translate to English"}, PromptError, "does not follow the style"),
        (WORDS, {"on_step": 3}, ConfigError, "on_step is 3; give a function"),
    ],
)
def test_a_wrong_argument_ends_in_one_of_our_sentences(
    pipe: Pipeline, prompt: Any, how: dict[str, Any], kind: type[UniFusionError], sentence: str
) -> None:
    with pytest.raises(kind) as told:
        pipe(prompt, **how)
    assert sentence in str(told.value)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_tiles": 0}, "max_tiles is 0"),
        ({"seed": 2**63}, "give a whole number from 0 to 2^63 - 1"),
    ],
)
def test_a_wrong_argument_of_rewriting_ends_in_one_of_our_sentences(
    pipe: Pipeline, how: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as told:
        pipe.rewrite(WORDS, **how)
    assert sentence in str(told.value)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"device": "cuda:7"}, 'The device "cuda:7" cannot be used here'),
        ({"device": "toaster"}, 'The device "toaster" cannot be used here'),
        ({"dtype": torch.int8}, "dtype is torch.int8; choose float32"),
        ({"dtype": "fp16"}, "dtype is 'fp16'; choose float32"),
        ({"model": "nowhere.safetensors"}, "there is no file nowhere.safetensors"),
        ({"vlm": "nowhere"}, "There is no VLM folder nowhere"),
        ({"vae": "nowhere.safetensors"}, "there is no file nowhere.safetensors"),
        ({"model": None}, "give a path"),
    ],
)
def test_what_cannot_be_loaded_ends_in_one_of_our_sentences(how: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UniFusionError) as told:
        Pipeline.load(**how)
    assert sentence in str(told.value)


def test_the_unconditional_condition_follows_the_weights() -> None:
    """A LoRA merged in place, another type, another weight: guidance leads away from what is there now."""
    pipe = Pipeline.load(device="cpu")
    first = pipe.unconditional
    assert pipe.unconditional is first
    with torch.no_grad():
        pipe.model.txtmlp[1].weight.mul_(1.5)
    second = pipe.unconditional
    assert not torch.equal(second.tokens, first.tokens)
    pipe.model.bfloat16()
    third = pipe.unconditional
    assert third.tokens.dtype == torch.bfloat16
    assert pipe(WORDS, **QUICK).size == (64, 64)
    with torch.no_grad():
        pipe.backbone.model.get_input_embeddings().weight.mul_(0.5)
    assert not torch.equal(pipe.unconditional.tokens, third.tokens)
