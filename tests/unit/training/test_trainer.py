"""`unifusion train` on the embedded model: adapters, full training, resume, several processes, bad input."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from unifusion_core.checkpoints.adapter_file import VLM_KEY, merge_adapters
from unifusion_core.checkpoints.generator_file import load_generator
from unifusion_core.checkpoints.safetensors_file import read_tensors
from unifusion_core.errors import CheckpointError, ConfigError, TrainingError
from unifusion_core.pipeline import Pipeline
from unifusion_core.shapes.examples import write_examples
from unifusion_core.training.adapters import TARGETS, add_adapters
from unifusion_core.training.checkpoint import checkpoints
from unifusion_core.training.config import AdapterConfig, TrainConfig, load_config
from unifusion_core.training.float8 import quantize_frozen
from unifusion_core.training.loop import Loop
from unifusion_core.training.objective import FlowMatching
from unifusion_core.training.trainer import FlowTraining, loop_config, train
from unifusion_core.zoo.tiny import BUILT_IN


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "pictures", 12)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tmp_path: Path, pictures: Path, cache: Path) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "output": tmp_path / "run",
            "data": [{"folder": pictures}],
            "lora": {"rank": 2, "alpha": 4},
            "steps": 6,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 1e-3,
            "rewrite": {"share": 0.5},
            "validation": 0.2,
            "save_every": 2,
            "keep": 10,
            "ema": 0.9,
            "cache": {"folder": cache},
        }
    )


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | values)


def lines(config: TrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


def test_a_lora_is_trained_logged_and_merged(config: TrainConfig) -> None:
    said: list[str] = []
    train(config, say=said.append)

    assert "12 samples can be used, 0 are refused" in said[0]
    steps = [each for each in lines(config) if "loss" in each]
    assert [each["step"] for each in steps] == list(range(1, 7))
    assert {"learning_rate", "samples_per_second", "gradient_norm", "waiting_for_data"} <= steps[0].keys()
    assert [each["step"] for each in lines(config) if "validation_loss" in each] == [2, 4, 6]
    model, _ = load_generator(BUILT_IN.generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = merge_adapters(model, config.output / "final.safetensors")
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) == count == 80, "every target has learned something"
    _, metadata = read_tensors(config.output / "final.safetensors")
    assert metadata[VLM_KEY] == model.config.vlm.fingerprint != ""


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
def test_the_merged_file_draws_what_the_adapters_draw(config: TrainConfig, kind: str) -> None:
    own = changed(config, lora={"type": kind, "rank": 2, "alpha": 4}, steps=2, learning_rate=0.01, ema=0)
    accelerator = Accelerator(cpu=True)
    task = FlowTraining(own, accelerator, say=lambda _: None)
    task.prepare((0, 1))
    Loop(task, loop_config(own), own.output, accelerator, name="train").run(resume=False)
    prompt, settings = "a big red circle on a white background", {"rewrite": False, "steps": 2}

    with_adapters = task.pipeline(prompt, **settings)
    merged = Pipeline.load(lora=[own.output / "final.safetensors"])(prompt, **settings)
    plain = Pipeline.load()(prompt, **settings)

    def difference(one: Any, other: Any) -> float:
        first, second = (
            torch.frombuffer(bytearray(each.tobytes()), dtype=torch.uint8) for each in (one, other)
        )
        return float((first.float() - second.float()).abs().max())

    assert difference(with_adapters, merged) <= 1
    assert difference(plain, merged) > 5


def test_every_target_names_layers_and_starts_without_effect() -> None:
    for target in TARGETS:
        model, _ = load_generator(BUILT_IN.generator)
        add_adapters(model, AdapterConfig(targets=[target], rank=1), seed=0)
        trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        assert len(trainable) > 10
        assert all("lora_" in name for name in trainable)


def test_full_training_writes_a_generator_with_its_record(config: TrainConfig) -> None:
    own = changed(config, mode="full", steps=2, samples=[{"prompt": "a red circle", "seed": 3}])
    train(own, say=lambda _: None)

    model, record = load_generator(own.output / "final.safetensors")
    before, _ = load_generator(BUILT_IN.generator)
    same = [torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)]
    assert not any(same)
    assert record["mode"] == "full"
    assert record["config"]["steps"] == 2
    assert (own.output / "samples" / "step-0000000.png").is_file()
    assert (own.output / "samples" / "step-0000002" / "00.png").is_file()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_resumed_run_ends_in_the_same_weights(config: TrainConfig, mode: str, tmp_path: Path) -> None:
    whole = changed(config, mode=mode)
    train(whole, say=lambda _: None)
    parts = changed(whole, output=tmp_path / "parts", steps=4)
    train(parts, say=lambda _: None)
    (parts.output / "final.safetensors").unlink()

    train(changed(parts, steps=6), resume=True, say=lambda _: None)

    one, other = (load_file(each.output / "final.safetensors") for each in (whole, parts))
    assert one.keys() == other.keys()
    # the file's own JSON has the number of steps and the folder
    assert [
        name for name in one if name != "unifusion_config" and not torch.equal(one[name], other[name])
    ] == []


def command_of(config: TrainConfig, path: Path, *, processes: int = 1) -> list[str]:
    """The command line that runs a configuration, which is written to `path`."""
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launch = torchrun if processes > 1 else []
    return [sys.executable, *launch, "-m", "unifusion_core", "train", str(path)]


def killed_run(
    config: TrainConfig, tmp_path: Path, moments: int, rng: random.Random, *, processes: int = 1
) -> dict[str, torch.Tensor]:
    """The weights of a run that is killed again and again, each time after a random number of further steps' checkpoints."""
    command = command_of(config, tmp_path / "killed.yaml", processes=processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    folder = config.output / "checkpoints"
    for _ in range(moments):
        resume = ["--resume"] if checkpoints(folder) else ["--overwrite"]
        metrics = config.output / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        process = subprocess.Popen([*command, *resume], env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_mtime_ns == before):
            time.sleep(0.02)
        time.sleep(rng.random())
        # torchrun's workers have sessions of their own
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
        )
        for number in (process.pid, *map(int, listed.stdout.split())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()
        if (config.output / "final.safetensors").exists():
            break
    resume = ["--resume"] if checkpoints(folder) else ["--overwrite"]
    subprocess.run([*command, *resume], check=True, capture_output=True, env=environment)
    return load_file(config.output / "final.safetensors")


def test_a_killed_run_goes_on_to_the_same_weights(config: TrainConfig, tmp_path: Path) -> None:
    train(config, say=lambda _: None)
    whole = load_file(config.output / "final.safetensors")

    killed = killed_run(changed(config, output=tmp_path / "killed"), tmp_path, 1, random.Random(0))

    assert [name for name in whole if not torch.equal(whole[name], killed[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_run_killed_at_ten_moments_ends_in_the_same_weights(
    config: TrainConfig, tmp_path: Path, mode: str, processes: int
) -> None:
    long = changed(config, mode=mode, steps=40, save_every=1, gradient_accumulation=1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = command_of(long, tmp_path / "whole.yaml", processes=processes)
    subprocess.run(command, check=True, capture_output=True, env=environment)
    whole = load_file(long.output / "final.safetensors")

    killed = killed_run(
        changed(long, output=tmp_path / "killed"), tmp_path, 10, random.Random(mode), processes=processes
    )

    assert [n for n in whole if n != "unifusion_config" and not torch.equal(whole[n], killed[n])] == []


def test_a_full_disk_ends_in_a_sentence_and_keeps_the_last_checkpoint(
    config: TrainConfig, tmp_path: Path
) -> None:
    own = changed(config, mode="full", steps=2, samples=[])
    train(own, say=lambda _: None)
    longer = changed(own, steps=4)
    command = [*command_of(longer, tmp_path / "longer.yaml"), "--resume"]

    # files of more than 20 MB cannot be written, as on a disk with so much room
    limited = ["bash", "-c", f"ulimit -f 20000; exec {shlex.join(command)}"]
    stopped = subprocess.run(limited, capture_output=True, text=True, check=False)

    assert stopped.returncode == 2
    assert "the checkpoint of step 4 cannot be written" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert [each.name for each in checkpoints(own.output / "checkpoints")] == ["step-0000002"]
    subprocess.run(command, check=True, capture_output=True)
    assert checkpoints(own.output / "checkpoints")[-1].name == "step-0000004"


def test_sigterm_saves_a_checkpoint_and_says_how_to_go_on(config: TrainConfig, tmp_path: Path) -> None:
    own = changed(config, steps=500, save_every=500)
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(json.loads(own.model_dump_json())))
    command = [sys.executable, "-m", "unifusion_core", "train", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (own.output / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "go on with --resume" in error
    assert len(list((own.output / "checkpoints").glob("step-*"))) == 1


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one(config: TrainConfig, tmp_path: Path, shard: bool) -> None:
    check_two_processes(config, tmp_path, shard=shard, steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one_over_fifty_steps(
    config: TrainConfig, tmp_path: Path, shard: bool
) -> None:
    check_two_processes(changed(config, save_every=25), tmp_path, shard=shard, steps=50)


def check_two_processes(config: TrainConfig, tmp_path: Path, *, shard: bool, steps: int) -> None:
    """Two processes and one have the same losses, and each resumes the other's checkpoint."""
    # both processes start from a full cache
    samples = [{"prompt": "a red circle", "seed": seed} for seed in (1, 2, 3)]
    alone = changed(
        config, mode="full" if shard else "lora", ema=0.9, learning_rate=1e-4, steps=steps, samples=samples
    )
    train(alone, say=lambda _: None)
    together = changed(alone, output=tmp_path / "together", gradient_accumulation=1, shard=shard)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run_together(own: TrainConfig, *options: str) -> None:
        command = command_of(own, tmp_path / "together.yaml", processes=2)
        subprocess.run([*command, *options], check=True, env=environment, timeout=600, capture_output=True)

    run_together(together)

    for one, two in zip(lines(alone), lines(together), strict=True):
        for name in ("loss", "validation_loss"):
            if name in one:
                assert one[name] == pytest.approx(two[name], rel=1e-5)
    drawn = sorted((together.output / "samples").rglob("??.png"))
    assert [each.name for each in drawn] == 2 * [f"{number:02d}.png" for number in range(len(samples))]
    for image in drawn:
        other = alone.output / image.relative_to(together.output)
        one, two = (np.asarray(Image.open(path)).astype(int) for path in (other, image))
        assert abs(one - two).max() <= 1
    # saved by two and resumed by one, and the other way
    shutil.copytree(alone.output, tmp_path / "taken over")
    taken_over = changed(together, output=tmp_path / "taken over", samples=[], steps=steps + 1)
    run_together(taken_over, "--resume")
    later = changed(together, gradient_accumulation=2, shard=False, samples=[], steps=steps + 1)
    train(later, resume=True, say=lambda _: None)
    train(changed(alone, samples=[], steps=steps + 1), resume=True, say=lambda _: None)
    for other in (later, taken_over):
        assert lines(other)[-2]["loss"] == pytest.approx(lines(alone)[-2]["loss"], rel=1e-4)


def test_bf16_trains_adapters_in_32_bits_to_nearly_the_same_loss(config: TrainConfig, tmp_path: Path) -> None:
    train(config, say=lambda _: None)
    half = changed(config, output=tmp_path / "half", precision="bf16")
    train(half, say=lambda _: None)

    whole, rounded = ([each["loss"] for each in lines(c) if "loss" in each] for c in (config, half))
    assert rounded == pytest.approx(whole, rel=0.03)
    assert all(
        value.dtype == torch.float32 for value in load_file(half.output / "final.safetensors").values()
    )
    (shard, *_) = (half.output / "checkpoints").glob("step-*6/*.safetensors")
    kept = {name: value.dtype for name, value in load_file(shard).items() if name.startswith("model.")}
    assert set(kept.values()) == {torch.float32}


def test_checkpointing_computes_the_same(config: TrainConfig, tmp_path: Path) -> None:
    short = changed(config, steps=2)
    train(short, say=lambda _: None)
    saved = changed(
        short, output=tmp_path / "saved", checkpointing=True, rewrite={"share": 0.5, "cache": False}
    )
    train(saved, say=lambda _: None)

    one, other = (load_file(each.output / "final.safetensors") for each in (short, saved))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-4)
    assert list((saved.output / "rewrites").rglob("*.txt"))


def test_frozen_weights_in_8_bits_train_to_nearly_the_same_loss(config: TrainConfig, tmp_path: Path) -> None:
    for kind in ("lora", "lokr"):
        own = changed(config, output=tmp_path / kind, lora={"type": kind, "rank": 2}, steps=3)
        train(own, say=lambda _: None)
        rounded = changed(own, output=tmp_path / f"{kind}-8", quantize="fp8", checkpointing=True)
        train(rounded, say=lambda _: None)

        whole, small = ([each["loss"] for each in lines(c) if "loss" in each] for c in (own, rounded))
        assert small == pytest.approx(whole, rel=0.02)
        assert small != whole
        tensors = load_file(rounded.output / "final.safetensors")
        assert {value.dtype for value in tensors.values()} == {torch.float32}
    with pytest.raises(ValueError, match="quantize rounds frozen weights"):
        changed(config, mode="full", quantize="fp8")


def test_blocks_in_8_bits_take_a_quarter_of_their_memory_and_keep_what_they_draw() -> None:
    model, _ = load_generator(BUILT_IN.generator)
    add_adapters(model, AdapterConfig(), seed=0)
    layer = model.blocks[2].mlp.up
    x = torch.randn(3, 192, requires_grad=True)
    before = layer(x)
    (wanted,) = torch.autograd.grad(before.sum(), x)
    size = sum(p.nbytes for p in model.blocks.parameters() if not p.requires_grad)

    quantize_frozen(model)

    kept = sum(v.nbytes for v in (*model.blocks.parameters(), *model.blocks.buffers()) if not v.requires_grad)
    assert kept < 0.28 * size
    after = layer(x)
    (gradient,) = torch.autograd.grad(after.sum(), x)
    assert float((after - before).norm() / before.norm()) < 0.04
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.04


def test_several_noises_share_a_condition_and_count_the_same(config: TrainConfig, tmp_path: Path) -> None:
    own = changed(config, noises=3, steps=2)
    task = FlowTraining(own, Accelerator(cpu=True), say=lambda _: None)
    samples = [task.item(index) for index in range(2)]
    batch = task.batch(samples)

    assert batch.noise.shape[:2] == batch.t.shape == (2, 3)
    together = FlowMatching(task.model).losses(batch)
    for point in range(3):
        alone = replace(batch, noise=batch.noise[:, point : point + 1], t=batch.t[:, point : point + 1])
        torch.testing.assert_close(
            FlowMatching(task.model).losses(alone)[:, 0], together[:, point], atol=1e-5, rtol=1e-4
        )


def test_a_precision_that_the_machine_lacks_is_refused(config: TrainConfig) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(changed(config, precision="fp16"))


def test_an_earlier_run_is_neither_overwritten_nor_mixed_up(config: TrainConfig) -> None:
    train(changed(config, steps=2), say=lambda _: None)

    with pytest.raises(CheckpointError, match="go on with --resume, replace it with --overwrite"):
        train(config)
    with pytest.raises(CheckpointError, match="made with another seed"):
        train(changed(config, seed=5), resume=True)
    with pytest.raises(ConfigError, match="more steps than steps = 1"):
        train(changed(config, steps=1), resume=True)


def test_an_overwritten_run_leaves_nothing_to_resume_from(config: TrainConfig) -> None:
    train(changed(config, steps=4), say=lambda _: None)
    train(changed(config, steps=2), overwrite=True, say=lambda _: None)

    assert [each.name for each in checkpoints(config.output / "checkpoints")] == ["step-0000002"]
    assert max(each["step"] for each in lines(config)) == 2


def test_nothing_to_resume_is_said(config: TrainConfig) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*: start without --resume"):
        train(config, resume=True)


def test_a_damaged_checkpoint_is_named(config: TrainConfig) -> None:
    train(changed(config, steps=2), say=lambda _: None)
    (shard,) = (config.output / "checkpoints" / "step-0000002").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:1000])

    with pytest.raises(CheckpointError, match=r"step-0000002 is damaged .* earlier checkpoint"):
        train(config, resume=True)


def test_a_loss_that_is_not_finite_names_its_samples(config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan|the loss is inf|the gradient"):
        train(changed(config, mode="full", learning_rate=1e12, clip=1e12), say=lambda _: None)

    (report,) = config.output.glob("not-finite-*.json")
    assert len(json.loads(report.read_text())["samples"]) == 4


def test_unknown_keys_are_answered_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("output: x\nsteps: 3\nlearnin_rate: 1\nlora: {rnk: 2}\ndata: [{folder: a, wieght: 1}]\n")

    with pytest.raises(ConfigError) as refused:
        load_config(path)

    for near in ("learning_rate", "rank", "weight"):
        assert f'did you mean "{near}"?' in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 3\nsteps: 4\n", 'the key "steps" stands twice'),
        ("output: x\nsteps: 0\ndata: [{folder: a}]\n", "steps is 0"),
        ("output: x\nsteps: 1\ndata: [{folder: a, jsonl: b}]\n", "give one of folder, jsonl"),
        ("output: x\nsteps: 1\ndata: []\n", "data is"),
        ("output: x\nsteps: 1\nversion: 9\ndata: [{folder: a}]\n", "version is 9"),
        ("output: x\nsteps: 1\ndata: [{folder: a}]\nmode: scratch\n", "go together"),
        ("output: x\nsteps: 1\ndata: [{folder: a}]\nresolution: [100]\n", "multiples of 16"),
        ("- 1\n", "has no keys"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_configurations_that_cannot_be_run_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_values_on_the_command_line_win(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("output: x\nsteps: 3\nlearning_rate: 3e-4\ndata: [{folder: a}]\n")

    loaded = load_config(path, ["steps=7", "lora.rank=2", "lora.targets=[dit.mlp]"])

    assert (loaded.steps, loaded.lora.rank, loaded.lora.targets) == (7, 2, ["dit.mlp"])
    assert loaded.learning_rate == pytest.approx(3e-4)
