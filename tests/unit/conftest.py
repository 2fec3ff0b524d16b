"""Files of the embedded model's layout with random weights: a pipeline that runs, and draws noise."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`model`, `vlm`, `vae`: paths; `options`: as the command line takes them.

    No weight is zero, so every word of a prompt has its effect on the picture.
    """
    from unifusion_core.checkpoints.generator_file import save_generator
    from unifusion_core.models.autoencoder import Autoencoder
    from unifusion_core.models.unifusion import UniFusion
    from unifusion_core.shapes.training.autoencoder import save_autoencoder
    from unifusion_core.shapes.training.tiny_vlm import build_tokenizer, build_vlm, save_vlm
    from unifusion_core.shapes.world import edits, prompts
    from unifusion_core.zoo.tiny import TINY

    folder = tmp_path_factory.mktemp("weights")
    paths = {"model": folder / "model.safetensors", "vlm": folder / "vlm", "vae": folder / "vae.safetensors"}
    options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    weights = SimpleNamespace(**paths, options=options)
    generator = torch.Generator().manual_seed(1)
    model = UniFusion(TINY.config)
    for parameter in model.parameters():
        parameter.data.normal_(
            std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3, generator=generator
        )
    save_generator(model, weights.model, {"recipe": "random"})
    torch.manual_seed(2)
    save_autoencoder(Autoencoder(), weights.vae, {"recipe": "random"})
    rng = random.Random(3)
    tokenizer = build_tokenizer([*prompts.corpus(rng, 400), *edits.corpus(rng, 200)], vocab_size=900)
    save_vlm(build_vlm(tokenizer, seed=4), tokenizer, weights.vlm, {"recipe": "random"})
    return weights
