"""Shapes and layout of the small autoencoder: pytest tests/unit/models/test_autoencoder.py"""

from __future__ import annotations

import torch

from unifusion_core.models.autoencoder import DOWNSCALE, LATENT_LIMIT, Autoencoder


def test_eight_pixels_per_cell_both_ways() -> None:
    model = Autoencoder(latent_channels=5)
    pixels = torch.rand(2, 3, 2 * DOWNSCALE, 3 * DOWNSCALE)

    latents = model.encode(pixels)

    assert latents.shape == (2, 5, 2, 3)
    assert model.decode(latents).shape == pixels.shape
    assert model.latent_channels == 5


def test_latents_beyond_the_limit_are_squashed() -> None:
    model = Autoencoder(latent_channels=5)
    far, farther = torch.full((1, 5, 2, 2), 20 * LATENT_LIMIT), torch.full((1, 5, 2, 2), 40 * LATENT_LIMIT)

    torch.testing.assert_close(model.decode(far), model.decode(farther))


def test_the_stock_loader_finds_the_layers_that_it_recognises() -> None:
    keys = Autoencoder().state_dict()

    # ComfyUI recognises a TAESD file by this layer
    assert keys["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)
    assert {"vae_scale", "vae_shift"} <= keys.keys()
    assert "tae_latent_channels" not in keys
