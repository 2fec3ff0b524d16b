"""The frozen VLM on small random models of the three real architectures: taps, batches, text, folders.

pytest tests/unit/vlm/test_backbone.py
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import pytest
import torch
import transformers
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    InternVLConfig,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from unifusion_core.caching import LRUCache
from unifusion_core.contracts import Features, Request, TokenRole, TokenSelection, VLMSpec
from unifusion_core.errors import ConfigError, PromptError, ShapeError, VLMError
from unifusion_core.vlm import base
from unifusion_core.vlm.backbone import VLMBackbone
from unifusion_core.vlm.base import Written
from unifusion_core.vlm.chat import VLMInputs
from unifusion_core.vlm.families import FAMILIES, decoder_layers
from unifusion_core.vlm.features import encode_chat, select_tokens
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.vlm.prefix_cache import STATES_LIMIT
from unifusion_core.vlm.tiling import split_into_tiles

# as conftest.py builds them
NUM_LAYERS, WIDTH, MAX_LENGTH = 4, 64, 400
Reference = Callable[[VLMBackbone, dict[str, Tensor]], Tensor]


@pytest.fixture
def internvl(all_vlms: dict[str, VLMBackbone]) -> VLMBackbone:
    return all_vlms["internvl"]


def picture(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def mixed_requests() -> list[Request]:
    """Text, one image, two images and a rewrite, all of different lengths."""
    return [
        Request(prompt="a red star"),
        Request(prompt="make it blue", images=[picture(48, 24, 1)]),
        Request(prompt="", images=[picture(30, 70, 2), picture(24, 24, 3)], rewrite="a circle"),
    ]


def huggingface_inputs(vlm: VLMBackbone, inputs: VLMInputs) -> dict[str, Tensor]:
    """What transformers itself would be given (it counts the positions)."""
    arguments = {"input_ids": inputs.token_ids, "attention_mask": inputs.mask.long(), **inputs.pixel_inputs}
    if vlm.family_name != "internvl" and not transformers.__version__.startswith("4."):
        arguments["mm_token_type_ids"] = (inputs.roles == TokenRole.IMAGE).int()
    return arguments


# Hidden states


@pytest.mark.parametrize("taps", [(0, 1, 2, 3), (2,), (0, 3), (1, 2)])
def test_taps_are_what_the_layers_read(
    vlm: VLMBackbone, reference_states: Reference, taps: tuple[int, ...]
) -> None:
    inputs = vlm.prepare(mixed_requests(), max_tiles=5)
    features = vlm.encode(inputs, taps)
    expected = reference_states(vlm, huggingface_inputs(vlm, inputs))[:, :, list(taps)]
    torch.testing.assert_close(features.states[inputs.mask], expected[inputs.mask], atol=1e-5, rtol=0)
    assert not features.states[~inputs.mask].any()
    assert not features.states.requires_grad
    assert not features.states.is_inference()


def test_deep_stack_is_part_of_what_the_second_layer_reads(all_vlms: dict[str, VLMBackbone]) -> None:
    vlm = all_vlms["qwen3_vl"]
    inputs = vlm.prepare(mixed_requests()[1:2])
    left: list[Tensor] = []
    hook = decoder_layers(vlm.model)[0].register_forward_hook(lambda *call: left.append(call[-1].clone()))
    states = vlm.encode(inputs, (1,)).states[0, :, 0]
    hook.remove()
    is_picture = inputs.roles[0] == TokenRole.IMAGE
    assert (states - left[0][0])[is_picture].abs().amax(dim=1).min() > 0.01
    torch.testing.assert_close(states[~is_picture], left[0][0][~is_picture])


def test_later_layers_are_not_run_and_the_model_works_afterwards(
    vlm: VLMBackbone, reference_states: Reference
) -> None:
    layers = decoder_layers(vlm.model)
    calls = [0] * len(layers)

    def counter(index: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            calls[index] += 1

        return count

    hooks = [layer.register_forward_hook(counter(index)) for index, layer in enumerate(layers)]
    inputs = vlm.prepare(mixed_requests())
    before = reference_states(vlm, huggingface_inputs(vlm, inputs))
    calls[:] = [0] * len(layers)
    vlm.encode(inputs, (0, 2))
    assert calls == [1, 1, 0, 0]
    for hook in hooks:
        hook.remove()
    assert not any(layer._forward_pre_hooks for layer in layers)
    assert torch.equal(reference_states(vlm, huggingface_inputs(vlm, inputs)), before)


def test_hooks_are_gone_after_an_error(vlm: VLMBackbone) -> None:
    inputs = vlm.prepare(mixed_requests()[:1])
    broken = replace(inputs, token_ids=torch.full_like(inputs.token_ids, 10**6))
    with pytest.raises(IndexError):
        vlm.encode(broken, (0, 2))
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(vlm.model))


def test_padded_batch_equals_single_items(vlm: VLMBackbone) -> None:
    requests = mixed_requests()
    together = vlm.encode(vlm.prepare(requests), (0, 1, 3))
    for row, request in enumerate(requests):
        alone = vlm.encode(vlm.prepare([request]), (0, 1, 3))
        length = alone.mask.shape[1]
        assert int(together.mask[row].sum()) == length
        assert torch.equal(together.positions[row, :length], alone.positions[0])
        for name in ("roles", "ids"):
            both = getattr(together.token_info, name)[row, :length]
            assert torch.equal(both, getattr(alone.token_info, name)[0])
        # another batch shape adds in another order: equal up to rounding of numbers of that size
        error = (together.states[row, :length] - alone.states[0]).abs().max()
        assert error <= 1e-5 * alone.states.abs().max()


def test_states_depend_on_what_stands_before_only(vlm: VLMBackbone) -> None:
    first, second = (
        vlm.encode(vlm.prepare([Request(prompt=prompt, images=[picture(50, 40, 4)])]), (3,))
        for prompt in ("red", "a big blue square")
    )
    pictures = first.token_info.roles == TokenRole.IMAGE
    length = int(pictures[0].nonzero().max()) + 1
    torch.testing.assert_close(first.states[:, :length], second.states[:, :length], atol=1e-5, rtol=0)


# Pictures


def test_all_tiles_of_all_pictures_go_through_the_vision_tower_at_once(vlm: VLMBackbone) -> None:
    model: Any = vlm.model
    tower = model.model.vision_tower if vlm.family_name == "internvl" else model.model.visual
    calls: list[int] = []
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    inputs = vlm.prepare(mixed_requests(), max_tiles=5)
    vlm.encode(inputs, (0,))
    hook.remove()
    assert calls == [1]
    num_tiles = sum(len(tiles) for of_request in inputs.tiles for tiles in of_request)
    assert num_tiles == (2 + 1) + (2 + 1) + 1


def test_picture_tokens_know_their_place(vlm: VLMBackbone) -> None:
    rows, columns = vlm.token_grid
    assert vlm.tokens_per_tile == rows * columns == 9
    inputs = vlm.prepare([Request(prompt="x", images=[picture(48, 24, 1), picture(9, 9, 2)])])
    positions = inputs.positions[0][inputs.roles[0] == TokenRole.IMAGE]
    tiles = positions.reshape(4, rows, columns, 3)
    assert tiles[:, 0, 0, 0].tolist() == [1, 1, 1, 2]
    sixths = torch.tensor([1 / 6, 3 / 6, 5 / 6])
    torch.testing.assert_close(tiles[0, :, 0, 1], sixths / 2)
    torch.testing.assert_close(tiles[1, :, 0, 1], 0.5 + sixths / 2)
    torch.testing.assert_close(tiles[2, :, 0, 1], sixths)
    for tile in tiles:
        torch.testing.assert_close(tile[0, :, 2], sixths)


def test_a_token_sees_the_place_that_its_position_names(vlm: VLMBackbone) -> None:
    """Changes the image under one token. The largest change must be there: vision attention spreads smaller ones."""
    size = 2 * vlm.tile_size
    plain = torch.full((3, size, size), 0.5)
    for row, column in [(0.25, 0.75), (1 / 12, 5 / 12), (11 / 12, 1 / 12)]:
        changed = plain.clone()
        top, left = int(row * size) - 4, int(column * size) - 4
        changed[:, top : top + 8, left : left + 8] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
        before, after = (vlm.prepare([Request(prompt="", images=[each])]) for each in (plain, changed))
        change = (vlm.encode(after, (0,)).states - vlm.encode(before, (0,)).states)[0, :, 0].norm(dim=1)
        change[-9:] = 0
        is_tile = (after.roles[0] == TokenRole.IMAGE).nonzero()[:-9, 0]
        most = is_tile[change[is_tile].argmax()]
        assert after.positions[0, most, 1].item() == pytest.approx(row, abs=0.05)
        assert after.positions[0, most, 2].item() == pytest.approx(column, abs=0.05)


def test_qwen_patches_are_in_qwens_order(all_vlms: dict[str, VLMBackbone]) -> None:
    """Written anew after transformers' image processor, whose order the vision tower's weights expect."""
    vlm = all_vlms["qwen2_5_vl"]
    tiles = torch.rand(2, 3, 24, 24)
    made = FAMILIES["qwen2_5_vl"].pixel_inputs(vlm.model.config, tiles)
    merge, patch = 2, 4
    expected = tiles[:, None].repeat(1, 2, 1, 1, 1).reshape(2, 1, 2, 3, 3, merge, patch, 3, merge, patch)
    expected = expected.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(2 * 36, 3 * 2 * patch * patch)
    assert torch.equal(made["pixel_values"], expected)
    assert made["image_grid_thw"].tolist() == [[1, 6, 6]] * 2


def test_thumbnail_first_reorders_tokens_and_pixels_alike(internvl: VLMBackbone) -> None:
    request = Request(prompt="", images=[picture(48, 24, 1)])
    last = internvl.prepare([request])
    first = internvl.prepare([request], replace(internvl.template, thumbnail_last=False))
    moved = rearrange(last.positions[0][last.roles[0] == TokenRole.IMAGE], "(g n) k -> g n k", g=3).roll(1, 0)
    assert torch.equal(first.positions[0][first.roles[0] == TokenRole.IMAGE], moved.flatten(0, 1))
    assert torch.equal(first.pixel_inputs["pixel_values"], last.pixel_inputs["pixel_values"].roll(1, 0))


def test_normalisation_comes_from_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    white = [Request(prompt="", images=[torch.ones(3, 24, 24)])]
    plain = load_vlm(folders["internvl"]).prepare(white).pixel_inputs["pixel_values"]
    torch.testing.assert_close(plain[0, 0, 0, 0], torch.tensor((1 - 0.485) / 0.229))
    folder = shutil.copytree(folders["internvl"], tmp_path / "vlm")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    own = load_vlm(folder).prepare(white).pixel_inputs["pixel_values"]
    torch.testing.assert_close(own, torch.full_like(own, 2.0))
    (folder / "preprocessor_config.json").rename(folder / "moved.json")
    processor = {"image_processor": {"image_mean": [0.0] * 3, "image_std": [0.5] * 3}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    nested = load_vlm(folder).prepare(white).pixel_inputs["pixel_values"]
    torch.testing.assert_close(nested, torch.full_like(nested, 2.0))


def test_bad_pictures_and_long_chats_are_refused(vlm: VLMBackbone) -> None:
    with pytest.raises(ShapeError, match=r"give values in 0\.\.1"):
        vlm.prepare([Request(prompt="", images=[torch.full((3, 9, 9), 9.0)])])
    with pytest.raises(
        PromptError, match=rf"this VLM takes {MAX_LENGTH}; .* 50 tiles of 5 image.*Set max_tiles to "
    ):
        # 3 x 3 tiles each
        vlm.prepare([Request(prompt="", images=[picture(72, 72, 1)] * 5)])


def test_user_text_cannot_put_a_picture_into_the_chat(vlm: VLMBackbone) -> None:
    text = vlm.template.image_token * 3
    inputs = vlm.prepare([Request(prompt=text, rewrite=text)])
    assert vlm.model.config.image_token_id not in inputs.token_ids
    inputs = vlm.prepare([Request(prompt=text, images=[picture(9, 9, 1)])])
    assert int((inputs.token_ids == vlm.model.config.image_token_id).sum()) == 9
    vlm.encode(inputs, (3,))


def test_kept_features_of_a_real_batch(vlm: VLMBackbone) -> None:
    kept: Features = select_tokens(vlm.encode(vlm.prepare(mixed_requests()), (0, 3)), "rewrite")
    roles = [set(row[row > 0].tolist()) for row in kept.token_info.roles]
    chat = {TokenRole.PROMPT, TokenRole.SUFFIX}
    assert roles == [
        chat,
        chat | {TokenRole.IMAGE},
        {TokenRole.IMAGE, TokenRole.SUFFIX, TokenRole.REWRITE},
    ]


@pytest.mark.parametrize("token_selection", get_args(TokenSelection))
def test_encode_chat_is_encode_and_select(vlm: VLMBackbone, token_selection: TokenSelection) -> None:
    spec = spec_of(vlm, token_selection=token_selection)
    inputs = vlm.prepare(mixed_requests(), spec.template)
    features = encode_chat(vlm, spec, inputs)
    expected = select_tokens(vlm.encode(inputs, spec), token_selection)
    assert torch.equal(features.states, expected.states)
    assert torch.equal(features.mask, expected.mask)
    assert torch.equal(features.positions, expected.positions)
    assert torch.equal(features.token_info.roles, expected.token_info.roles)
    assert torch.equal(features.token_info.ids, expected.token_info.ids)
    assert TokenRole.SYSTEM not in features.token_info.roles


def test_encode_chat_keeps_the_states_of_images_if_asked(vlm: VLMBackbone) -> None:
    vlm.prefix_cache = LRUCache(STATES_LIMIT)
    spec = spec_of(vlm)
    inputs = vlm.prepare([Request(prompt="a", images=[picture(24, 24, 1)])], spec.template)
    plain = encode_chat(vlm, spec, inputs)
    assert len(vlm.prefix_cache) == 0
    for weights in (None, None, "patched"):
        reused = encode_chat(vlm, spec, inputs, reuse_images=True, weights=weights)
        assert (reused.states - plain.states).abs().amax() <= 1e-4 * plain.states.abs().amax()
    assert len(vlm.prefix_cache) == 2


def test_encode_chat_refuses_a_chat_without_a_token_for_the_condition(vlm: VLMBackbone) -> None:
    spec = spec_of(vlm, template=replace(vlm.template, suffix=""))
    empty = vlm.prepare([Request(prompt="")], spec.template)
    with pytest.raises(PromptError, match="give a prompt, or a template with a suffix"):
        encode_chat(vlm, spec, empty)


# Text


def greedy_by_huggingface(vlm: VLMBackbone, request: Request, num_tokens: int) -> list[int]:
    """The token ids of transformers' own greedy generation for one chat."""
    inputs = vlm.prepare([request])
    vlm.model.generation_config.pad_token_id = inputs.end_id
    model: Any = vlm.model
    made = model.generate(
        **huggingface_inputs(vlm, inputs),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=inputs.end_id,
    )
    return made[0, inputs.token_ids.shape[1] :].tolist()


