"""ComfyUI's own Qwen3-VL gives the same states and texts as the folder with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from the_pack.nodes.comfy import stock_clip
from the_pack.nodes.comfy.clip import at_work, encode, tiles_of
from the_pack.unifusion_core.contracts import Features, Request
from the_pack.unifusion_core.vlm.backbone import VLMBackbone
from the_pack.unifusion_core.vlm.rewrite import encode_requests
from the_pack.unifusion_core.zoo.krea_2 import KREA_2
from torch import Tensor

from .case import case, close, difference, difference_by_tap, refused
from .small_qwen import load_small_qwen, scaled_fp8, set_weights, small_qwen
from .small_unifusion import rewritten, stock

PROMPT = "make it (blue)"


def _images() -> list[Tensor]:
    """Cut into tiles without being resized: two and a thumbnail, and one."""
    return [torch.rand(1, 448, 896, 3), torch.rand(1, 448, 448, 3)]


def _request(images: Sequence[Tensor], **changes: Any) -> Request:
    return Request(prompt=PROMPT, images=[each[0].movedim(-1, 0) for each in images], **changes)


def _by_folder(plain: VLMBackbone, request: Request, states: Any = "one_pass") -> Features:
    return encode_requests(plain, stock_clip.SPEC, [request], states=states, max_tiles=5)


def _same_tokens(given: Features, expected: Features) -> bool:
    """Whether everything but the states is equal."""
    return all(
        torch.equal(a, b)
        for a, b in (
            (given.mask, expected.mask),
            (given.positions, expected.positions),
            (given.token_info.roles, expected.token_info.roles),
            (given.token_info.ids, expected.token_info.ids),
        )
    )


@case()
def stock_encoder_states() -> dict[str, Any]:
    """Features with and without images, and with a locked rewrite; against stock CLIPTextEncode, too."""
    found: dict[str, Any] = {}
    with small_qwen() as (plain, weights, options):
        clip = load_small_qwen(weights, options)
        for name, images in (("text", []), ("images", _images())):
            tokens, given = encode(clip, PROMPT, images, 5)
            expected = _by_folder(plain, _request(images))
            found[name] = difference_by_tap(given.features.states, expected.states)
            found[name + ", tokens"] = _same_tokens(given.features, expected)
        found["tiles"] = len(tiles_of(tokens))
        for states in ("one_pass", "reencode"):
            given, _ = rewritten(clip, PROMPT, images, locked_text="a blue ball", states=states)
            expected = _by_folder(plain, _request(images, rewrite="a blue ball"), states)
            found[states] = difference_by_tap(given.features.states, expected.states)
        (of_stock,) = stock.CLIPTextEncode().encode(clip, "a red ball")
        own = encode(clip, "a red ball", [], 5)[1]
        found["stock"] = difference(own.features.states.flatten(2), of_stock[0][0])
    return found


@stock_encoder_states.check
def _(found: dict[str, Any]) -> None:
    assert close(*(found[name] for name in ("text", "images", "one_pass", "reencode", "stock")))
    assert found["text, tokens"]
    assert found["images, tokens"]
    assert found["tiles"] == 4


@case()
def stock_encoder_in_8_bits() -> dict[str, Any]:
    """Features of quantized weights against the folder with dequantized ones."""
    with small_qwen() as (plain, weights, options):
        stored, exact = scaled_fp8(weights)
        clip = load_small_qwen(stored, options)
        set_weights(plain, exact)
        images = _images()
        given = encode(clip, PROMPT, images, 5)[1]
        expected = _by_folder(plain, _request(images))
        layers = [each for each in clip.cond_stage_model.modules() if hasattr(each, "weight")]
        return {
            "states": difference_by_tap(given.features.states, expected.states),
            "kinds of weights": sorted({type(each.weight).__name__ for each in layers}),
        }


@stock_encoder_in_8_bits.check
def _(found: dict[str, Any]) -> None:
    assert close(found["states"])
    assert "QuantizedTensor" in found["kinds of weights"]


@case()
def stock_encoder_text() -> dict[str, Any]:
    """Greedy text, its states and its end, by ComfyUI's generation against the backbone's; sampled texts by their seeds."""
    with small_qwen() as (plain, weights, options):
        clip, spec = load_small_qwen(weights, options), stock_clip.SPEC
        inputs = plain.prepare([_request(_images())], spec.template, 5)
        expected = plain.write(inputs, spec, max_new_tokens=6)
        words = expected.features.token_info.ids[0, -6:].tolist()
        # the word that is the last to appear
        last = max(words.index(word) for word in words)
        with at_work(clip, [{"inputs": inputs}]) as encoder:
            backbone = encoder.backbone
            given = backbone.write(inputs, spec, max_new_tokens=6, seed=0)
            stopped = _stopping_at(backbone, words[last], inputs)
            sampled = [
                backbone.write(inputs, (), max_new_tokens=6, temperature=2.0, seed=seed).texts
                for seed in (1, 1, 2)
            ]
        return {
            "text": given.texts == expected.texts and given.ended == expected.ended == [False],
            "states": difference_by_tap(given.features.states, expected.features.states),
            "stopped": stopped.ended == [True] and stopped.texts == [plain.tokenizer.decode(words[:last])],
            "words before the stop": last,
            "same text by seeds 1 and 1, 1 and 2": [sampled[0] == sampled[1], sampled[0] == sampled[2]],
        }


def _stopping_at(backbone: Any, word: int, inputs: Any) -> Any:
    """Greedy text by ComfyUI's generation that ends at a word."""
    config = backbone.model.model.config
    config.stop_tokens = [word]
    try:
        return backbone.write(inputs, (), max_new_tokens=6, seed=0)
    finally:
        # the class has the usual ones
        del config.stop_tokens


@stock_encoder_text.check
def _(found: dict[str, Any]) -> None:
    assert found["text"]
    assert close(found["states"])
    assert found["stopped"]
    assert found["words before the stop"] > 1
    assert found["same text by seeds 1 and 1, 1 and 2"] == [True, False]


@refused("64 wide", "2560 wide", "Qwen3-VL-4B", "Load UniFusion VLM")
def stock_encoder_of_another_width() -> None:
    with small_qwen() as (_, weights, options):
        clip = load_small_qwen(weights, options)
        stock_clip.SPEC = KREA_2.config.vlm
        encode(clip, "", [], 5)


@refused("Linear", "Load UniFusion VLM", "Load CLIP of type krea2")
def another_kind_of_text_encoder() -> None:
    class OtherKind:
        cond_stage_model = torch.nn.Linear(1, 1)

    encode(OtherKind(), "", [], 5)
