"""A small UniFusion with random weights, inputs for it, and both ways of sampling: ComfyUI's and the core's."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample
import folder_paths
import torch
from the_pack.nodes.comfy.clip import load_clip, rewrite
from the_pack.nodes.comfy.conditions import flattened
from the_pack.nodes.comfy.loading import load_model
from the_pack.nodes.sockets import Encoded
from the_pack.unifusion_core.checkpoints.generator_file import load_generator, save_generator
from the_pack.unifusion_core.contracts import Conditioning, Features, TokenInfo, TokenRole, VLMSpec
from the_pack.unifusion_core.flow.schedule import build_schedule
from the_pack.unifusion_core.models.dit import DiTConfig
from the_pack.unifusion_core.models.lap import LAPConfig
from the_pack.unifusion_core.models.unifusion import UniFusion, UniFusionConfig
from the_pack.unifusion_core.sampling import sample
from the_pack.unifusion_core.zoo.tiny import BUILT_IN, TINY
from torch import Tensor

# ComfyUI's nodes.py; a plain import would look like one of the pack's folder `nodes`
stock: Any = importlib.import_module("nodes")

# the empty folder that the runner was given
FOLDER = Path(folder_paths.base_path)
CONFIG = UniFusionConfig(
    vlm=VLMSpec(
        family="internvl", hidden_size=24, num_layers=5, taps=(0, 1, 3), template=TINY.config.vlm.template
    ),
    lap=LAPConfig(num_heads=3, mlp_size=40),
    dit=DiTConfig(hidden_size=64, num_blocks=3, num_heads=2, num_kv_heads=1, mlp_size=72, latent_channels=16),
    condition_attention="prefix",
    trained_sizes=((96, 64),),
)
STEPS, CFG, SEED = 5, 2.5, 7
# the default of a generator with this configuration
SCHEDULE = "shift 3"
LATENT = torch.zeros(1, 16, 8, 12)


# Models -------------------------------------------------------------------------------------------


def model_file(name: str = "model", **changes: Any) -> Path:
    """A generator file; every part of the generator has an effect."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        random = torch.Generator().manual_seed(0)
        model = UniFusion(replace(CONFIG, **changes))
        for parameter in model.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.data.normal_(std=std, generator=random)
        save_generator(model, path, {"recipe": "none"}, dtype=torch.float32)
    return path


def core_model(name: str = "model", **changes: Any) -> UniFusion:
    """The generator as the core loads it."""
    return load_generator(model_file(name, **changes))[0]


def host_model(name: str = "model", weight_type: str = "default", **changes: Any) -> Any:
    """The same generator as a MODEL."""
    return load_model(model_file(name, **changes), weight_type)


def tiny_clip() -> Any:
    """The tiny VLM as a CLIP."""
    return load_clip(BUILT_IN.vlm, TINY.config.vlm, TINY)


def embedded_model() -> tuple[Any, Any]:
    """The embedded model as a MODEL, and its VLM as a CLIP."""
    model = load_model(BUILT_IN.generator)
    return model, load_clip(BUILT_IN.vlm, model.model.model_config.unifusion.vlm, TINY)


# Inputs -------------------------------------------------------------------------------------------


def features(length: int, num_image: int = 0, seed: int = 0) -> Features:
    """Random features; the first `num_image` tokens have the positions of image tokens."""
    random = torch.Generator().manual_seed(100 * length + seed)
    states = torch.randn(1, length, len(CONFIG.vlm.taps), CONFIG.vlm.hidden_size, generator=random)
    positions = torch.zeros(1, length, 3)
    positions[:, :num_image] = torch.rand(1, num_image, 3, generator=random)
    positions[:, :num_image, 0] = 1
    roles = torch.full((1, length), int(TokenRole.PROMPT))
    return Features(
        states=states,
        mask=torch.ones(1, length, dtype=torch.bool),
        positions=positions,
        tokens=TokenInfo(roles=roles, ids=roles),
    )


def encoded(length: int, num_image: int = 0, **changes: Any) -> Encoded:
    """`features` as they travel between nodes; `changes` of `Encoded`."""
    return Encoded(**{"features": features(length, num_image), "spec": CONFIG.vlm} | changes)


def conditioning(each: Features, spec: VLMSpec = CONFIG.vlm) -> list[list[Any]]:
    """Features as stock CLIPTextEncode returns them."""
    return [[*flattened(each, spec)]]


def images() -> list[Tensor]:
    """Two random images, each a batch of one (B H W C)."""
    return [torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(n)) for n in range(2)]


def noise_for(latent: Tensor) -> Tensor:
    """ComfyUI's noise for SEED."""
    return comfy.sample.prepare_noise(latent, SEED)


def rewritten(clip: Any, prompt: str, images: Sequence[Tensor] = (), **changes: Any) -> tuple[Encoded, str]:
    """Features and text by the rewrite node's function; `changes` of its arguments."""
    arguments = {
        "style": "caption",
        "locked_text": "",
        "states": "automatic",
        "max_new_tokens": 64,
        "temperature": 0.0,
        "seed": 0,
    }
    found, (text,) = rewrite(clip, prompt, images, 5, **arguments | changes)
    return found, text


# Sampling -----------------------------------------------------------------------------------------


def by_comfyui(model: Any, positive: Any, negative: Any, latent: Tensor = LATENT, cfg: float = CFG) -> Tensor:
    """Latents drawn as by stock KSampler."""
    noise = noise_for(latent)
    return comfy.sample.sample(
        model, noise, STEPS, cfg, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=SEED
    )


def by_core(
    model: UniFusion,
    positive: Conditioning,
    negative: Conditioning,
    latent: Tensor = LATENT,
    cfg: float = CFG,
    **more: Any,
) -> Tensor:
    """Latents drawn by the core; `more` for its `sample`."""
    tokens = latent.shape[-1] * latent.shape[-2] // model.config.dit.patch_size**2
    schedule = build_schedule(more.pop("schedule", SCHEDULE), STEPS, tokens)
    return sample(model, positive, noise_for(latent), schedule, negative=negative, cfg=cfg, **more)


@contextmanager
def messages_of(logger: str) -> Iterator[list[str]]:
    """What a logger of the pack says while this lasts."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(f"the_pack.{logger}").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(f"the_pack.{logger}").removeHandler(handler)
