"""The training loop with a task of a few seconds: resume, refusals, export: pytest tests/unit/training/test_loop.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unifusion_core.errors import CheckpointError, ConfigError
from unifusion_core.shapes.training.autoencoder import AutoencoderTask
from unifusion_core.training.loop import LoopConfig, Task, learning_rate_factor, train

CONFIG = LoopConfig(
    num_steps=12,
    batch_size=3,
    warmup_steps=2,
    decay_steps=4,
    checkpoint_every=5,
    evaluate_every=4,
    log_every=2,
    ema_decay=0.9,
)


class PowerCutError(Exception):
    """The power is cut."""


class LineTask(Task):
    """Fits a small MLP to a linear function; every item depends on its number alone.

    `branch` is used in every fourth batch of three items. With two processes, the second uses it in every other step, the first
    never; so its gradient is missing in one process or in both.
    """

    name = "line"
    settings: ClassVar[dict[str, Any]] = {"seed": 3}

    def __init__(self, *, cut_at: int | None = None, poison_at: int | None = None) -> None:
        torch.manual_seed(3)
        line = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        self.model = nn.ModuleDict({"line": line, "branch": nn.Linear(4, 2)})
        self.cut_at, self.poison_at = cut_at, poison_at
        self.seen: list[int] = []
        self.evaluated: list[dict[str, Tensor]] = []

    def item(self, index: int) -> tuple[int, Tensor, Tensor]:
        x = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return index, x, torch.stack([x.sum(), x[0] - 1])

    def collate(self, items: list[Any]) -> tuple[list[int], Tensor, Tensor]:
        indices, x, y = zip(*items, strict=True)
        return list(indices), torch.stack(x), torch.stack(y)

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.cut_at:
            raise PowerCutError
        indices, x, y = batch
        self.seen += indices
        y_hat = model["line"](x)
        rows = [row for row, index in enumerate(indices) if index // 3 % 4 == 1]
        if rows:
            y_hat = y_hat.index_add(0, torch.tensor(rows), model["branch"](x[rows]))
        loss = (y_hat - y).square().mean()
        return loss * (float("nan") if step == self.poison_at else 1.0), {"parts": 1.0}

    def evaluate(self, model: nn.Module, step: int, out: Path) -> dict[str, float]:
        assert not model.training
        self.evaluated.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"score": 0.5}

    def export(self, model: nn.Module, out: Path, record: dict[str, Any]) -> None:
        (out / "exported.json").write_text(json.dumps(record))
        self.exported = {k: v.clone() for k, v in model.state_dict().items()}


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = LineTask()
    train(whole, CONFIG, tmp_path / "whole", recipe="line")

    with pytest.raises(PowerCutError):
        train(LineTask(cut_at=7), CONFIG, tmp_path / "parts", recipe="line")
    rest = LineTask()
    train(rest, CONFIG, tmp_path / "parts", recipe="line", resume=True)

    assert whole.seen == list(range(36))
    # from the checkpoint after step 5
    assert rest.seen == list(range(15, 36))
    one, other = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


class CropTask(AutoencoderTask):
    """A real task, whose loss uses random numbers, without its evaluation."""

    def __init__(self, *, cut_at: int | None = None) -> None:
        torch.manual_seed(3)
        super().__init__(seed=1, crop=16)
        self.cut_at = cut_at

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.cut_at:
            raise PowerCutError
        return super().loss(model, batch, step)

    def evaluate(self, model: nn.Module, step: int, out: Path) -> dict[str, float]:
        return {}


def test_a_resumed_run_repeats_the_noise_of_its_loss(tmp_path: Path) -> None:
    config = replace(CONFIG, num_steps=3, batch_size=2, checkpoint_every=2)
    train(CropTask(), config, tmp_path / "whole", recipe="crop")
    with pytest.raises(PowerCutError):
        train(CropTask(cut_at=2), config, tmp_path / "parts", recipe="crop")
    train(CropTask(), config, tmp_path / "parts", recipe="crop", resume=True)

    one, other = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_batch_has_noise_of_its_own() -> None:
    task = CropTask()
    batch = task.collate([task.item(i) for i in range(2)])
    with torch.no_grad():
        first, again, other = (float(task.loss(task.model, batch, step)[0]) for step in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_finished_run_leaves_record_scores_and_log(tmp_path: Path) -> None:
    task = LineTask()

    train(task, CONFIG, tmp_path, recipe="line")

    record = json.loads((tmp_path / "exported.json").read_text())
    assert record["recipe"] == "line"
    assert [phase["task"] for phase in record["phases"]] == [task.settings]
    assert record["phases"][0]["loop"]["num_steps"] == 12
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["score"] == 0.5
    assert any((tmp_path / "log").iterdir())
    assert not list(tmp_path.glob("*.part"))


def test_the_record_has_a_phase_for_each_change_of_settings(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        train(LineTask(cut_at=7), CONFIG, tmp_path, recipe="line")
    # with the same settings: no new phase
    with pytest.raises(PowerCutError):
        train(LineTask(cut_at=7), CONFIG, tmp_path, recipe="line", resume=True)
    train(LineTask(), replace(CONFIG, learning_rate=1e-4), tmp_path, recipe="line", resume=True)

    phases = json.loads((tmp_path / "exported.json").read_text())["phases"]

    assert [(p["first_step"], p["loop"]["learning_rate"]) for p in phases] == [(0, 2e-3), (5, 1e-4)]


def test_the_averaged_weights_are_evaluated_and_exported(tmp_path: Path) -> None:
    task = LineTask()

    train(task, CONFIG, tmp_path, recipe="line")

    tensors = load_file(tmp_path / "checkpoint.safetensors")
    average, trained = (
        {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        for part in ("average", "model")
    )
    assert all(torch.equal(task.exported[k], average[k]) for k in average)
    assert all(torch.equal(task.evaluated[-1][k], average[k]) for k in average)
    assert not all(torch.equal(trained[k], average[k]) for k in average)


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    alone = LineTask()
    train(alone, replace(CONFIG, batch_size=6), tmp_path / "alone", recipe="line")
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path;"
        "from test_loop import CONFIG, LineTask; from unifusion_core.training.loop import train;"
        # the second process starts from other weights, which the first one's must replace
        "import os, torch; task = LineTask(); rank = int(os.environ['RANK']);"
        "[p.data.add_(rank) for p in task.model.parameters()];"
        f"train(task, CONFIG, Path({str(tmp_path / 'together')!r}), recipe='line')"
    )
    (tmp_path / "script.py").write_text(script)

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, tmp_path / "script.py"], check=True, env=environment, timeout=120)

    one, other = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("alone", "together"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    train(LineTask(), replace(CONFIG, num_steps=1), tmp_path, recipe="line")

    with pytest.raises(CheckpointError, match="--resume, or choose another --out"):
        train(LineTask(), CONFIG, tmp_path, recipe="line")


def test_resuming_needs_a_whole_run_of_the_same_recipe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .* to resume: give the --out of an earlier run"):
        train(LineTask(), CONFIG, tmp_path / "none", recipe="line", resume=True)
    assert not (tmp_path / "none").exists()
    out = tmp_path / "run"
    train(LineTask(), replace(CONFIG, num_steps=2), out, recipe="line")

    def refused(error: type[Exception], match: str, *, task: Task | None = None, **options: Any) -> None:
        with pytest.raises(error, match=match):
            train(task or LineTask(), options.pop("config", CONFIG), out, resume=True, **options)

    refused(CheckpointError, "is a run of line, not of curve: resume that recipe", recipe="curve")
    refused(
        ConfigError,
        "has 2 steps and num_steps is 1: --set num_steps=2 or more",
        recipe="line",
        config=replace(CONFIG, num_steps=1),
    )
    refused(
        CheckpointError,
        "set muon_learning_rate to 0 if it was 0 in the earlier run, else above 0",
        recipe="line",
        config=replace(CONFIG, muon_learning_rate=0.0),
    )
    wider = LineTask()
    wider.model["branch"] = nn.Linear(4, 3)
    refused(
        CheckpointError, r"other parameters .* \['branch.bias', 'branch.weight'\]", recipe="line", task=wider
    )

    checkpoint, record = out / "checkpoint.safetensors", out / "recipe.json"
    whole = checkpoint.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b""):
        checkpoint.write_bytes(damaged)
        refused(CheckpointError, "is damaged .* start again in another --out", recipe="line")
    save_file({"x": torch.zeros(1)}, checkpoint)
    refused(CheckpointError, "not a checkpoint", recipe="line")
    checkpoint.write_bytes(whole)
    record.write_text(record.read_text()[:-5])
    refused(CheckpointError, "the record of the run, cannot be read", recipe="line")
    record.unlink()
    refused(CheckpointError, "the record of the run, cannot be read", recipe="line")


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("num_steps", 0, "1 or more"),
        ("batch_size", 0, "1 or more"),
        ("log_every", 0, "1 or more"),
        ("checkpoint_every", 0, "1 or more"),
        ("evaluate_every", -1, "1 or more"),
        ("decay_steps", -1, "0 or more"),
        ("warmup_steps", -1, "0 or more"),
        ("num_workers", -1, "0 or more"),
        ("seed", -1, "0 or more"),
        ("learning_rate", 0.0, "more than 0"),
        ("learning_rate", float("nan"), "more than 0"),
        ("muon_learning_rate", -0.1, "0 or more"),
        ("weight_decay", -0.1, "0 or more"),
        ("gradient_clip", 0.0, "more than 0"),
        ("ema_decay", 1.0, "a number from 0 to below 1"),
    ],
)
def test_a_loop_that_cannot_run_is_refused_at_once(name: str, value: float, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}, {needed} is needed: .* by --set {name}="):
        replace(CONFIG, **{name: value})


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="step 6: the gradient is nan; lower the learning rate"):
        train(LineTask(poison_at=6), CONFIG, tmp_path, recipe="line")

    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    config = replace(CONFIG, num_steps=100, warmup_steps=10, decay_steps=20)

    factors = [learning_rate_factor(step, config) for step in range(101)]

    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert factors[90] == pytest.approx(0.5)
    assert factors[100] == 0
    assert learning_rate_factor(99, replace(config, decay_steps=0)) == 1.0
