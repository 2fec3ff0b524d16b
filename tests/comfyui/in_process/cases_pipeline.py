"""The same prompt, seed and settings give the same image through `Pipeline` and through the nodes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from the_pack.nodes.comfy import host
from the_pack.nodes.comfy.sampling import AUTOMATIC
from the_pack.nodes.encode import UniFusionImageEncode
from the_pack.nodes.load_model import UniFusionModelLoader
from the_pack.nodes.load_vlm import UniFusionVLMLoader
from the_pack.nodes.pool import UniFusionLAPPool
from the_pack.nodes.rewrite import UniFusionVerifiRewrite
from the_pack.nodes.sample import UniFusionSampler
from the_pack.unifusion_core.checkpoints.generator_file import load_generator
from the_pack.unifusion_core.pipeline import Pipeline
from the_pack.unifusion_core.training.adapters import add_adapters, save_adapters
from the_pack.unifusion_core.training.config import AdapterConfig
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY
from torch import Tensor

from .case import PARITY, case
from .small_unifusion import FOLDER, stock

STEPS, SEED, MAX_TILES = 5, 7, 10
CFG = TINY.default_sampling.cfg
WIDTH, HEIGHT = 160, 112
PROMPT = "big red circle at top left"


@cache
def _pipeline() -> Pipeline:
    return Pipeline.load()


@cache
def _loaded() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE by the loader nodes."""
    (model,) = UniFusionModelLoader.execute(host.BUILT_IN, "default").args
    (clip,) = UniFusionVLMLoader.execute(host.BUILT_IN, model, "default").args
    (vae,) = stock.VAELoader().load_vae(BUILT_IN.vae.name)
    return model, clip, vae


@cache
def _input_image() -> Image.Image:
    """An image to edit."""
    return _pipeline()("small green square on white", seed=1, steps=STEPS, size=(WIDTH, HEIGHT))


def _tensor(image: Image.Image) -> Tensor:
    """As LoadImage returns it: B H W C in 0..1."""
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


def _encoded(prompt: str, pictures: dict[str, Tensor]) -> Any:
    _, clip, _ = _loaded()
    return UniFusionImageEncode.execute(clip, prompt, MAX_TILES, pictures).args[0]


def _rewritten(prompt: str, pictures: dict[str, Tensor], locked_text: str = "") -> Any:
    _, clip, _ = _loaded()
    return UniFusionVerifiRewrite.execute(
        clip=clip,
        prompt=prompt,
        max_tiles=MAX_TILES,
        style="caption",
        own_style="",
        locked_text=locked_text,
        seed=0,
        temperature=0.0,
        max_new_tokens=TINY.max_new_tokens,
        states="automatic",
        pictures=pictures,
    ).args[0]


