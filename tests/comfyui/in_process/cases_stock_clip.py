"""ComfyUI's own Qwen3-VL gives the same states and texts as the folder with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from comfy.text_encoders import llama
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


# ComfyUI's code may change ---------------------------------------------------------------------------


@case()
def stock_encoder_is_checked_once() -> dict[str, Any]:
    """Forward passes of ComfyUI's model for two prompts and for one more encoder, in 32 bits and in 8."""
    found = {}
    with small_qwen() as (_, weights, options):
        for name, stored in (("32 bits", weights), ("8 bits", scaled_fp8(weights)[0])):
            clip = load_small_qwen(stored, options)
            passes: list[int] = []
            language_model = clip.cond_stage_model.qwen3vl_4b.transformer.model
            language_model.register_forward_hook(lambda *_, into=passes: into.append(1))
            counts = []
            for prompt in ("a red ball", "a blue ball"):
                encode(clip, prompt, [], 5)
                counts.append(len(passes))
            found[name] = counts
    return found


@stock_encoder_is_checked_once.check
def _(found: dict[str, Any]) -> None:
    assert found == {"32 bits": [2, 3], "8 bits": [2, 3]}


@cache
def _unchecked_clip() -> Any:
    with small_qwen() as (_, weights, options):
        return load_small_qwen(weights, options)


def _encode_where(attribute: str, replacement: Any, of: Any = llama.Llama2_) -> None:
    """Encodes a prompt with one method of ComfyUI's language model replaced, by a function of the plain method."""
    plain, clip = getattr(of, attribute), _unchecked_clip()
    with small_qwen():
        setattr(of, attribute, replacement(plain))
        try:
            encode(clip, "a red ball", [], 5)
        finally:
            setattr(of, attribute, plain)


@refused("VLMError", "other hidden states", "layer 2", "Load UniFusion VLM", "0.33.0")
def stock_encoder_with_other_positions() -> None:
    """As if rotary positions were counted from 1 in steps of 2."""
    _encode_where(
        "compute_freqs_cis", lambda plain: lambda self, ids, device: plain(self, 2 * ids + 1, device)
    )


@refused("VLMError", "other hidden states", "Load UniFusion VLM")
def stock_encoder_with_other_layers() -> None:
    """As if layers were counted from their outputs."""

    def later(plain: Any) -> Any:
        def forward(self: Any, *args: Any, intermediate_output: Any = None, **kwargs: Any) -> Any:
            taps = intermediate_output and [tap - 1 for tap in intermediate_output]
            return plain(self, *args, intermediate_output=taps, **kwargs)

        return forward

    _encode_where("forward", later)


@refused("VLMError", "other hidden states", "layer 35")
def stock_encoder_with_a_final_norm() -> None:
    """As if the last of the states were normalised."""

    def normed(plain: Any) -> Any:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            last, states, *more = plain(self, *args, **kwargs)
            return last, torch.cat([states[:, :-1], self.norm(states[:, -1:])], 1), *more

        return forward

    _encode_where("forward", normed)


@refused("VLMError", "other parts", "q_proj", "Load UniFusion VLM")
def stock_encoder_with_other_parts() -> None:
    """As if the projections of a layer had other names."""
    attention = _unchecked_clip().cond_stage_model.qwen3vl_4b.transformer.model.layers[0].self_attn

    def renamed(plain: Any) -> Any:
        projection = attention.q_proj
        del attention.q_proj

        def forward(*args: Any, **kwargs: Any) -> Any:
            attention.q_proj = projection
            try:
                return plain(*args, **kwargs)
            finally:
                del attention.q_proj

        return forward

    projection = attention.q_proj
    try:
        _encode_where("forward", renamed, attention)
    finally:
        attention.q_proj = projection


# Krea's own corners -----------------------------------------------------------------------------------


@case()
def prompts_as_krea_tokenizes_them() -> dict[str, list[bool]]:
    """Token ids of a chat, and those of them that become the condition, against the steps of Krea's own code: prefix and prompt
    in one text, cut behind 541 tokens; the suffix; and everything but the first 34 tokens."""
    prompts = {
        "plain": "a red fox",
        "empty": "",
        "line break": "\na red fox",
        "line breaks": "\n\n\n",
        "blanks and line breaks": " \t\n  \n a fox\n",
        "windows": "\r\nfox",
        "507 tokens": "fox " * 506 + "fox",
    }
    found = {}
    with small_qwen() as (_, weights, options):
        clip = load_small_qwen(weights, options)
        template, tokenizer = stock_clip.SPEC.template, stock_clip._tokenizer()
        for name, prompt in prompts.items():
            (tokens,), given = encode(clip, prompt, [], 5)
            expected = tokenizer.encode(template.prefix + prompt)[:541] + tokenizer.encode(template.suffix)
            found[name] = [
                tokens["inputs"].token_ids[0].tolist() == expected,
                given.features.token_info.ids[0].tolist() == expected[34:],
            ]
    return found


@prompts_as_krea_tokenizes_them.check
def _(found: dict[str, list[bool]]) -> None:
    assert len(found) == 7
    assert all(found.values())
    assert all(each == [True, True] for each in found.values())
