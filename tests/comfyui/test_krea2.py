"""Krea 2 with images and VERIFI, in ComfyUI's own model and in ours, on small files with random weights.

pytest tests/comfyui/test_krea2.py
"""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unifusion_core.checkpoints.generator_file import save_generator
from unifusion_core.models.dit import DiTConfig
from unifusion_core.models.lap import LAPConfig
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.zoo.krea_2 import KREA_2

if TYPE_CHECKING:
    from conftest import Comfy, Graph

pytestmark = pytest.mark.comfyui

# relative to the largest value, in float32
PARITY = 1e-4
STOCK, OURS, VLM, WIDER_VLM = (
    "small-krea2.safetensors",
    "small-unifusion-krea2.safetensors",
    "small-qwen3-vl",
    "small-qwen3-vl-of-another-width",
)
# ComfyUI reads these sizes from the weights, except 128 channels per head and 20 heads of LAP, which it fixes
SMALL = replace(
    KREA_2.config,
    vlm=replace(KREA_2.config.vlm, hidden_size=40),
    lap=LAPConfig(num_heads=20, mlp_size=128),
    dit=DiTConfig(
        hidden_size=128, num_blocks=2, num_heads=1, num_kv_heads=1, mlp_size=384, latent_channels=16
    ),
)
WORKFLOWS = Path(__file__).parents[2] / "workflows" / "api"
PUBLIC_GENERATOR, PUBLIC_VLM, PUBLIC_VAE = (
    "krea2_turbo_fp8_scaled.safetensors",
    "qwen3vl_4b_fp8_scaled.safetensors",
    "qwen_image_vae.safetensors",
)
# the template of ComfyUI for the same files
OWN_TEMPLATE = "templates/image_krea2_turbo_t2i.json"
SAVE_SMALL_VAE = """
import sys
home, path = sys.argv[1:]
sys.path.insert(0, home)
from comfy.cli_args import args
args.cpu = True
import torch
from comfy.ldm.wan.vae import WanVAE
from safetensors.torch import save_file
torch.manual_seed(0)
vae = WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True]).requires_grad_(False)
for name, value in vae.named_parameters():
    value.normal_(std=value[0].numel() ** -0.5) if "weight" in name else value.fill_("gamma" in name)
save_file(vae.state_dict(), path)
"""


def save_generators(folder: Path) -> None:
    """Saves the same weights as a bare file, as Krea publishes them, and as a file of ours."""
    model, random = UniFusion(SMALL), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # large enough that every token has an effect
        std = 2 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data.normal_(std=std, generator=random)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / STOCK)
    save_generator(model, folder / OURS, {"recipe": "random"}, dtype=torch.float32)


def save_vlm(folder: Path, width: int) -> None:
    """Saves a Qwen3-VL with Krea 2's number of layers, one token per byte, and 4 x 4 tokens per tile."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    special = [f"<|{name}|>" for name in names]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=special)
    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 48,
            "num_hidden_layers": KREA_2.config.vlm.num_layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": None,
            "initializer_range": 0.2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 64,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 2],
            "initializer_range": 0.2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def small_files(comfy: Comfy, comfyui_home: Path, comfyui_python: str) -> Iterator[None]:
    """Small models under their own names, and under the names in the workflows; removed at the end."""
    folders = {name: comfy.models_dir / name for name in ("diffusion_models", "vlm", "vae")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    before = {path for folder in folders.values() for path in folder.iterdir()}
    generators, vlms, vaes = folders.values()
    save_generators(generators)
    save_vlm(vlms / VLM, width=SMALL.vlm.hidden_size)
    save_vlm(vlms / WIDER_VLM, width=2 * SMALL.vlm.hidden_size)
    shutil.copy(generators / OURS, generators / PUBLIC_GENERATOR)
    subprocess.run(
        [comfyui_python, "-c", SAVE_SMALL_VAE, str(comfyui_home), str(vaes / PUBLIC_VAE)], check=True
    )
    pixels = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(comfy.input_dir / "example.png")
    yield
    for folder in folders.values():
        for path in set(folder.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def features(graph: Graph, clip: list[Any], kind: str) -> list[Any]:
    """Features of a prompt, of images or of a rewrite, from the pack's nodes."""
    if kind == "text":
        return graph.add("UniFusionImageEncode", clip=clip, prompt="a red ball", max_tiles=1)
    pictures = {f"pictures__picture_{n}": graph.add("LoadImage", image="example.png") for n in (1, 2)}
    if kind == "pictures":
        encoded = graph.add("UniFusionImageEncode", clip=clip, prompt="both", max_tiles=5, **pictures)
        weaker = graph.add("UniFusionPictureStrength", features=encoded, picture=1, keep=0.3, gain=1)
        return graph.add("UniFusionPictureStrength", features=weaker, picture=2, keep=0.5, gain=3)
    return graph.add(
        "UniFusionVerifiRewrite",
        clip=clip,
        prompt="make it red",
        max_tiles=1,
        style="keep everything else",
        own_style="",
        locked_text="a red ball on a table",
        seed=0,
        temperature=0.0,
        max_new_tokens=8,
        states="automatic",
        **pictures,
    )