def unanswered() -> list[Request]:
    return [replace(request, rewrite=None) for request in mixed_requests()]


def test_greedy_text_equals_transformers(vlm: VLMBackbone) -> None:
    requests = unanswered()
    written = vlm.generate(vlm.prepare(requests), max_new_tokens=12)
    expected = [greedy_by_huggingface(vlm, request, 12) for request in requests]
    assert written == [vlm.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert len(set(written)) == 3


@torch.no_grad()
def test_text_right_after_a_picture_equals_passes_without_a_cache(vlm: VLMBackbone) -> None:
    """There the axes of Qwen's positions differ, and text goes on after the largest (generate() of
    transformers counts on from each axis, unlike its own pass over the whole text)."""
    template = replace(vlm.template, image_suffix="", suffix="")
    inputs = vlm.prepare([Request(prompt="", images=[picture(24, 24, 1)])], template)
    longer, expected = inputs, []
    for _ in range(8):
        model: Any = vlm.model
        token_id = model(**huggingface_inputs(vlm, longer)).logits[0, -1].argmax()
        expected.append(int(token_id))
        longer = replace(
            longer,
            token_ids=torch.cat([longer.token_ids, token_id.reshape(1, 1)], dim=1),
            roles=torch.cat([longer.roles, torch.tensor([[int(TokenRole.REWRITE)]])], dim=1),
            mask=torch.cat([longer.mask, torch.ones(1, 1, dtype=torch.bool)], dim=1),
            positions=torch.cat([longer.positions, torch.zeros(1, 1, 3)], dim=1),
        )
    written = vlm.generate(inputs, max_new_tokens=8)
    assert written == [vlm.tokenizer.decode(expected, skip_special_tokens=True)]


def test_a_warning_tells_of_answers_that_were_cut_off(
    internvl: VLMBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    internvl.generate(internvl.prepare([Request(prompt="x")]), max_new_tokens=2)
    assert (
        "1 of 1 rewrites were cut off after 2 tokens; raise the number of new tokens (--max-new-tokens"
        in caplog.text
    )


def test_nothing_is_called_by_a_name_that_transformers_gives_up(vlm: VLMBackbone) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        vlm.write(vlm.prepare(unanswered()), (0, 2), max_new_tokens=2)


def test_sampling_is_reproducible_and_independent_of_neighbours(vlm: VLMBackbone) -> None:
    requests = unanswered()
    inputs = vlm.prepare(requests)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    written = vlm.generate(inputs, max_new_tokens=10, temperature=0.7, seed=[3, 4, 5])
    assert torch.equal(torch.get_rng_state(), state)
    assert vlm.generate(inputs, max_new_tokens=10, temperature=0.7, seed=[3, 4, 5]) == written
    for request, seed, text in zip(requests, (3, 4, 5), written, strict=True):
        assert vlm.generate(vlm.prepare([request]), max_new_tokens=10, temperature=0.7, seed=seed) == [text]
    assert vlm.generate(inputs, max_new_tokens=10, temperature=0.7, seed=[13, 14, 15]) != written
    assert vlm.generate(inputs, max_new_tokens=10, temperature=0.7) != vlm.generate(
        inputs, max_new_tokens=10, temperature=0.7
    )


def test_sampling_follows_the_distribution(internvl: VLMBackbone) -> None:
    inputs = internvl.prepare([Request(prompt="x")] * 500)
    with torch.no_grad():
        logits = internvl.model(input_ids=inputs.token_ids[:1]).logits[0, -1]
    # spreads the lively model's certainty over several words
    temperature = float(logits.std())
    probabilities = (logits / temperature).softmax(0)
    readable = {
        internvl.tokenizer.convert_tokens_to_ids(letter): letter for letter in map(chr, range(33, 127))
    }
    likely = sorted(readable, key=lambda token_id: -probabilities[token_id])[:30]
    expected = float(probabilities[likely].sum())
    drawn = internvl.generate(inputs, max_new_tokens=1, temperature=temperature, seed=list(range(500)))
    share = sum(drawn.count(readable[token_id]) for token_id in likely) / 500
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 500) ** 0.5)
    # so that a uniform draw would fail
    assert expected > 2 * 30 / len(logits)


