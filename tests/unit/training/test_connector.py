"""A new LAP and refiner for another VLM: pytest tests/unit/training/test_connector.py"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unifusion_core.checkpoints.generator_file import GeneratorFile, load_generator
from unifusion_core.contracts import Request
from unifusion_core.errors import ConfigError, VLMError
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.examples import write_examples
from unifusion_core.training.config import TrainConfig
from unifusion_core.training.connector import PARTS, every_third
from unifusion_core.training.trainer import build_pipeline, train
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.zoo.tiny import BUILT_IN


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "pictures", 8, "plain")


@pytest.fixture
def config(tmp_path: Path, pictures: Path, random_weights: SimpleNamespace) -> TrainConfig:
    """A connector for a VLM with other weights than the embedded one's."""
    return TrainConfig.model_validate(
        {
            "output": tmp_path / "run",
            "vlm": str(random_weights.vlm),
            "mode": "connector",
            "connector": {"taps": [1, 4], "heads": 4, "mlp_size": 96, "layer_blocks": 1},
            "data": [{"folder": pictures}],
            "rewrite": {"share": 0},
            "steps": 3,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "ema": 0,
            "cache": {"folder": pictures.parent / "cache"},
        }
    )


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | values)


@pytest.mark.parametrize(
    ("num_layers", "taps"),
    [(32, tuple(range(4, 32, 3))), (36, tuple(range(2, 36, 3))), (28, tuple(range(3, 28, 3))), (6, (2, 5))],
)
def test_every_third_layer_is_the_paper_s_and_krea_2_s(num_layers: int, taps: tuple[int, ...]) -> None:
    assert every_third(num_layers) == taps


def test_a_connector_is_trained_before_a_dit_that_stays(
    config: TrainConfig, random_weights: SimpleNamespace
) -> None:
    train(config, say=lambda _: None)

    file = GeneratorFile(config.output / "final.safetensors")
    trained = file.load()
    before, _ = load_generator(BUILT_IN.generator)
    start = build_pipeline(config, "cpu").model
    kept, moved = set(), set()
    for name, value in trained.named_parameters():
        source = start if name.startswith(PARTS) else before
        (kept if torch.equal(value, source.get_parameter(name)) else moved).add(name)
    assert all(not name.startswith(PARTS) for name in kept)
    assert all(name.startswith(PARTS) for name in moved)
    assert len(moved) > 20
    spec = file.config.vlm
    assert (spec.taps, file.config.lap.num_heads, file.config.lap.mlp_size) == ((1, 4), 4, 96)
    assert spec.fingerprint == load_vlm(random_weights.vlm).fingerprint
    assert not file.spec.rewrites, "it has never seen rewrites"
    with pytest.raises(VLMError, match="fingerprint"):
        Pipeline.load(config.output / "final.safetensors")
    image = Pipeline.load(config.output / "final.safetensors", random_weights.vlm)("a red circle", steps=1)
    assert image.size == (128, 128)


def test_the_taps_scales_are_their_states_sizes_over_the_data(config: TrainConfig, pictures: Path) -> None:
    pipeline = build_pipeline(config, "cpu")
    scales = pipeline.model.config.lap.tap_scales
    requests = [path.read_text().strip() for path in sorted(pictures.glob("*.txt"))]
    features = pipeline.encode([Request(prompt=text) for text in requests])
    states = features.states[features.mask]

    assert scales == pytest.approx(states.square().mean((0, 2)).sqrt().tolist(), rel=0.006)
    assert pipeline.model.txtfusion.tap_scales == scales


def test_the_dit_learns_too_if_asked_and_a_scratch_preset_takes_any_vlm(config: TrainConfig) -> None:
    both = changed(config, connector={"taps": [2], "train_dit": True}, steps=1)
    train(both, say=lambda _: None)
    trained, _ = load_generator(both.output / "final.safetensors")
    before, _ = load_generator(BUILT_IN.generator)
    assert not torch.equal(trained.blocks[0].attn.wq.weight, before.blocks[0].attn.wq.weight)

    scratch = changed(
        both, mode="scratch", model={"scratch": "tiny"}, output=config.output.parent / "scratch"
    )
    train(scratch, say=lambda _: None)
    new, record = load_generator(scratch.output / "final.safetensors")
    assert new.config.vlm.taps == (2,)
    assert record["mode"] == "scratch"


def test_states_are_kept_in_16_and_in_8_bits(config: TrainConfig, tmp_path: Path) -> None:
    def losses(**values: Any) -> list[float]:
        own = changed(config, dropout={"text": 0.5, "images": 0}, **values)
        train(own, say=lambda _: None)
        lines = (own.output / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    plain = losses()
    for kind, tolerance in (("bf16", 0.01), ("fp8", 0.05)):
        cache = {"folder": tmp_path / "cache", "states": kind}
        first = losses(output=tmp_path / kind, cache=cache)
        files = sorted((tmp_path / "cache" / "states").rglob(f"*.{kind}.safetensors"))
        written = [path.stat().st_mtime_ns for path in files]
        again = losses(output=tmp_path / f"{kind}-again", cache=cache)

        assert first == pytest.approx(plain, rel=tolerance)
        assert again == first
        # each caption, and the chat without words
        assert len(files) == 9
        assert [path.stat().st_mtime_ns for path in files] == written


def test_states_that_would_not_fit_are_refused_before_they_are_made(config: TrainConfig) -> None:
    limited = changed(
        config, cache={"folder": config.output.parent / "c", "states": "bf16", "limit_gb": 1e-5}
    )

    with pytest.raises(ConfigError, match=r"the latents need|the states need .* raise it, or leave cache"):
        train(limited, say=lambda _: None)


def test_a_connector_without_its_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="connector belongs to the modes connector and scratch"):
        TrainConfig.model_validate({"output": "x", "steps": 1, "data": [{"folder": "a"}], "connector": {}})