def _by_nodes(
    features: Any, image_only: Any = None, image_cfg: float = 1.0, lora: str | None = None
) -> Tensor:
    """The decoded image, H W C in 0..1. `lora`: a file for stock LoraLoader."""
    model, _, vae = _loaded()
    if lora is not None:
        (model,) = stock.LoraLoaderModelOnly().load_lora_model_only(model, lora, 1.0)

    def pooled(each: Any) -> Any:
        return UniFusionLAPPool.execute(model, each).args[0]

    (latent,) = UniFusionSampler.execute(
        model=model,
        positive=pooled(features),
        negative=pooled(_encoded("", {})),
        latent={"samples": torch.zeros(1, 16, HEIGHT // 8, WIDTH // 8)},
        seed=SEED,
        steps=STEPS,
        cfg=CFG,
        image_cfg=image_cfg,
        schedule=AUTOMATIC,
        picture_only=None if image_only is None else pooled(image_only),
    ).args
    return stock.VAEDecode().decode(vae, latent)[0][0]


def _against_pipeline(given: Tensor, pipeline: Pipeline | None = None, **arguments: Any) -> dict[str, float]:
    """The nodes' image against `Pipeline`'s, in levels of 255. The pipeline's is rounded to whole levels."""
    arguments = {"prompt": PROMPT, "seed": SEED, "steps": STEPS, "size": (WIDTH, HEIGHT)} | arguments
    expected = torch.from_numpy(np.asarray((pipeline or _pipeline())(**arguments)).astype(np.float32))
    assert given.shape == expected.shape, (given.shape, expected.shape)
    return {"levels": float((given * 255 - expected).abs().max()), "contrast": float(expected.std())}


def _same_image(found: dict[str, float]) -> None:
    assert found["levels"] <= 0.5 + 255 * PARITY
    # not merely two empty images
    assert found["contrast"] > 10


@case(check=_same_image)
def text_by_pipeline_and_nodes() -> dict[str, float]:
    return _against_pipeline(_by_nodes(_rewritten(PROMPT, {})))


@case(check=_same_image)
def text_without_rewrite_by_pipeline_and_nodes() -> dict[str, float]:
    return _against_pipeline(_by_nodes(_encoded(PROMPT, {})), rewrite=False)


@case(check=_same_image)
def locked_rewrite_by_pipeline_and_nodes() -> dict[str, float]:
    text = "a big blue star at the bottom right on a gray background"
    return _against_pipeline(_by_nodes(_rewritten(PROMPT, {}, locked_text=text)), rewrite=text)


@case(check=_same_image)
def edit_by_pipeline_and_nodes() -> dict[str, float]:
    prompt, image = "make it blue", _input_image()
    features = _rewritten(prompt, {"picture_1": _tensor(image)})
    return _against_pipeline(_by_nodes(features), prompt=prompt, images=[image], size=None)


@case(check=_same_image)
def edit_guided_apart_by_pipeline_and_nodes() -> dict[str, float]:
    """With a guidance scale of the image's own."""
    prompt, image = "make it blue", _input_image()
    pictures = {"picture_1": _tensor(image)}
    given = _by_nodes(_rewritten(prompt, pictures), _encoded("", pictures), image_cfg=1.5)
    return _against_pipeline(given, prompt=prompt, images=[image], size=None, image_cfg=1.5)


# Adapters -------------------------------------------------------------------------------------------


def _adapter_file(kind: Any) -> Path:
    """Adapters as the trainer writes them, with random weights in place of trained ones."""
    config = AdapterConfig(type=kind, rank=4, alpha=6)
    model, _ = load_generator(BUILT_IN.generator)
    add_adapters(model, config, seed=0)
    generator = torch.Generator().manual_seed(1)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, value in weights.items():
            # a magnitude is a norm, which stays near what it is
            size = 0.02 if "magnitude" in name else 0.05
            value.add_(size * torch.randn(value.shape, generator=generator))
    path = FOLDER / "models" / "loras" / f"trained-{kind}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_adapters(path, model, config, weights, {})
    return path


def _adapter_by_pipeline_and_nodes(kind: Any) -> dict[str, float]:
    path = _adapter_file(kind)
    features = _encoded(PROMPT, {})
    plain, changed = _by_nodes(features), _by_nodes(features, lora=path.name)
    found = _against_pipeline(changed, Pipeline.load(lora=[path]), rewrite=False)
    return found | {"changed": float((changed - plain).abs().max())}


def _same_changed_image(found: dict[str, float]) -> None:
    _same_image(found)
    assert found["changed"] > 0.05


@case(check=_same_changed_image)
def trained_lora_by_pipeline_and_lora_loader() -> dict[str, float]:
    return _adapter_by_pipeline_and_nodes("lora")


@case(check=_same_changed_image)
def trained_dora_by_pipeline_and_lora_loader() -> dict[str, float]:
    return _adapter_by_pipeline_and_nodes("dora")


@case(check=_same_changed_image)
def trained_lokr_by_pipeline_and_lora_loader() -> dict[str, float]:
    return _adapter_by_pipeline_and_nodes("lokr")