def test_writing_stops_at_the_end_token(internvl: VLMBackbone, caplog: pytest.LogCaptureFixture) -> None:
    inputs = internvl.prepare([Request(prompt="x")])
    ids = greedy_by_huggingface(internvl, Request(prompt="x"), 6)
    internvl.generate(inputs, max_new_tokens=6)
    assert "1 of 1 rewrites were cut off after 6 tokens" in caplog.text
    caplog.clear()
    # the fourth token that the model writes is the end token now
    length = ids.index(ids[3])
    steps: list[int] = []
    stopped = internvl.generate(replace(inputs, end_id=ids[3]), max_new_tokens=6, on_token=steps.append)
    assert stopped == [internvl.tokenizer.decode(ids[:length], skip_special_tokens=True)]
    assert steps == list(range(1, length + 2))
    assert not caplog.text


def answered(inputs: VLMInputs, row: int, token_ids: list[int]) -> VLMInputs:
    """One chat of a batch, with these tokens in the assistant turn. Pixels are kept as they are."""
    length = int(inputs.mask[row].sum())
    ids = torch.tensor([token_ids], dtype=torch.long)
    roles = torch.full_like(ids, int(TokenRole.REWRITE))
    return replace(
        inputs,
        token_ids=torch.cat([inputs.token_ids[row : row + 1, :length], ids], 1),
        roles=torch.cat([inputs.roles[row : row + 1, :length], roles], 1),
        mask=torch.ones(1, length + len(token_ids), dtype=torch.bool),
        positions=torch.cat([inputs.positions[row : row + 1, :length], torch.zeros(1, len(token_ids), 3)], 1),
    )


