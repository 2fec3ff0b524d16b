"""Every family, every kind of chat: the backbone reads what transformers' own way reads.

That way is walked here without our code: its tokenizer over one text, its picture processor (the one without torchvision) over
tiles of the right size, positions counted by its model.

    python -m pytest tests/unit/vlm/test_families.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForImageTextToText, InternVLConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from unifusion_core.contracts import Request
from unifusion_core.errors import VLMError
from unifusion_core.vlm.backbone import VLMBackbone
from unifusion_core.vlm.families import FAMILIES
from unifusion_core.vlm.tiling import Tiles
from unifusion_core.zoo.krea_2 import KREA_2

# of the largest value, in float32
PARITY = 1e-4
TAPS = (0, 1, 2, 3)
# of a tile, as conftest.py builds the models
TOKENS = 9


def picture(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


TEXT = Request(prompt="a red star")
IMAGE = Request(prompt="what is this?", images=[picture(24, 24, 1)])
TILES = Request(
    prompt="both", images=[picture(48, 24, 2), picture(48, 48, 3), picture(24, 24, 4), picture(24, 72, 5)]
)
REWRITE = Request(prompt="draw it", images=[picture(24, 48, 6)], rewrite="a small blue circle")
CHATS: dict[str, list[Request]] = {
    "text": [TEXT],
    "one picture": [IMAGE],
    "several pictures of several tiles": [TILES],
    "rewrite": [REWRITE],
    "batch with padding": [TEXT, IMAGE, TILES, REWRITE],
}


def picture_processor(vlm: VLMBackbone) -> Any:
    """transformers' own, in numpy; tiles have their size and run over 0..1 already."""
    mean, std = vlm.family.normalisation
    options: dict[str, Any] = {"do_resize": False, "do_rescale": False, "image_mean": mean, "image_std": std}
    name = "GotOcr2ImageProcessor"
    if vlm.family_name != "internvl":
        name = "Qwen2VLImageProcessor"
        vision = vlm.model.config.vision_config
        options |= {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }
    # since transformers 5 the plain name is the one that needs torchvision
    return getattr(transformers, f"{name}Pil" if transformers.__version__ >= "5" else name)(**options)


def chat(vlm: VLMBackbone, request: Request, pictures: Sequence[Tiles]) -> str:
    """The chat as one text, every image token written out."""
    template = vlm.template
    text = template.prefix
    for tiles in pictures:
        per_block, num_blocks = (
            (TOKENS, len(tiles)) if vlm.family.block_per_tile else (TOKENS * len(tiles), 1)
        )
        text += (
            template.image_prefix + template.image_token * per_block + template.image_suffix
        ) * num_blocks
    text += request.prompt + template.suffix
    return text if request.rewrite is None else text + request.rewrite + template.end


def huggingface_arguments(
    vlm: VLMBackbone, requests: Sequence[Request], tiles: Sequence[Sequence[Tiles]]
) -> dict[str, Tensor]:
    """What a user of transformers gives the model."""
    rows = [
        vlm.tokenizer.encode(chat(vlm, request, pictures))
        for request, pictures in zip(requests, tiles, strict=True)
    ]
    longest = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    arguments = {"input_ids": input_ids, "attention_mask": mask}
    pixels = [
        tile.numpy() for of_request in tiles for each in of_request for tile in each.pixels.to(torch.float32)
    ]
    if pixels:
        processed = picture_processor(vlm)(
            images=pixels, return_tensors="pt", input_data_format="channels_first"
        )
        names = ("pixel_values", "image_grid_thw")
        arguments |= {name: torch.as_tensor(processed[name]) for name in names if name in processed}
    if vlm.family_name != "internvl" and not transformers.__version__.startswith("4."):
        arguments["mm_token_type_ids"] = (input_ids == vlm.model.config.image_token_id).int()
    return arguments


@pytest.mark.parametrize("kind", CHATS)
def test_states_equal_those_of_transformers_own_way(
    vlm: VLMBackbone, reference_states: Callable[[VLMBackbone, dict[str, Tensor]], Tensor], kind: str
) -> None:
    requests = CHATS[kind]
    inputs = vlm.prepare(requests, max_tiles=5)
    arguments = huggingface_arguments(vlm, requests, inputs.tiles)
    assert torch.equal(inputs.mask, arguments["attention_mask"].bool())
    assert torch.equal(inputs.token_ids[inputs.mask], arguments["input_ids"][inputs.mask])

    states = vlm.encode(inputs, TAPS).states[inputs.mask]

    expected = reference_states(vlm, arguments)[inputs.mask]
    assert (states - expected).abs().amax() <= PARITY * expected.abs().amax()
    for tap in TAPS:
        assert (states - expected)[:, tap].abs().amax() <= PARITY * expected[:, tap].abs().amax()


def test_tiles_are_prepared_as_transformers_own_processor_does(vlm: VLMBackbone) -> None:
    inputs = vlm.prepare([TILES], max_tiles=5)
    assert [len(tiles) for tiles in inputs.tiles[0]] == [3, 5, 1, 4]
    expected = huggingface_arguments(vlm, [TILES], inputs.tiles)
    for name, values in inputs.pixel_inputs.items():
        assert values.shape == expected[name].shape
        np.testing.assert_allclose(values, expected[name], atol=1e-6)


# Real sizes: (width, layers, what the vision tower has), as in the config.json of each
TOWERS = {
    "internvl": {"image_size": [448, 448], "patch_size": [14, 14]},
    "qwen2_5_vl": {"patch_size": 14, "spatial_merge_size": 2},
    "qwen3_vl": {"patch_size": 16, "spatial_merge_size": 2},
}
CONFIGS: dict[str, Any] = {
    "internvl": InternVLConfig,
    "qwen2_5_vl": Qwen2_5_VLConfig,
    "qwen3_vl": Qwen3VLConfig,
}


@pytest.mark.parametrize(
    ("family", "tokens"), [("internvl", (16, 16)), ("qwen2_5_vl", (16, 16)), ("qwen3_vl", (14, 14))]
)
def test_tiles_of_the_published_models(family: str, tokens: tuple[int, int]) -> None:
    config = CONFIGS[family](vision_config=TOWERS[family])
    size = FAMILIES[family].tile_size(config, None)
    assert size == 448
    assert FAMILIES[family].token_grid(config, size) == tokens


@pytest.mark.parametrize(("width", "told"), [(2560, None), (4096, "its hidden size is 4096, 2560 is needed")])
def test_krea_2_takes_the_smaller_qwen3_vl_alone(
    all_vlms: dict[str, VLMBackbone], width: int, told: str | None
) -> None:
    """Qwen3-VL-4B and 8B at their true widths, without memory."""
    small = all_vlms["qwen3_vl"]
    config = Qwen3VLConfig(
        image_token_id=small.model.config.image_token_id,
        text_config={
            "hidden_size": width,
            "num_hidden_layers": 36,
            "vocab_size": 151936,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
        },
        vision_config={"depth": 24, "out_hidden_size": width},
    )
    with torch.device("meta"):
        vlm = VLMBackbone(AutoModelForImageTextToText.from_config(config), small.tokenizer)
    with nullcontext() if told is None else pytest.raises(VLMError, match=told):
        vlm.check_fits(KREA_2.config.vlm)
