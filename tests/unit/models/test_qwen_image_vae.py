"""The Qwen-Image VAE, loaded from a folder of diffusers' layout: pytest tests/unit/models/test_qwen_image_vae.py"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from unifusion_core.errors import CheckpointError
from unifusion_core.models.qwen_image_vae import load_qwen_image_vae

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small VAE with random weights."""
    torch.manual_seed(0)
    diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_decoding_equals_diffusers(folder: Path) -> None:
    whole = diffusers.AutoencoderKLQwenImage.from_pretrained(folder)
    ours = load_qwen_image_vae(folder)
    assert (ours.latent_channels, ours.latent_format) == (16, "qwen-image")
    raw = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(1))
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1) for v in (whole.config.latents_mean, whole.config.latents_std)
    )
    with torch.no_grad():
        expected = whole.decode(raw[:, :, None]).sample[:, :, 0] / 2 + 0.5
        given = ours.decode((raw - mean) / std)
    assert given.shape == (2, 3, 32, 48)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 507500000 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 484.00 MiB."),
        MemoryError("Cannot allocate memory (os error 12)"),
    ],
)
def test_too_little_memory_is_not_reported_as_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(diffusers.AutoencoderKLQwenImage, "from_pretrained", Mock(side_effect=error))
    with pytest.raises(CheckpointError, match=r"more memory than is available .*: close other programs"):
        load_qwen_image_vae(folder)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a VAE folder of diffusers"):
        load_qwen_image_vae(tmp_path)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="copy the files again"):
        load_qwen_image_vae(folder)
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(CheckpointError, match="AutoencoderKLQwenImage is needed"):
        load_qwen_image_vae(folder)