def test_states_taken_while_writing_equal_those_of_one_pass_over_chat_and_answer(vlm: VLMBackbone) -> None:
    """Chats of unequal lengths in one batch, with and without images, one of which ends early."""
    requests, taps = unanswered(), (0, 1, 3)
    inputs = vlm.prepare(requests)

    def write(seed: int, end_id: int) -> Written:
        return vlm.write(
            replace(inputs, end_id=end_id), taps, max_new_tokens=7, temperature=2.0, seed=[seed, seed, seed]
        )

    def words(written: Written, row: int) -> list[int]:
        assert written.features is not None
        return written.features.token_info.ids[row, inputs.token_ids.shape[1] :].tolist()

    # random weights may write an image token, which a forced pass would take for an image
    image_id = vlm.model.config.image_token_id
    seed = next(s for s in range(50) if all(image_id not in words(write(s, -1), row) for row in range(3)))
    # the fifth token of the second chat ends a rewrite now
    written = write(seed, words(write(seed, -1), 1)[4])

    assert written.features is not None
    lengths = []
    for row, request in enumerate(requests):
        is_word = (written.features.token_info.roles[row] == TokenRole.REWRITE) & written.features.mask[row]
        ids = written.features.token_info.ids[row, is_word].tolist()
        lengths.append(len(ids))
        assert written.texts[row] == vlm.tokenizer.decode(ids, skip_special_tokens=True)
        forced = vlm.encode(answered(vlm.prepare([request]), 0, ids), taps).states[0]
        taken = written.features.states[row, written.features.mask[row]]
        assert (taken - forced).abs().amax() <= 1e-4 * forced.abs().amax()
    assert lengths[1] < max(lengths)
    assert written.ended == [length < 7 for length in lengths]
    assert not written.features.states[~written.features.mask].any()


