"""Pictures of every size and number, and styles, on the embedded VLM: pytest tests/unit/test_input_images.py"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Features, Request, TokenRole
from unifusion_core.errors import PromptError
from unifusion_core.evaluation.drawing import without_pictures
from unifusion_core.vlm.backbone import VLMBackbone
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.vlm.rewrite import attempt_rewrites, encode_requests, rewrite
from unifusion_core.vlm.styles import STYLES, STYLES_FOR_PICTURES, with_style
from unifusion_core.zoo.tiny import BUILT_IN, TINY

SPEC = TINY.config.vlm


@pytest.fixture(scope="module")
def backbone() -> VLMBackbone:
    return load_vlm(BUILT_IN.vlm)


def picture(width: int, height: int, channels: int = 3) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(width))


def features_of(backbone: VLMBackbone, *pictures: Tensor, max_tiles: int = 10) -> Features:
    request = Request(prompt="put it there", images=pictures)
    return encode_requests(backbone, SPEC, [request], states="one_pass", max_tiles=max_tiles)


@pytest.mark.parametrize("size", [(1, 1), (8000, 200), (3, 500), (128, 128)])
def test_pictures_of_any_size_and_with_alpha_are_read(backbone: VLMBackbone, size: tuple[int, int]) -> None:
    for channels in (3, 4):
        features = features_of(backbone, picture(*size, channels))
        assert torch.isfinite(features.states).all()
        assert (features.token_info.roles == TokenRole.IMAGE).sum() >= backbone.tokens_per_tile


def test_pictures_of_different_sizes_keep_their_order(backbone: VLMBackbone) -> None:
    features = features_of(backbone, picture(64, 64), picture(200, 90), picture(30, 300))
    numbers = features.positions[0, features.token_info.roles[0] == TokenRole.IMAGE, 0].tolist()
    assert numbers == sorted(numbers)
    assert set(numbers) == {1.0, 2.0, 3.0}
    swapped = features_of(backbone, picture(200, 90), picture(64, 64), picture(30, 300))
    assert not torch.equal(swapped.states, features.states)


def test_twenty_pictures_fit_by_their_thumbnails_and_else_it_is_said_how_many_tiles_would(
    backbone: VLMBackbone,
) -> None:
    many = [picture(100 + n, 100) for n in range(20)]
    with pytest.raises(PromptError, match="Set max_tiles to") as told:
        features_of(backbone, *many)
    fitting = int(str(told.value).split("max_tiles to ")[1].split()[0])
    features = features_of(backbone, *many, max_tiles=fitting)
    assert set(features.positions[..., 0].unique().tolist()) == {float(n) for n in range(21)}


def test_a_style_stands_before_the_prompt(backbone: VLMBackbone) -> None:
    request = Request(prompt="a red star")
    styled = with_style(request, "terse")
    assert styled.style == STYLES["terse"]
    given = backbone.prepare([styled], SPEC.template).token_ids
    assert torch.equal(
        given, backbone.prepare([Request(prompt="be brief. a red star")], SPEC.template).token_ids
    )
    assert with_style(request, "caption") == request
    assert with_style(request, " all in red. ").style == "all in red."


@pytest.mark.parametrize("style", STYLES_FOR_PICTURES)
def test_a_style_about_pictures_needs_one(style: str) -> None:
    with pytest.raises(PromptError, match="add a picture"):
        with_style(Request(prompt="make it blue"), style)
    assert with_style(Request(prompt="make it blue", images=[picture(9, 9)]), style).style


def test_a_rewrite_that_hits_the_cap_is_an_error_of_its_own_and_no_raw_prompt(backbone: VLMBackbone) -> None:
    requests = [Request(prompt="a red star at the top")] * 2
    with pytest.raises(PromptError, match="did not end within 3 tokens"):
        rewrite(backbone, SPEC, requests, replace(TINY.rewriting, max_new_tokens=3))
    attempts = attempt_rewrites(backbone, SPEC, requests, replace(TINY.rewriting, max_new_tokens=3))
    assert all(isinstance(each, PromptError) for each in attempts)


def test_a_locked_text_in_another_language_is_taken_as_it_stands(backbone: VLMBackbone) -> None:
    text = "ein großer roter Stern oben, 白い背景."
    features = encode_requests(
        backbone, SPEC, [Request(prompt="a red star", rewrite=text)], states="one_pass"
    )
    words = backbone.tokenizer.decode(
        features.token_info.ids[0, features.token_info.roles[0] == TokenRole.REWRITE]
    )
    assert words.strip() == text.lower()
    assert torch.isfinite(features.states).all()


def test_pictures_can_be_masked_out_of_the_condition(backbone: VLMBackbone) -> None:
    seeing = features_of(backbone, picture(64, 64))
    blind = without_pictures(seeing)
    kept = blind.token_info.roles[blind.mask]
    assert not (kept == TokenRole.IMAGE).any()
    assert len(kept) == int((seeing.mask & (seeing.token_info.roles != TokenRole.IMAGE)).sum()) > 0
