"""From prompts to pictures: what a picture depends on, sizes, picture files, rewriting, parts that do not fit.

PYTHONPATH=. python -m pytest --import-mode=importlib tests/unit/test_pipeline.py
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unifusion_core.contracts import Features, Request, TokenRole
from unifusion_core.errors import CheckpointError, ConfigError, PromptError, ShapeError, VLMError
from unifusion_core.images import (
    check_size,
    read_image_file,
    size_for_image,
    warn_of_other_size,
    write_image_file,
)
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.pipeline import Pipeline, SamplingSettings
from unifusion_core.vlm.backbone import Written
from unifusion_core.vlm.chat import VLMInputs
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.vlm.rewrite import attempt_rewrites, encode_requests, rewrite
from unifusion_core.zoo.krea_2 import KREA_2
from unifusion_core.zoo.tiny import BUILT_IN, TINY

QUICK = SamplingSettings(size=(48, 32), steps=2, cfg=2.0, schedule="shift 3")
SPEC = TINY.config.vlm
WRITING = TINY.rewriting
RED = Request(prompt="a red circle")
LONG = Request(prompt="two small blue squares, one at the top left and the other in the middle, on wood")


@pytest.fixture(scope="module")
def pipeline(random_weights: SimpleNamespace) -> Pipeline:
    return Pipeline.load(random_weights.model, random_weights.vlm, random_weights.vae, device="cpu")


def drawn(
    pipeline: Pipeline, requests: list[Request], seeds: list[int], settings: SamplingSettings
) -> list[np.ndarray]:
    """One picture per request, without rewriting."""
    return [each.pixels for each in pipeline.generate(requests, seeds, settings, rewriting=False)]


def differ(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference in levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch(pipeline: Pipeline) -> None:
    requests, seeds = (
        [RED, LONG, Request(prompt="", rewrite="big cyan star at top, pink background.")],
        [5, 6, 7],
    )
    together = drawn(pipeline, requests, seeds, QUICK)
    for request, seed, picture in zip(requests, seeds, together, strict=True):
        assert picture.shape == (32, 48, 3)
        assert differ(picture, drawn(pipeline, [request], [seed], QUICK)[0]) <= 1


def test_prompt_rewrite_seed_guidance_and_input_picture_each_change_the_picture(pipeline: Pipeline) -> None:
    first = drawn(pipeline, [RED], [1], QUICK)[0]
    assert differ(first, drawn(pipeline, [RED], [1], QUICK)[0]) == 0
    gradient = torch.linspace(0, 1, 96).expand(3, 96, 96)
    others = [
        drawn(pipeline, [LONG], [1], QUICK),
        drawn(pipeline, [replace(RED, rewrite="big red circle at top, white background.")], [1], QUICK),
        drawn(pipeline, [replace(RED, images=[gradient])], [1], QUICK),
        drawn(pipeline, [RED], [2], QUICK),
        drawn(pipeline, [RED], [1], replace(QUICK, cfg=1.0)),
    ]
    assert all(differ(first, pictures[0]) > 1 for pictures in others)


def test_text_and_pictures_are_guided_apart(pipeline: Pipeline) -> None:
    """With the picture-only condition in the place of the negative one: the usual guidance, whatever image_cfg is; with the
    positive one in its place: guidance by image_cfg alone."""
    asked, empty = pipeline.encode([RED]), pipeline.encode([Request(prompt="")])

    def draw(picture_only: Features | None, **changes: float) -> np.ndarray:
        return pipeline.sample(asked, [1], replace(QUICK, **changes), image_only=picture_only)[0]

    plain = draw(None, cfg=3.0)
    assert differ(plain, draw(empty, cfg=3.0, image_cfg=7.0)) <= 1
    assert differ(plain, draw(asked, cfg=7.0, image_cfg=3.0)) <= 1
    assert differ(plain, draw(asked, cfg=3.0, image_cfg=7.0)) > 1


def test_the_empty_prompt_is_drawn_and_is_what_guidance_leads_away_from(pipeline: Pipeline) -> None:
    empty = Request(prompt="")
    assert [each.request for each in pipeline.rewrite_requests([empty])] == [empty]
    guided = drawn(pipeline, [empty], [1], QUICK)[0]
    assert differ(guided, drawn(pipeline, [empty], [1], replace(QUICK, cfg=1.0))[0]) <= 1
    assert torch.equal(pipeline.unconditional.tokens, pipeline.pool(pipeline.encode([empty])).tokens)


def test_sides_of_an_odd_number_of_patches_are_drawn_and_cut(pipeline: Pipeline) -> None:
    assert drawn(pipeline, [RED], [1], replace(QUICK, size=(40, 24)))[0].shape == (24, 40, 3)


def test_impossible_sizes_are_refused_with_those_that_are_near() -> None:
    with pytest.raises(ShapeError, match=r"130x128 .* multiples of 8; near are 128x128 and 136x128"):
        check_size((130, 128))
    for size in ((0, 128), (128, 100_000)):
        with pytest.raises(ShapeError, match="8 to 4096"):
            check_size(size)
    assert size_for_image(torch.zeros(3, 107, 101)) == (104, 104)
    assert size_for_image(torch.zeros(3, 1000, 2000), max_pixels=80_000) == (400, 200)
    assert size_for_image(torch.zeros(3, 64, 64), max_pixels=1e6) == (64, 64)
    with pytest.raises(ShapeError, match="8000x200 cannot be drawn"):
        size_for_image(torch.zeros(3, 200, 8000))


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (1999, 1501), (4000, 1000), (1032, 1032)])
def test_a_drawing_has_no_more_pixels_than_asked_for(size: tuple[int, int]) -> None:
    width, height = size_for_image(torch.zeros(1).expand(3, size[1], size[0]), max_pixels=1e6)
    assert 0.96e6 < width * height <= 1e6
    assert abs(width / height / (size[0] / size[1]) - 1) < 0.02


def test_an_edit_in_another_shape_or_larger_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_other_size((1328, 744), (1920, 1080))  # as `size_for_image` shrinks it
    warn_of_other_size((160, 112), (160, 112))
    assert not caplog.records
    for drawn in ((128, 128), (152, 112), (112, 160), (320, 224)):
        warn_of_other_size(drawn, (160, 112))
    assert [record.getMessage()[:7] for record in caplog.records] == [
        "128x128",
        "152x112",
        "112x160",
        "320x224",
    ]


def test_untrained_sizes_are_drawn_with_a_warning_that_names_the_trained_ones(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "unifusion_core"):
        drawn(pipeline, [RED], [1], replace(QUICK, size=(112, 160), steps=1))
        assert not caplog.records
        drawn(pipeline, [RED], [1], QUICK)
    assert "48x32 is none of the sizes" in caplog.text
    assert "128x128, 160x112, 112x160" in caplog.text


def test_seeds_and_settings_that_do_not_fit_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigError, match="2 seeds were given for 1 pictures"):
        drawn(pipeline, [RED], [1, 2], QUICK)
    with pytest.raises(ConfigError, match="at least 1"):
        drawn(pipeline, [RED], [1], replace(QUICK, steps=0))
    with pytest.raises(ShapeError, match="NaN"):
        drawn(pipeline, [replace(RED, images=[torch.full((3, 32, 32), float("nan"))])], [1], QUICK)
    with pytest.raises(PromptError, match="shorten the prompt"):
        drawn(pipeline, [Request(prompt="many words " * 2000)], [1], QUICK)


def test_parts_that_do_not_fit_are_refused(pipeline: Pipeline) -> None:
    deeper = UniFusion(replace(TINY.config, vlm=replace(TINY.config.vlm, num_layers=7)))
    with pytest.raises(VLMError, match="number of layers is 6, 7 is needed"):
        Pipeline(deeper, pipeline.backbone, pipeline.autoencoder, spec=TINY)
    foreign = UniFusion(replace(TINY.config, latent_format="qwen-image"))
    with pytest.raises(CheckpointError, match=r'16 of "qwen-image".*choose its own VAE'):
        Pipeline(foreign, pipeline.backbone, pipeline.autoencoder, spec=TINY)
    other = UniFusion(replace(TINY.config, vlm=replace(TINY.config.vlm, fingerprint="0" * 64)))
    with pytest.raises(VLMError, match="other weights"):
        Pipeline(other, pipeline.backbone, pipeline.autoencoder, spec=TINY)


# Rewriting ----------------------------------------------------------------------------------------


def writing(text: str) -> Callable[..., Written]:
    """In the place of `VLMBackbone.write`: this text for every chat."""

    def write(chats: VLMInputs, *_: object, **__: object) -> Written:
        count = len(chats.token_ids)
        return Written(texts=[text] * count, ended=[True] * count, features=None)

    return write


def test_a_rewrite_that_does_not_end_is_an_error_that_names_its_prompt(pipeline: Pipeline) -> None:
    # random weights never come to an end
    attempts = attempt_rewrites(pipeline.backbone, SPEC, [RED, LONG], replace(WRITING, max_new_tokens=3))
    assert [type(attempt) for attempt in attempts] == [PromptError, PromptError]
    with pytest.raises(PromptError, match=r'"a red circle" did not end within 3 tokens.*max_new_tokens'):
        rewrite(pipeline.backbone, SPEC, [RED, LONG], replace(WRITING, max_new_tokens=3))


def test_an_empty_rewrite_is_an_error(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.backbone, "write", writing(" "))
    with pytest.raises(PromptError, match="ended its answer at once"):
        pipeline.rewrite_requests([RED])


def test_locked_rewrites_stay_and_the_others_are_written(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.backbone, "write", writing("written"))
    locked, empty = Request(prompt="x", rewrite="locked"), Request(prompt=" ")
    with_picture = Request(prompt="", images=[torch.rand(3, 32, 32)])
    texts = [each.request.rewrite for each in pipeline.rewrite_requests([RED, locked, empty, with_picture])]
    assert texts == ["written", "locked", None, "written"]


@pytest.mark.skipif(not BUILT_IN.vlm.is_dir(), reason="the tiny VLM is not there")
def test_the_embedded_vlm_writes_the_same_rewrite_alone_and_in_company() -> None:
    backbone = load_vlm(BUILT_IN.vlm)
    together = rewrite(backbone, SPEC, [RED, LONG], WRITING)
    for both, request in zip(together, (RED, LONG), strict=True):
        (alone,) = rewrite(backbone, SPEC, [request], WRITING)
        assert both.request == alone.request
        assert both.request.rewrite
        torch.testing.assert_close(both.features.states, alone.features.states, rtol=0, atol=1e-3)


@pytest.mark.skipif(not BUILT_IN.vlm.is_dir(), reason="the tiny VLM is not there")
@pytest.mark.parametrize("prompt", ["a red circle", "make the background pink"])
def test_features_of_one_pass_equal_those_of_the_locked_rewrite(prompt: str) -> None:
    """The decoding pass and a teacher-forced pass over [system, pictures, instruction, rewrite]."""
    backbone = load_vlm(BUILT_IN.vlm)
    pictures = [torch.rand(3, 48, 48)] if "background" in prompt else []
    (one_pass,) = rewrite(backbone, SPEC, [Request(prompt=prompt, images=pictures)], WRITING)
    forced = encode_requests(backbone, SPEC, [one_pass.request], states="one_pass")
    for name in ("mask", "positions"):
        assert torch.equal(getattr(one_pass.features, name), getattr(forced, name))
    for name in ("roles", "ids"):
        assert torch.equal(getattr(one_pass.features.token_info, name), getattr(forced.token_info, name))
    scale = forced.states.abs().amax()
    assert (one_pass.features.states - forced.states).abs().amax() <= 1e-4 * scale


def test_states_of_a_rewrite_may_be_encoded_in_the_prompts_place(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.backbone, "write", writing("big red circle"))
    (done,) = rewrite(pipeline.backbone, SPEC, [RED], replace(WRITING, states="reencode"))
    expected = encode_requests(pipeline.backbone, SPEC, [Request(prompt="big red circle")], states="one_pass")
    assert done.request == replace(RED, rewrite="big red circle")
    assert torch.equal(done.features.states, expected.states)
    with pytest.raises(ConfigError, match='states is "both"; choose one_pass or reencode'):
        replace(WRITING, states="both")


def test_an_edit_for_a_generator_without_assistant_turns_reads_pictures_and_rewrite(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Krea 2's way by default: the rewrite describes the target in the prompt's place, the pictures' tokens stay, and what told
    the VLM how to write is gone."""
    monkeypatch.setattr(pipeline.backbone, "write", writing("a big blue circle on white"))
    spec, pictures = (
        replace(TINY.config.vlm, token_selection=KREA_2.config.vlm.token_selection),
        [torch.rand(3, 48, 48)],
    )
    edit = Request(prompt="make it blue", images=pictures, style="keep everything else.")
    (done,) = rewrite(pipeline.backbone, spec, [edit], replace(WRITING, states=spec.rewrite_states))
    target = Request(prompt="a big blue circle on white", images=pictures)
    expected = encode_requests(pipeline.backbone, spec, [target], states="one_pass")
    assert done.request.rewrite == target.prompt
    assert torch.equal(done.features.token_info.ids, expected.token_info.ids)
    assert torch.equal(done.features.states, expected.states)
    of_pictures = done.features.token_info.roles == TokenRole.IMAGE
    assert int(of_pictures.sum()) >= pipeline.backbone.tokens_per_tile
    assert torch.equal(done.features.positions[of_pictures][:, 0], torch.ones(int(of_pictures.sum())))
    locked = [replace(edit, rewrite=target.prompt)]
    one_pass = encode_requests(pipeline.backbone, spec, locked, states="one_pass")
    assert one_pass.states.shape != expected.states.shape