def test_pictures_are_read_once_for_all_instructions_about_them(
    vlm: VLMBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States and words are the same on a cache hit and on a miss."""
    vlm.prefix_cache = LRUCache(STATES_LIMIT)
    own = [picture(24, 24, 1), picture(40, 24, 2)]
    first, second = (vlm.prepare([Request(prompt=prompt, images=own)]) for prompt in ("a", "other words"))
    taps = (0, 1, 3)
    plain = [vlm.encode(inputs, taps).states for inputs in (first, second)]
    looks: list[int] = []
    features = type(vlm.model.model).get_image_features
    monkeypatch.setattr(
        type(vlm.model.model), "get_image_features", lambda *a, **k: (looks.append(1), features(*a, **k))[1]
    )

    reused = [vlm.encode(inputs, taps, reuse_images=True).states for inputs in (first, second)]
    again = vlm.encode(first, taps, reuse_images=True).states

    assert len(looks) == 1
    assert torch.equal(again, reused[0])
    for one, other in zip(reused, plain, strict=True):
        assert (one - other).abs().amax() <= 1e-4 * other.abs().amax()
    words = vlm.write(second, taps, max_new_tokens=5)
    for _ in range(2):
        kept = vlm.write(second, taps, max_new_tokens=5, reuse_images=True)
        assert kept.texts == words.texts
        assert kept.features is not None
        assert words.features is not None
        torch.testing.assert_close(kept.features.states, words.features.states, rtol=1e-3, atol=1e-4)
    changed = vlm.prepare([Request(prompt="a", images=[own[0], own[1] * 0.5])])
    vlm.encode(changed, taps, reuse_images=True)
    vlm.encode(first, taps, reuse_images=True, weights="patched")
    # to the last tap, through all layers, other pixels, other weights
    assert len(vlm.prefix_cache) == 4


def test_kept_pictures_stay_within_their_limit(internvl: VLMBackbone) -> None:
    internvl.prefix_cache = LRUCache(limit=0)
    inputs = [internvl.prepare([Request(prompt="a", images=[picture(24, 24, n)])]) for n in range(3)]
    unlimited = internvl.encode(inputs[0], (0, 2), reuse_images=True).states
    assert len(internvl.prefix_cache) == 0
    internvl.prefix_cache = LRUCache(STATES_LIMIT)
    internvl.encode(inputs[0], (0, 2), reuse_images=True)
    internvl.prefix_cache.limit = int(2.5 * internvl.prefix_cache.num_bytes)
    for each in (inputs[1], inputs[0], inputs[2]):
        assert torch.isfinite(internvl.encode(each, (0, 2), reuse_images=True).states).all()
    assert len(internvl.prefix_cache) == 2
    assert torch.equal(internvl.encode(inputs[0], (0, 2), reuse_images=True).states, unlimited)
    internvl.prefix_cache = LRUCache(STATES_LIMIT, max_entries=1)
    for each in (*inputs, inputs[0]):
        internvl.encode(each, (0, 2), reuse_images=True)
    assert len(internvl.prefix_cache) == 1
    assert torch.equal(internvl.encode(inputs[0], (0, 2), reuse_images=True).states, unlimited)


def test_a_picture_is_cut_once(internvl: VLMBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    internvl.clear_image_caches()
    cuts: list[int] = []
    monkeypatch.setattr(base, "split_into_tiles", lambda *a: (cuts.append(1), split_into_tiles(*a))[1])
    seen = picture(48, 24, 1)
    first, again = (internvl.prepare([Request(prompt="a", images=[p])]) for p in (seen, seen.clone()))
    assert len(cuts) == 1
    assert torch.equal(first.pixel_inputs["pixel_values"], again.pixel_inputs["pixel_values"])
    internvl.prepare([Request(prompt="a", images=[seen])], max_tiles=1)
    internvl.prepare([Request(prompt="a", images=[seen * 0.5])])
    internvl.clear_image_caches()
    internvl.prepare([Request(prompt="a", images=[seen])])
    assert len(cuts) == 4


def test_on_token_may_interrupt(vlm: VLMBackbone) -> None:
    inputs = vlm.prepare(unanswered())
    before = vlm.generate(inputs, max_new_tokens=5)

    def interrupt(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vlm.generate(inputs, max_new_tokens=5, on_token=interrupt)
    assert vlm.generate(inputs, max_new_tokens=5) == before


def test_encoding_and_writing_do_not_disturb_each_other(vlm: VLMBackbone) -> None:
    """Qwen models keep the positions of their last call; ours are given anew in each."""
    pictures, text = vlm.prepare(mixed_requests()[1:2]), vlm.prepare(mixed_requests()[:1])
    before = vlm.encode(text, (3,)).states
    vlm.generate(pictures, max_new_tokens=3)
    assert torch.equal(vlm.encode(text, (3,)).states, before)


@pytest.mark.parametrize(
    ("request_", "options", "error", "told"),
    [
        (Request(prompt="x", rewrite="y"), {}, PromptError, "has a rewrite already"),
        (Request(prompt="x", rewrite=""), {}, PromptError, "has a rewrite already"),
        (Request(prompt="x"), {"max_new_tokens": 0}, ConfigError, "max_new_tokens is 0"),
        (
            Request(prompt="x"),
            {"max_new_tokens": MAX_LENGTH},
            PromptError,
            r"set the number of new tokens \(--max-new-tokens, .*\) to 3[0-9]{2} or less",
        ),
        (Request(prompt="x"), {"temperature": -1.0}, ConfigError, "temperature is -1.0"),
        (
            Request(prompt="x"),
            {"temperature": 1.0, "seed": [1, 2]},
            ConfigError,
            "2 seeds were given for 1 chats",
        ),
    ],
)
def test_impossible_writing_is_refused(
    internvl: VLMBackbone, request_: Request, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        internvl.generate(internvl.prepare([request_]), **{"max_new_tokens": 4} | options)


# The VLM and its folder


def spec_of(vlm: VLMBackbone, **changes: Any) -> VLMSpec:
    fields: dict[str, Any] = {
        "family": vlm.family_name,
        "hidden_size": WIDTH,
        "num_layers": NUM_LAYERS,
        "taps": (0, 2),
        "template": vlm.template,
    }
    return VLMSpec(**fields | changes)


def test_the_vlm_is_frozen(vlm: VLMBackbone) -> None:
    torch.nn.ModuleList([vlm]).train()
    assert not any(module.training for module in vlm.modules())
    assert not any(parameter.requires_grad for parameter in vlm.parameters())


def test_a_fitting_spec_is_taken_and_its_taps_are_read(vlm: VLMBackbone) -> None:
    spec = spec_of(vlm, fingerprint=vlm.fingerprint)
    vlm.check_fits(spec)
    inputs = vlm.prepare(mixed_requests()[:1], spec.template)
    assert torch.equal(vlm.encode(inputs, spec).states, vlm.encode(inputs, (0, 2)).states)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 96}, "its hidden size is 64, 96 is needed"),
        ({"num_layers": 7}, "its number of layers is 4, 7 is needed"),
        ({"family": "qwen9"}, "its family is (internvl|qwen2_5_vl|qwen3_vl), qwen9 is needed"),
        ({"fingerprint": "0" * 64}, "other weights .*000000000000 is needed"),
    ],
)
def test_another_vlm_is_refused(vlm: VLMBackbone, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(VLMError, match=told):
        vlm.check_fits(spec_of(vlm, **changes))


def test_templates_of_another_family_are_refused(all_vlms: dict[str, VLMBackbone]) -> None:
    internvl, qwen = all_vlms["internvl"], all_vlms["qwen3_vl"]
    with pytest.raises(VLMError, match=r"image_token .* and this VLM's image token is \d+: use the VLM that"):
        internvl.check_fits(spec_of(internvl, template=qwen.template))
    with pytest.raises(
        VLMError,
        match=r"neither image_prefix nor image_suffix, and qwen3_vl needs one .* to separate tiles",
    ):
        qwen.check_fits(spec_of(qwen, template=replace(qwen.template, image_prefix="", image_suffix="")))
    with pytest.raises(VLMError, match="image_token"):
        internvl.prepare([Request(prompt="", images=[picture(9, 9, 1)])], qwen.template)


@pytest.mark.parametrize("taps", [(), (4,), (-1, 2), (2, 1), (1, 1)])
def test_impossible_taps_are_refused(internvl: VLMBackbone, taps: tuple[int, ...]) -> None:
    with pytest.raises(VLMError, match=r"has 4 layers: give one or more of 0\.\.3"):
        internvl.encode(internvl.prepare([Request(prompt="x")]), taps)


def test_fingerprint_is_of_the_weights_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    vlm = load_vlm(folders["internvl"])
    folder = shutil.copytree(folders["internvl"], tmp_path / "vlm")
    (folder / "preprocessor_config.json").write_text("{}")
    assert load_vlm(folder, dtype=torch.bfloat16).fingerprint == vlm.fingerprint
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_vlm(folder).fingerprint != vlm.fingerprint
    in_memory = VLMBackbone(vlm.model, vlm.tokenizer)
    assert len(in_memory.fingerprint) == 64


def test_loading_keeps_every_weight(folders: dict[str, Path], vlm: VLMBackbone) -> None:
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(folders[vlm.family_name])
    for (name, ours), (_, theirs) in zip(
        vlm.model.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert (
        load_vlm(folders[vlm.family_name], dtype=torch.bfloat16)
        .encode(vlm.prepare(mixed_requests()), (1,))
        .states.dtype
        == torch.bfloat16
    )


def rewrite_config(folder: Path, file: str = "config.json", **changes: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def break_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_weights(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if "mlp.up_proj" in name]:
        del weights[name]


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def two_shards(folder: Path) -> tuple[Path, Path]:
    """The weights in two files with an index, as large models are published."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    where = {name: shards[index % 2].name for index, name in enumerate(names)}
    for shard in shards:
        held = {name: weights[name] for name in names if where[name] == shard.name}
        save_file(held, shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return shards[0], shards[1]


def half_downloaded(folder: Path) -> None:
    shard = two_shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "There is no VLM folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json, so it is not a VLM folder"),
    "damaged config": (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "other type": (
        lambda f: rewrite_config(f, model_type="llava"),
        'type "llava"; supported are internvl, qwen2_5_vl, qwen3_vl: update this pack, or use a supported VLM',
    ),
    "not hf": (
        lambda f: rewrite_config(f, model_type="internvl_chat"),
        "qwen3_vl: use the version .* ends in -hf",
    ),
    "own code": (
        lambda f: rewrite_config(f, auto_map={"AutoModel": "code.Model"}),
        '"auto_map".*never run; use the version',
    ),
    "own tokenizer": (
        lambda f: rewrite_config(f, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tok", None]}),
        'tokenizer_config.json requires code .*"auto_map"',
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    "damaged tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer in .* cannot be read",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights in .* are missing, damaged"),
    "truncated": (truncate, "weights in .* are missing, damaged"),
    "half a shard": (half_downloaded, "weights in .* are missing, damaged .*copy the model's files again"),
    "a shard missing": (lambda f: two_shards(f)[1].unlink(), "weights in .* are missing, damaged"),
    "missing keys": (
        lambda f: break_weights(f, drop_weights),
        r"missing keys model\.language_model\.layers\.0\.mlp\.up_proj\.weight, .* and 1 more",
    ),
    "unexpected keys": (
        lambda f: break_weights(f, lambda weights: weights.update(stranger=torch.ones(3))),
        "unexpected keys stranger",
    ),
    "other width": (
        lambda f: rewrite_config(f, image_seq_length=4),
        "6 x 6 patches; with downsample_ratio 0.5 that gives 3 squared tokens, but image_seq_length is 4",
    ),
    "other shape": (
        lambda f: break_weights(
            f, lambda weights: weights.update({"language_model.model.norm.weight": torch.ones(3)})
        ),
        "do not fit its config.json",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FOLDERS)
def test_broken_folders_are_refused(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    damage, told = BROKEN_FOLDERS[case]
    folder = shutil.copytree(folders["internvl"], tmp_path / "vlm")
    damage(folder)
    with pytest.raises(VLMError, match=told):
        load_vlm(folder)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 16000000000 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.90 GiB."),
        MemoryError("Cannot allocate memory (os error 12)"),
    ],
)
def test_too_little_memory_is_not_called_damage(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", Mock(side_effect=error))
    with pytest.raises(
        VLMError, match=r"more memory than is available .*: use a smaller one, or close other"
    ):
        load_vlm(folders["internvl"])


def test_shards_open_as_one_file_does(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["internvl"], tmp_path / "vlm")
    two_shards(folder)
    assert load_vlm(folder).model.num_parameters() == load_vlm(folders["internvl"]).model.num_parameters()


@pytest.mark.parametrize("shown", [True, False])
def test_loading_shows_no_bar_of_transformers_and_puts_its_setting_back(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], shown: bool
) -> None:
    folder = shutil.copytree(folders["internvl"], tmp_path / "vlm")
    two_shards(folder)
    before = hf_logging.is_progress_bar_enabled()
    try:
        (hf_logging.enable_progress_bar if shown else hf_logging.disable_progress_bar)()
        load_vlm(folder)
        assert "it/s" not in "".join(capfd.readouterr())
        assert hf_logging.is_progress_bar_enabled() == shown

        # the bar that would leak
        AutoModelForImageTextToText.from_pretrained(folder)
        assert ("it/s" in "".join(capfd.readouterr())) == shown

        (folder / "model-00001-of-00002.safetensors").unlink()
        with pytest.raises(VLMError):
            load_vlm(folder)
        assert hf_logging.is_progress_bar_enabled() == shown
    finally:
        (hf_logging.enable_progress_bar if before else hf_logging.disable_progress_bar)()


def test_code_in_a_folder_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen3_vl"], tmp_path / "vlm")
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    rewrite_config(folder, auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    with pytest.raises(VLMError, match='"auto_map"'):
        load_vlm(folder)
    assert not ran.exists()


def test_tile_size_is_free_only_where_the_family_leaves_it_free(folders: dict[str, Path]) -> None:
    assert load_vlm(folders["qwen3_vl"]).tile_size == 448
    assert load_vlm(folders["qwen3_vl"], tile_size=29).tile_size == 32
    with pytest.raises(
        VLMError,
        match=r"tile_size 48 was requested and .* tiles have 24 pixels; give 24, or no tile_size",
    ):
        load_vlm(folders["internvl"], tile_size=48)


def test_a_text_encoder_saved_without_its_head_encodes_and_writes_nothing(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As diffusers saves pipelines: text_encoder/ without head, the tokenizer in a folder beside it."""
    whole = load_vlm(folders["qwen3_vl"], tile_size=32)
    whole.model.model.save_pretrained(tmp_path / "text_encoder")
    whole.tokenizer.save_pretrained(tmp_path / "tokenizer")
    capfd.readouterr()

    alone = load_vlm(tmp_path / "text_encoder", tile_size=32)

    assert capfd.readouterr() == ("", "")
    request = Request(prompt="a red star", images=[picture(128, 96, 1)])
    inputs = whole.prepare([request], max_tiles=1)
    assert torch.equal(alone.encode(inputs, (0, 1)).states, whole.encode(inputs, (0, 1)).states)
    with pytest.raises(
        VLMError, match=r"has no language model head, so it writes no text: use the whole model"
    ):
        alone.generate(inputs, max_new_tokens=2)


def test_the_embedded_size_survives_saving(internvl: VLMBackbone, tmp_path: Path) -> None:
    """The shape of the VLM in the repository: 48 px, patch 8, an odd 3 x 3 token grid, tied head."""
    tokenizer, config = internvl.tokenizer, internvl.model.config.to_dict()
    config["vision_config"] |= {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config["vision_config"] |= {"patch_size": [8, 8], "image_size": [48, 48]}
    config["text_config"] |= {"hidden_size": 160, "num_hidden_layers": 6, "layer_types": None}
    config["text_config"] |= {"num_attention_heads": 5, "num_key_value_heads": 5}
    model = AutoModelForImageTextToText.from_config(InternVLConfig(**config))
    before = VLMBackbone(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    after = load_vlm(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert (after.tile_size, after.tokens_per_tile, after.hidden_size, after.num_layers) == (48, 9, 160, 6)
    inputs = after.prepare([Request(prompt="a red star", images=[picture(128, 96, 1)])])
    taps = (0, 1, 2, 3, 5)
    assert torch.equal(after.encode(inputs, taps).states, before.encode(inputs, taps).states)