def largest_difference(given: np.ndarray, expected: np.ndarray) -> float:
    assert given.shape == expected.shape
    assert np.isfinite(given).all()
    return float(np.abs(given - expected).max() / np.abs(expected).max())


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("kind", ["text", "pictures", "rewrite"])
def test_comfyuis_own_krea2_draws_our_features_as_ours_does(comfy: Comfy, graph: Graph, kind: str) -> None:
    stock = graph.add("UNETLoader", unet_name=STOCK, weight_dtype="default")
    clip = graph.load_clip(stock, VLM)
    positive, negative = (features(graph, clip, each) for each in (kind, "text"))
    conditions = [graph.add("UniFusionFeaturesToKrea2", features=each) for each in (positive, negative)]
    graph.save_latent(graph.sample(stock, *conditions))
    ours = graph.load_model(OURS)
    pooled = [graph.add("UniFusionLAPPool", model=ours, features=each) for each in (positive, negative)]
    graph.save_latent(graph.sample(ours, *pooled))
    # stock text nodes give the same conditioning
    if kind == "text":
        typed = graph.add("CLIPTextEncode", clip=clip, text="a red ball")
        graph.save_latent(graph.sample(stock, typed, typed))
        graph.save_latent(graph.sample(stock, conditions[0], conditions[0]))

    by_stock, by_ours, *typed_and_encoded = comfy.latents(comfy.successful(graph))
    assert largest_difference(by_stock, by_ours) <= PARITY
    if kind == "text":
        assert largest_difference(*typed_and_encoded) <= PARITY


@pytest.mark.usefixtures("small_files")
def test_the_strength_of_a_picture_changes_the_drawing(comfy: Comfy, graph: Graph) -> None:
    model = graph.load_model(OURS)
    clip = graph.load_clip(model, VLM)
    picture = graph.add("LoadImage", image="example.png")
    encoded = graph.add(
        "UniFusionImageEncode", clip=clip, prompt="", max_tiles=1, pictures__picture_1=picture
    )
    for keep, gain in ((1.0, 1), (0.5, 1), (0.0, 1), (1.0, 2)):
        changed = graph.add("UniFusionPictureStrength", features=encoded, picture=1, keep=keep, gain=gain)
        pooled = graph.add("UniFusionLAPPool", model=model, features=changed)
        graph.save_latent(graph.sample(model, pooled, pooled, cfg=1.0))
    plain, *others = comfy.latents(comfy.successful(graph))
    assert all(largest_difference(other, plain) > 100 * PARITY for other in others)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("other width", ["hidden size is 80, 40 is needed"]),
        ("tiny features", ["(0, 1, 2, 3, 5) of internvl", "of qwen3_vl", "Load UniFusion VLM"]),
        ("no such picture", ["picture 2 was given", "1 picture(s)"]),
    ],
)
def test_what_does_not_fit_is_answered_with_a_sentence(
    comfy: Comfy, graph: Graph, mistake: str, words: list[str]
) -> None:
    stock = graph.add("UNETLoader", unet_name=STOCK, weight_dtype="default")
    if mistake == "other width":
        encoded = features(graph, graph.load_clip(stock, WIDER_VLM), "text")
    elif mistake == "tiny features":
        encoded = features(graph, graph.load_clip(graph.load_model()), "text")
    else:
        picture = graph.add("LoadImage", image="example.png")
        encoded = graph.add(
            "UniFusionImageEncode",
            clip=graph.load_clip(stock, VLM),
            prompt="",
            max_tiles=1,
            pictures__picture_1=picture,
        )
        encoded = graph.add("UniFusionPictureStrength", features=encoded, picture=2, keep=0.5, gain=1)
    condition = graph.add("UniFusionFeaturesToKrea2", features=encoded)
    graph.save_latent(graph.sample(stock, condition, condition))
    result = comfy.run(graph)
    assert result.status == "error"
    said = result.error["exception_message"]
    assert all(word in said for word in words), said


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("UniFusion Krea 2*.json")), ids=lambda path: path.stem)
def test_workflows_run_to_the_end(comfy: Comfy, path: Path) -> None:
    """With few steps and pixels, and with a locked rewrite, because random weights write a rewrite without an end. A small VLM
    folder is in the place of Load CLIP, which fixes Qwen3-VL's sizes; in_process/cases_stock_clip.py compares the two."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    assert {PUBLIC_GENERATOR, PUBLIC_VLM, PUBLIC_VAE} <= {
        value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)
    }
    small = copy.deepcopy(graph)
    changes: dict[str, Any] = {"steps": 2, "width": 64, "height": 48, "locked_text": "a red ball"}
    for node in small.values():
        node["inputs"] |= {name: value for name, value in changes.items() if name in node["inputs"]}
        if node["class_type"] == "CLIPLoader":
            assert node["inputs"] == {"clip_name": PUBLIC_VLM, "type": "krea2", "device": "default"}
            node["class_type"] = "UniFusionVLMLoader"
            node["inputs"] = {"folder": VLM, "model": ["1", 0], "dtype": "default"}
    (last,) = [name for name, node in small.items() if node["class_type"] == "SaveImage"]
    (picture,) = comfy.images(comfy.successful(small), last)
    assert picture.shape == (48, 64, 3)
    assert picture.std() > 0


@pytest.mark.parametrize(
    "path", sorted(WORKFLOWS.parent.glob("UniFusion Krea 2*.json")), ids=lambda path: path.stem
)
def test_all_three_files_are_downloaded_from_where_comfyuis_own_template_has_them(path: Path) -> None:
    package = importlib.util.find_spec("comfyui_workflow_templates_json")
    if package is None or package.origin is None:
        pytest.skip("ComfyUI's own templates are not installed")
    theirs = models_of(json.loads((Path(package.origin).parent / OWN_TEMPLATE).read_text(encoding="utf-8")))

    ours = models_of(json.loads(path.read_text(encoding="utf-8")))

    assert [model["name"] for model in ours] == [PUBLIC_GENERATOR, PUBLIC_VLM, PUBLIC_VAE]
    assert [model for model in ours if model not in theirs] == []


def models_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """Name, address and folder of the files that a workflow offers to download, subgraphs included."""
    parts = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    nodes = [node for part in parts for node in part["nodes"]]
    return [model for node in nodes for model in node.get("properties", {}).get("models", [])]
