"""The dry run's arithmetic against real steps: pytest tests/unit/training/test_dry_run.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from unifusion_core.live_bytes import LiveBytes
from unifusion_core.shapes.examples import write_examples
from unifusion_core.training.config import TrainConfig
from unifusion_core.training.dry_run import dry_run
from unifusion_core.training.estimate import estimate_step, largest_block, sharded_memory
from unifusion_core.training.loop import Loop
from unifusion_core.training.trainer import FlowTraining, loop_config
from unifusion_core.zoo.tiny import TINY


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "pictures", 12)


def configuration(pictures: Path, tmp_path: Path, **values: Any) -> TrainConfig:
    given = {
        "output": tmp_path / "run",
        "data": [{"folder": pictures}],
        "steps": 2,
        "batch_size": 8,
        "rewrite": {"share": 0},
        "cache": {"folder": pictures.parent / "cache"},
    }
    return TrainConfig.model_validate(given | values)


def measured_memory(config: TrainConfig) -> tuple[int, int]:
    """Peak bytes of a real second step, weights and average included; and the tokens of its longest condition."""
    accelerator = Accelerator(cpu=True)
    task = FlowTraining(config, accelerator, say=lambda _: None)
    task.prepare((0, 1))
    loop = Loop(task, loop_config(config), config.output, accelerator)
    loop.begin(resume=False)
    weights = sum(p.nbytes for p in (*task.model.parameters(), *task.pipeline.backbone.parameters()))
    average = sum(value.nbytes for value in loop.average.values())
    with LiveBytes() as live:
        for step in range(2):
            samples = [task.item(index) for index in loop.indices(step)]
            live.peak = live.now
            loss, _ = loop.compute(samples, step)
            loss.backward()
            del loss
            loop.optimizer.step()
            loop.optimizer.zero_grad()
    tokens = task.data.features([each.request for each in samples]).mask.shape[1]
    return weights + average + live.peak, tokens


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "lora"},
        {"mode": "lora", "precision": "bf16", "lora": {"type": "dora"}},
        {"mode": "full"},
        {"mode": "full", "checkpointing": True, "noises": 3},
        {"mode": "full", "optimizer": "muon", "ema": 0},
        {"mode": "connector", "connector": {"taps": [1, 3]}},
    ],
    ids=lambda values: " ".join(map(str, values.values())),
)
def test_the_estimated_memory_is_what_a_run_allocates(
    pictures: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    config = configuration(pictures, tmp_path, **values)
    task = FlowTraining(config, Accelerator(cpu=True), say=lambda _: None)
    vlm_bytes = sum(p.nbytes for p in task.pipeline.backbone.parameters())
    generator = task.model.config
    del task

    measured, tokens = measured_memory(config)
    estimate = estimate_step(config, generator, vlm_bytes=vlm_bytes, condition_tokens=tokens, size=(128, 128))

    assert estimate.memory == pytest.approx(measured, rel=0.15)


def test_sharding_divides_all_but_the_vlm_and_the_activations(pictures: Path, tmp_path: Path) -> None:
    config = configuration(pictures, tmp_path, mode="full")
    step = estimate_step(config, TINY.config, vlm_bytes=1000, condition_tokens=20, size=(128, 128))
    block = largest_block(TINY.config, torch.float32)

    one, many = (sharded_memory(step, 1000, block, count) for count in (1, 1000))

    assert one == step.memory + 2 * block
    assert many == pytest.approx(1000 + 2 * block + step.activations, rel=0.01)


def test_the_operations_are_those_of_forward_and_backward(pictures: Path, tmp_path: Path) -> None:
    plain = configuration(pictures, tmp_path, mode="full")
    saved = configuration(pictures, tmp_path, mode="full", checkpointing=True)

    flops, with_recomputation = (
        estimate_step(each, TINY.config, vlm_bytes=0, condition_tokens=20, size=(128, 128)).flops
        for each in (plain, saved)
    )

    # the DiT on the 64 latent tokens of 8 samples: two operations per weight and token forward, four backward
    blocks = TINY.config.dit
    weights = blocks.num_blocks * (5 * blocks.hidden_size**2 + 3 * blocks.hidden_size * blocks.mlp_size)
    assert flops > 6 * weights * 64 * 8
    # the blocks are nearly all of the forward pass, which is a third of the whole
    assert 1.25 < with_recomputation / flops < 4 / 3


def test_a_dry_run_writes_nothing_and_says_what_it_takes(pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = configuration(pictures, tmp_path, mode="full", shard=True, cache={"folder": tmp_path / "c"})
    dry_run(config, said.append, gpus=4)

    (text,) = said
    for words in ("12 samples can be used", "4.54 M parameters", "64 of the latents", "on each of 4 GPUs"):
        assert words in text
    assert "2 of 32 samples on 4 GPUs; 5.3 epochs" in text
    assert not config.output.exists()
    assert not (tmp_path / "c").exists()
