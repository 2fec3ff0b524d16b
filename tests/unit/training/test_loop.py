"""The training loop with a task of a few seconds: resume, refusals, export: pytest tests/unit/training/test_loop.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unifusion_core.errors import CheckpointError, ConfigError, TrainingError
from unifusion_core.shapes.training.autoencoder import AutoencoderTask
from unifusion_core.training import loop as loops
from unifusion_core.training.checkpoint import checkpoints
from unifusion_core.training.loop import Loop, LoopConfig, Loss, Task, learning_rate_factor

CONFIG = LoopConfig(
    steps=12,
    batch_size=3,
    warmup=2,
    decay=4,
    save_every=5,
    evaluate_every=4,
    ema=0.9,
)


class PowerCutError(Exception):
    """The power is cut."""


class LineTask(Task):
    """Fits a small MLP to a linear function; every item depends on its number alone.

    `branch` is used in every fourth batch of three items. With two processes, the second uses it in every other step, the first
    never; so its gradient is missing in one process or in both.
    """

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

    def loss(self, model: nn.Module, batch: Any, number: int) -> Loss:
        if number == self.cut_at:
            raise PowerCutError
        indices, x, y = batch
        self.seen += indices
        y_hat = model["line"](x)
        rows = [row for row, index in enumerate(indices) if index // 3 % 4 == 1]
        if rows:
            y_hat = y_hat.index_add(0, torch.tensor(rows), model["branch"](x[rows]))
        loss = (y_hat - y).square().mean()
        return loss * (float("nan") if number == self.poison_at else 1.0), {"parts": torch.ones(2)}

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        self.evaluated.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return {"score": 0.5}

    def export(self, loop: Loop, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        if loop.chief:
            (loop.out / "exported.json").write_text(json.dumps(record))
        self.exported = {k: v.clone() for k, v in self.model.state_dict().items()}


def train(task: Task, config: LoopConfig, out: Path, *, recipe: str, **options: Any) -> None:
    loops.train(lambda _: task, config, out, name=recipe, **options)


def last_checkpoint(out: Path) -> dict[str, Tensor]:
    """Everything in the last checkpoint of a run."""
    shards = (load_file(path) for path in checkpoints(out / "checkpoints")[-1].glob("*.safetensors"))
    return {name: value for shard in shards for name, value in shard.items()}


# in the first step, the branch has no gradient yet
@pytest.mark.parametrize(("save_every", "cut_at", "kept"), [(5, 7, 5), (1, 1, 1)])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    save_every: int, cut_at: int, kept: int, tmp_path: Path
) -> None:
    config = replace(CONFIG, save_every=save_every)
    whole = LineTask()
    train(whole, config, tmp_path / "whole", recipe="line")

    with pytest.raises(PowerCutError):
        train(LineTask(cut_at=cut_at), config, tmp_path / "parts", recipe="line")
    rest = LineTask()
    train(rest, config, tmp_path / "parts", recipe="line", resume=True)

    assert whole.seen == list(range(36))
    # from the last checkpoint
    assert rest.seen == list(range(3 * kept, 36))
    one, other = (last_checkpoint(tmp_path / run) for run in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


class CropTask(AutoencoderTask):
    """A real task, whose loss uses random numbers, without its evaluation."""

    def __init__(self, *, cut_at: int | None = None) -> None:
        torch.manual_seed(3)
        super().__init__(seed=1, crop=16)
        self.cut_at = cut_at

    def loss(self, model: nn.Module, batch: Tensor, number: int) -> Loss:
        if number == self.cut_at:
            raise PowerCutError
        return super().loss(model, batch, number)

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        return {}


def test_a_resumed_run_repeats_the_noise_of_its_loss(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=3, batch_size=2, save_every=2)
    train(CropTask(), config, tmp_path / "whole", recipe="crop")
    with pytest.raises(PowerCutError):
        train(CropTask(cut_at=2), config, tmp_path / "parts", recipe="crop")
    train(CropTask(), config, tmp_path / "parts", recipe="crop", resume=True)

    one, other = (last_checkpoint(tmp_path / run) for run in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_batch_has_noise_of_its_own() -> None:
    task = CropTask()
    batch = task.collate([task.item(i) for i in range(2)])
    with torch.no_grad():
        first, again, other = (float(task.loss(task.model, batch, step)[0]) for step in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_finished_run_leaves_record_metrics_and_log(tmp_path: Path) -> None:
    task = LineTask()

    train(task, CONFIG, tmp_path, recipe="line")

    record = json.loads((tmp_path / "exported.json").read_text())
    assert record["recipe"] == "line"
    assert [phase["task"] for phase in record["phases"]] == [task.settings]
    assert record["phases"][0]["loop"]["steps"] == 12
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "score" in line] == [4, 8, 12]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert lines[0]["parts"] == 1
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

    tensors = last_checkpoint(tmp_path)
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
        "from test_loop import CONFIG, LineTask, train;"
        # the second process starts from other weights, which the first one's must replace
        "import os, torch; task = LineTask(); rank = int(os.environ['RANK']);"
        "[p.data.add_(rank) for p in task.model.parameters()];"
        f"train(task, CONFIG, Path({str(tmp_path / 'together')!r}), recipe='line')"
    )
    (tmp_path / "script.py").write_text(script)

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, tmp_path / "script.py"], check=True, env=environment, timeout=120)

    one, other = (last_checkpoint(tmp_path / run) for run in ("alone", "together"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    train(LineTask(), replace(CONFIG, steps=1), tmp_path, recipe="line")

    with pytest.raises(CheckpointError, match="go on with --resume, replace it with --overwrite"):
        train(LineTask(), CONFIG, tmp_path, recipe="line")


def test_a_killed_run_leaves_no_line_twice(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        train(LineTask(cut_at=7), CONFIG, tmp_path, recipe="line")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 8, "lo')
    train(LineTask(), CONFIG, tmp_path, recipe="line", resume=True)

    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, 13))


def test_resuming_needs_a_whole_run_of_the_same_recipe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*: start without --resume"):
        train(LineTask(), CONFIG, tmp_path / "none", recipe="line", resume=True)
    out = tmp_path / "run"
    train(LineTask(), replace(CONFIG, steps=2), out, recipe="line")

    def refused(error: type[Exception], match: str, *, task: Task | None = None, **options: Any) -> None:
        with pytest.raises(error, match=match):
            train(task or LineTask(), options.pop("config", CONFIG), out, resume=True, **options)

    refused(CheckpointError, "was made with another name: give what it was", recipe="curve")
    refused(
        ConfigError,
        "has more steps than steps = 1: --set steps=2 or more",
        recipe="line",
        config=replace(CONFIG, steps=1),
    )
    refused(
        CheckpointError,
        "was made with another optimizer",
        recipe="line",
        config=replace(CONFIG, muon_learning_rate=0.0),
    )
    wider = LineTask()
    wider.model["branch"] = nn.Linear(4, 3)
    refused(CheckpointError, "is damaged or belongs to another configuration", recipe="line", task=wider)

    (checkpoint,) = checkpoints(out / "checkpoints")[-1].glob("*.safetensors")
    whole = checkpoint.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b""):
        checkpoint.write_bytes(damaged)
        refused(CheckpointError, "is damaged .* go on from an earlier checkpoint", recipe="line")
    checkpoint.write_bytes(whole)
    state = checkpoint.parent / "state.json"
    state.write_text(state.read_text()[:-5])
    refused(CheckpointError, "is damaged", recipe="line")


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("steps", 0, "1 or more"),
        ("batch_size", 0, "1 or more"),
        ("save_every", 0, "1 or more"),
        ("evaluate_every", -1, "0 or more"),
        ("decay", -1, "0 or more"),
        ("warmup", -1, "0 or more"),
        ("workers", -1, "0 or more"),
        ("seed", -1, "0 or more"),
        ("learning_rate", 0.0, "more than 0"),
        ("learning_rate", float("nan"), "more than 0"),
        ("muon_learning_rate", -0.1, "0 or more"),
        ("weight_decay", -0.1, "0 or more"),
        ("clip", 0.0, "more than 0"),
        ("ema", 1.0, "a number from 0 to below 1"),
    ],
)
def test_a_loop_that_cannot_run_is_refused_at_once(name: str, value: float, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}, {needed} is needed: .* by --set {name}="):
        replace(CONFIG, **{name: value})


def test_the_time_of_a_matrix_product_is_compared_with_that_in_32_bits() -> None:
    assert loops.slowdown_on_cpu(torch.bfloat16) > 0


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("precision", "factor", "said"),
    [("bf16", 55.0, "55.0 times as long"), ("bf16", 1.2, ""), ("fp32", 55.0, "")],
)
def test_a_processor_that_is_slow_in_16_bits_is_said(
    precision: str,
    factor: float,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(loops, "slowdown_on_cpu", lambda dtype: factor)
    train(LineTask(), replace(CONFIG, precision=precision), tmp_path, recipe="line")
    assert ("use precision fp32" in caplog.text) == bool(said)
    assert said in caplog.text


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 7: the loss is nan and the gradient nan"):
        train(LineTask(poison_at=6), CONFIG, tmp_path, recipe="line")

    (report,) = tmp_path.glob("not-finite-*.json")
    assert json.loads(report.read_text())["samples"] == ["sample 18", "sample 19", "sample 20"]
    kept = last_checkpoint(tmp_path)
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    config = replace(CONFIG, steps=100, warmup=10, decay=20)

    factors = [learning_rate_factor(step, config) for step in range(101)]

    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert factors[90] == pytest.approx(0.5)
    assert factors[100] == 0
    assert learning_rate_factor(99, replace(config, decay=0)) == 1.0
