"""Fixtures of many tests: a small model and features. All axes differ in size, so that a swap cannot pass."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unifusion_core.contracts import ChatTemplate, Features, TokenInfo, TokenRole, VLMSpec
from unifusion_core.models.dit import DiTConfig
from unifusion_core.models.lap import LAPConfig
from unifusion_core.models.unifusion import UniFusion, UniFusionConfig

SMALL_CONFIG = UniFusionConfig(
    vlm=VLMSpec(
        family="internvl",
        hidden_size=24,
        num_layers=5,
        taps=(0, 1, 3),
        template=ChatTemplate(
            prefix="<s>",
            suffix="<a>",
            end="<e>",
            image_prefix="<i>",
            image_token="<p>",
            image_suffix="</i>",
        ),
    ),
    lap=LAPConfig(num_heads=3, mlp_size=40),
    dit=DiTConfig(
        hidden_size=64,
        num_blocks=2,
        num_heads=2,
        num_kv_heads=1,
        mlp_size=72,
        latent_channels=3,
        time_size=20,
    ),
    condition_attention="prefix",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that record images and golden values again, instead of comparing them."""
    parser.addoption(
        "--write-pictures",
        action="store_true",
        help="draw workflows/*.jpg and the screenshots in README anew (tests/comfyui)",
    )
    parser.addoption(
        "--write-locales", action="store_true", help="write locales/*/nodeDefs.json anew (tests/comfyui)"
    )
    parser.addoption("--write-golden", action="store_true", help="record tests/golden/workflows.json anew")
    parser.addoption(
        "--exact", action="store_true", help="golden latents bit by bit (on the machine that recorded them)"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason of skipped tests, just above the last line."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(report.longrepr[2] for report in skipped).items():
        terminalreporter.write_line(f"{count} tests skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture
def small_config() -> UniFusionConfig:
    """L = 3, D = 24, M = 64, C = 3; two attention heads share one key head."""
    return SMALL_CONFIG


@pytest.fixture
def build_model() -> Callable[..., UniFusion]:
    """`build_model(condition_attention="joint", ...)`: the small model with random weights, none of them 0."""

    def build(seed: int = 0, **changes: object) -> UniFusion:
        generator = torch.Generator().manual_seed(seed)
        model = UniFusion(replace(SMALL_CONFIG, **changes))
        for parameter in model.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.data.normal_(std=std, generator=generator)
        return model.eval().requires_grad_(False)

    return build


@pytest.fixture
def build_features() -> Callable[..., Features]:
    """`build_features(5, 3)`: features of two chats with 5 and 3 real tokens. The first `num_image` of them are image tokens in
    one column. The states of padding are 1000, so that a leak is noticed."""

    def build(*lengths: int, num_image: int = 0, seed: int = 0) -> Features:
        generator = torch.Generator().manual_seed(seed)
        spec, length = SMALL_CONFIG.vlm, max(lengths)
        states = torch.randn(len(lengths), length, len(spec.taps), spec.hidden_size, generator=generator)
        mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
        roles = torch.where(mask, int(TokenRole.PROMPT), int(TokenRole.PADDING))
        positions = torch.zeros(len(lengths), length, 3)
        for number in range(num_image):
            roles[:, number] = int(TokenRole.IMAGE)
            positions[:, number] = torch.tensor([1.0, (number + 0.5) / num_image, 0.25])
        states[~mask] = 1e3
        tokens = TokenInfo(roles=roles, ids=torch.zeros_like(roles))
        return Features(states=states, mask=mask, positions=positions, tokens=tokens)

    return build


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VLM folder of a real language model. Skips the test where the extra llm is not installed."""
    from unifusion_core.errors import ConfigError
    from unifusion_core.shapes.encoder import write_encoder

    try:
        return write_encoder(tmp_path_factory.mktemp("language-model") / "vlm")
    except ConfigError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Files with random weights. `model`, `vlm`, `vae`: paths; `options`: the same for the command line.

    No weight is 0, so that every word of a prompt has an effect on the image.
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
