"""Krea 2 on the command line, all parts small: pytest tests/unit/vlm/test_krea_2_command.py"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from unifusion_core.checkpoints.generator_file import save_generator
from unifusion_core.cli import main
from unifusion_core.models.dit import DiTConfig
from unifusion_core.models.lap import LAPConfig
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.zoo.krea_2 import KREA_2

diffusers = pytest.importorskip("diffusers")

SMALL = replace(
    KREA_2.config,
    vlm=replace(KREA_2.config.vlm, hidden_size=64, num_layers=4, taps=(1, 3)),
    lap=LAPConfig(num_heads=2, mlp_size=40),
    dit=DiTConfig(hidden_size=64, num_blocks=2, num_heads=2, num_kv_heads=1, mlp_size=72, latent_channels=16),
)


@pytest.fixture
def parts(tmp_path: Path, folders: dict[str, Path]) -> list[str]:
    """Options that name a generator, a VLM and a VAE with random weights."""
    generator = torch.Generator().manual_seed(0)
    model = UniFusion(SMALL)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    save_generator(model, tmp_path / "krea2.safetensors", dtype=torch.float32)
    torch.manual_seed(0)
    diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1).save_pretrained(tmp_path / "vae")
    files = {"model": tmp_path / "krea2.safetensors", "vlm": folders["qwen3_vl"], "vae": tmp_path / "vae"}
    return [word for name, path in files.items() for word in (f"--{name}", str(path))]


def drawn(parts: list[str], out: Path, *more: str) -> np.ndarray:
    command = ["generate", "red", "--size", "48x32", "--steps", "2", "--out", str(out), *parts, *more]
    assert main.main(command) == 0
    return np.asarray(Image.open(out))


def test_a_picture_comes_out_and_is_the_same_from_waiting_weights(parts: list[str], tmp_path: Path) -> None:
    picture = drawn(parts, tmp_path / "a.png", "--no-rewrite")
    assert picture.shape == (32, 48, 3)
    assert picture.std() > 0
    waiting = drawn(parts, tmp_path / "b.png", "--no-rewrite", "--offload")
    assert np.array_equal(waiting, picture)
    guided = drawn(parts, tmp_path / "c.png", "--no-rewrite", "--schedule", "krea-2 raw", "--cfg", "5.5")
    assert not np.array_equal(guided, picture)


def test_the_embedded_vae_does_not_decode_it(parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["generate", "red", *parts[:4]]) == 2
    assert "choose its own VAE" in capsys.readouterr().err


def test_a_lora_is_trained_kept_states_and_8_bits_included(parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (40, 40), color).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text(color)
    files = dict(zip(("model", "vlm", "vae"), parts[1::2], strict=True))
    config = {
        **files,
        "output": str(tmp_path / "run"),
        "data": [{"folder": str(tmp_path / "images")}],
        "resolution": [32],
        "lora": {"rank": 2},
        "quantize": "fp8",
        "precision": "bf16",
        "checkpointing": True,
        "cache": {"states": "bf16"},
        "rewrite": {"share": 0},
        "steps": 3,
        "learning_rate": 0.01,
        "ema": 0,
    }
    (tmp_path / "krea.yaml").write_text(yaml.safe_dump(config))

    assert main.main(["train", str(tmp_path / "krea.yaml")]) == 0

    lora = tmp_path / "run" / "final.safetensors"
    with safe_open(lora, "pt") as file:
        keys = set(file.keys())
    assert {f"diffusion_model.blocks.1.attn.wq.{part}" for part in ("lora_A.weight", "alpha")} <= keys
    plain = drawn(parts, tmp_path / "a.png", "--no-rewrite")
    assert not np.array_equal(drawn(parts, tmp_path / "b.png", "--no-rewrite", "--lora", str(lora)), plain)
