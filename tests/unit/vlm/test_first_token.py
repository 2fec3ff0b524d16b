"""The first token of the answers to several prompts about the same images: pytest tests/unit/vlm/test_first_token.py"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Request
from unifusion_core.errors import PromptError, VLMError
from unifusion_core.vlm.backbone import VLMBackbone

PROMPTS = ["Is it red?", "a", "How many circles are there in this image?"]


def two_images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 48, 24, generator=generator), torch.rand(3, 30, 30, generator=generator)]


@torch.no_grad()
def alone(vlm: VLMBackbone, prompt: str, images: list[Tensor]) -> Tensor:
    """Logits behind the chat of one prompt, from a pass of transformers' own over the whole chat."""
    chat = vlm.prepare([Request(prompt=prompt, images=images)], max_tiles=3)
    model: Any = vlm.model
    arguments = {"input_ids": chat.token_ids, "attention_mask": chat.mask.long(), **chat.pixel_inputs}
    arguments["position_ids"] = vlm._position_ids(chat)
    return model(**arguments, use_cache=False).logits[0, -1].float()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_shared_images_give_the_logits_of_separate_chats(vlm: VLMBackbone, count: int) -> None:
    images = two_images()[:count]
    together = vlm.first_token_logits(images, PROMPTS, max_tiles=3)
    for prompt, logits in zip(PROMPTS, together, strict=True):
        expected = alone(vlm, prompt, images)
        # the random models answer differently to each
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_images_are_encoded_once_for_all_prompts(vlm: VLMBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm.clear_image_caches()
    run, seen = vlm._run, []
    monkeypatch.setattr(
        vlm, "_run", lambda **inputs: seen.append(tuple(inputs["input_ids"].shape)) or run(**inputs)
    )
    vlm.first_token_logits(two_images(), PROMPTS, max_tiles=3)
    vlm.first_token_logits(two_images(), PROMPTS[:2], max_tiles=3)
    (images, first, second) = seen
    assert images[0] == 1
    assert images[1] > 30
    assert (first[0], second[0]) == (3, 2)
    # questions only: a byte is a token here, and the longest has 41
    assert second[1] < first[1] < 90


def test_what_is_too_long_or_has_no_head_is_refused(
    vlm: VLMBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PromptError, match="tokens and this VLM takes 400"):
        vlm.first_token_logits(two_images()[:1], ["x" * 500])
    monkeypatch.setattr(type(vlm.model), "get_output_embeddings", lambda self: None)
    with pytest.raises(VLMError, match="has no language model head, so it writes no text"):
        vlm.first_token_logits([], ["a"])


def test_another_side_of_tiles_is_used_from_then_on(vlm: VLMBackbone) -> None:
    if not vlm.family.block_per_tile:
        with pytest.raises(VLMError, match="48"):
            vlm.set_tile_size(48)
        return
    before = vlm.tile_size
    try:
        vlm.set_tile_size(48)
        chat = vlm.prepare([Request(prompt="a", images=two_images()[1:])], max_tiles=1)
        assert chat.tiles[0][0].pixels.shape[-1] == 48
        assert int((chat.roles == 2).sum()) == vlm.tokens_per_tile == 36
    finally:
        vlm.set_tile_size(before)