# Picture files ------------------------------------------------------------------------------------


def test_a_written_picture_carries_what_made_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    record = {"prompt": "ein grüner Kreis", "seed": 3, "settings": {"steps": 20}}
    write_image_file(tmp_path / "new" / "a.png", pixels, record)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert json.loads(image.text["unifusion"]) == record
        assert "prompt" not in image.text  # ComfyUI would take it for a graph
    read = read_image_file(tmp_path / "new" / "a.png")
    assert np.array_equal((read * 255).round().byte().permute(1, 2, 0).numpy(), pixels)


def test_transparency_is_laid_on_white_and_gray_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[0] = (200, 0, 0, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    read = read_image_file(tmp_path / "clear.png")
    assert torch.allclose(read[:, 0, 0], torch.tensor([200 / 255, 0, 0]))
    assert torch.equal(read[:, 1:], torch.ones(3, 3, 4))
    Image.fromarray(np.full((4, 4), 0x8080, np.uint16)).save(tmp_path / "gray.png")
    assert read_image_file(tmp_path / "gray.png").mean() == pytest.approx(0.5, abs=0.01)


def test_files_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="There is no picture"):
        read_image_file(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ShapeError, match="it is text"):
        read_image_file(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "whole.png"
    )
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ShapeError, match="cannot be read as a picture"):
        read_image_file(tmp_path / "cut.png")


def test_a_guidance_scale_counted_from_0_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"cfg 0 draws what the negative .*give cfg 1"):
        replace(QUICK, cfg=0.0)
    # apart from the images', it leaves out the text
    assert replace(QUICK, cfg=0.0, image_cfg=2.0).cfg == 0
