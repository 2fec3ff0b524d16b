"""The training loop of every recipe: progress, loss log, EMA, evaluation, checkpoints and exact resume.

It runs in one process or in several (`accelerate launch`, `torchrun`) with averaged gradients. A `Task` defines what is trained:
the module, the data, the loss and the evaluation. Item i of the data depends only on (seed, i), so a resumed run trains on the
same items as an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..errors import CheckpointError, ConfigError, TrainingError
from .optimizer import MuonAdamW, parameter_groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Hyperparameters of the loop. Intervals are in steps.

    num_steps            of the whole run, resumed parts included
    batch_size           items per step and process
    learning_rate        of AdamW
    muon_learning_rate   of Muon, for matrices; 0 = AdamW for all parameters
    weight_decay         of Muon's matrices
    warmup_steps         over which the learning rate rises linearly from 0
    decay_steps          last steps, over which the learning rate falls linearly to 0; it is constant before, so that a run can
                         be extended from any checkpoint before the decay
    gradient_clip        largest norm of the gradient of all parameters together
    ema_decay            of the averaged weights, 0..1; smaller in the first steps
    num_workers          data loader processes; 0 = items are made in the training process

    Raises ConfigError for a number out of range.
    """

    num_steps: int
    batch_size: int
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.012
    weight_decay: float = 0.0
    warmup_steps: int = 50
    decay_steps: int = 0
    gradient_clip: float = 1.0
    ema_decay: float = 0.995
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    evaluate_every: int = 1000
    num_workers: int = 0

    def __post_init__(self) -> None:
        def check(name: str, fits: bool, needed: str) -> None:
            if not fits:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, {needed} is needed: change it in the recipe or by --set {name}=..."
                )

        for name in ("num_steps", "batch_size", "log_every", "checkpoint_every", "evaluate_every"):
            check(name, getattr(self, name) >= 1, "1 or more")
        for name in (
            "muon_learning_rate",
            "weight_decay",
            "warmup_steps",
            "decay_steps",
            "seed",
            "num_workers",
        ):
            check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "gradient_clip"):
            check(name, getattr(self, name) > 0, "more than 0")
        check("ema_decay", 0 <= self.ema_decay < 1, "a number from 0 to below 1")


M = TypeVar("M", bound=nn.Module)


class Task(ABC, Generic[M]):
    """What is trained: module, data, loss and evaluation.

    name       name of the exported files
    settings   the recipe's arguments, for the training record
    before     training record of the initial weights; None = from scratch
    not_muon   parameters whose name contains one of these are trained by AdamW
    model      the trained module
    """

    name: ClassVar[str]
    settings: dict[str, Any]
    before: dict[str, Any] | None = None
    not_muon: ClassVar[tuple[str, ...]] = ()
    model: M

    @abstractmethod
    def item(self, index: int) -> Any:
        """Training item number `index`. It depends only on (seed, index)."""

    @abstractmethod
    def collate(self, items: list[Any]) -> Any:
        """A batch of items. Runs in the data worker."""

    @abstractmethod
    def loss(self, model: M, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss to minimise, and further values to log by name.

        `step` counts the batches of all processes. Random numbers come from `step_generator(seed, step)`, because a resumed run
        does not restore torch's global generator.
        """

    def place(self, device: torch.device) -> None:
        """Moves the task's frozen models to the device of the run."""

    def prepare(self, process: tuple[int, int]) -> None:
        """Creates the files that items are read from. A dry run skips this, because it writes nothing.

        `process`: (index of this process, number of processes).
        """

    @abstractmethod
    def evaluate(self, model: M, step: int, out: Path) -> dict[str, float]:
        """Scores of the averaged weights by name. May write sample images to the folder `out`."""

    @abstractmethod
    def export(self, model: M, out: Path, record: dict[str, Any]) -> None:
        """Writes the finished file or folder to `out`, with the training record in its metadata."""


class _Stream(Dataset):
    """A task's items from step `first` on, for one process: `process` = (index, number of processes)."""

    def __init__(
        self, task: Task, *, first: int, num_steps: int, batch_size: int, process: tuple[int, int]
    ) -> None:
        self.task, self.first, self.num_steps, self.batch_size = task, first, num_steps, batch_size
        self.index, self.count = process

    def __len__(self) -> int:
        return (self.num_steps - self.first) * self.batch_size

    def __getitem__(self, index: int) -> Any:
        step, place = divmod(index, self.batch_size)
        batch = (self.first + step) * self.count + self.index
        return self.task.item(batch * self.batch_size + place)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one batch: the same in a resumed run, another in each process."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, new modules get the weights of this seed. Afterwards torch's global random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """The factor on the learning rates, 0..1: linear warm-up, constant, linear decay to 0 at `num_steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = config.num_steps - step
    return warm * (min(1.0, left / config.decay_steps) if config.decay_steps else 1.0)


def build_optimizer(task: Task, config: LoopConfig) -> MuonAdamW:
    """The optimizer of the task's parameters."""
    groups = parameter_groups(
        task.model,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        weight_decay=config.weight_decay,
        not_muon=task.not_muon,
    )
    return MuonAdamW(groups)


def train(task: Task, config: LoopConfig, out: Path, *, recipe: str, resume: bool = False) -> None:
    """Trains to the end of the recipe and exports the averaged weights.

    Writes to `out`: checkpoint.safetensors and recipe.json (for `resume`), log/ (TensorBoard), scores.jsonl, samples/ and the
    task's export.

    Raises CheckpointError if `out` has an earlier run and `resume` is False, or no run of this recipe and `resume` is True;
    ConfigError if the run has done more steps than `num_steps`; TrainingError if the gradient is not finite.
    """
    checkpoint = out / "checkpoint.safetensors"
    # before `Accelerator`, which synchronises the processes: all have read the record before the main process writes it
    record = _begin_record(checkpoint, out / "recipe.json", recipe, resume=resume)
    out.mkdir(parents=True, exist_ok=True)
    set_seed(config.seed)
    # without `cpu=True`, Accelerator does not join processes on CPUs
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    task.place(accelerator.device)
    model = task.model.to(accelerator.device)
    _start_equal(model, accelerator)
    optimizer = build_optimizer(task, config)
    average = {k: v.detach().clone() for k, v in task.model.state_dict().items()}
    first = load_checkpoint(checkpoint, task.model, average, optimizer) if resume else 0
    if first > config.num_steps:
        raise ConfigError(
            f"{checkpoint} has {first} steps and num_steps is {config.num_steps}: --set num_steps={first} or more"
        )
    task.prepare((accelerator.process_index, accelerator.num_processes))
    chief = accelerator.is_main_process
    if chief:
        _record_phase(out / "recipe.json", record, task, config, first, accelerator.num_processes)
    writer = SummaryWriter(str(out / "log")) if chief else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    bar = tqdm(
        total=config.num_steps,
        initial=first,
        desc=recipe,
        mininterval=10,
        dynamic_ncols=True,
        disable=not chief,
    )
    running: dict[str, float] = {}
    for step, batch in enumerate(_batches(task, config, first, accelerator), start=first):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(step, config)
        loss, parts = task.loss(model, batch, step * accelerator.num_processes + accelerator.process_index)
        loss.backward()
        _average_gradients(parameters, accelerator)
        norm = float(nn.utils.clip_grad_norm_(parameters, config.gradient_clip))
        if not math.isfinite(norm):
            raise TrainingError(f"step {step}: the gradient is {norm}; lower the learning rate and --resume")
        optimizer.step()
        optimizer.zero_grad()
        # only the main process logs, averages and writes
        if writer is None:
            continue
        _update_average(average, model, min(config.ema_decay, (step + 1) / (step + 10)))
        for key, value in {"loss": float(loss.detach()), "gradient_norm": norm, **parts}.items():
            running[key] = 0.95 * running.get(key, value) + 0.05 * value
        done = step + 1
        bar.update()
        if done % config.log_every == 0:
            bar.set_postfix({k: f"{v:.4f}" for k, v in running.items()}, refresh=False)
            for key, value in running.items():
                writer.add_scalar(key, value, done)
        last = done == config.num_steps
        if done % config.evaluate_every == 0 or last:
            _evaluate(task, average, done, out, writer, running["loss"])
        if done % config.checkpoint_every == 0 or last:
            save_checkpoint(checkpoint, model, average, optimizer, done)
    bar.close()
    if writer is not None:
        writer.close()
        task.export(_with_weights(model, average), out, record)
    _leave(accelerator)


def _leave(accelerator: Accelerator) -> None:
    """Ends the group of processes: one that ends while its group still has threads is aborted."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _start_equal(model: nn.Module, accelerator: Accelerator) -> None:
    """Gives all processes the weights of the first one."""
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)


def _average_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """Averages the gradients over all processes in one message.

    The model is not wrapped (DistributedDataParallel), because tasks call its parts. A parameter without a gradient counts as 0,
    and still has none if no process has one, so that the result equals that of one process with the whole batch.
    """
    if accelerator.num_processes == 1:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    together = torch.cat([used, *(g.flatten() for g in gradients)])
    mean = cast(Tensor, accelerator.reduce(together, reduction="mean"))
    shares, *parts = mean.split([len(parameters), *(g.numel() for g in gradients)])
    for parameter, share, gradient, part in zip(parameters, shares.tolist(), gradients, parts, strict=True):
        parameter.grad = gradient.copy_(part.view_as(gradient)) if share else None


def _begin_record(checkpoint: Path, path: Path, recipe: str, *, resume: bool) -> dict[str, Any]:
    """The record of the run: a new one, or that of the resumed run in `path`. Raises CheckpointError as `train` does."""
    if not resume:
        if checkpoint.exists():
            raise CheckpointError(
                f"{checkpoint} belongs to an earlier run: continue it with --resume, or choose another --out"
            )
        return {"recipe": recipe, "phases": []}
    if not checkpoint.exists():
        raise CheckpointError(
            f"there is no {checkpoint} to resume: give the --out of an earlier run, or start one without --resume"
        )
    try:
        record = json.loads(path.read_text())
        earlier, _ = record["recipe"], record["phases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}, the record of the run, cannot be read ({error!r}): restore it, or start again in another --out"
        ) from error
    if earlier != recipe:
        raise CheckpointError(
            f"{checkpoint} is a run of {earlier}, not of {recipe}: resume that recipe, or choose another --out"
        )
    return record


def _record_phase(
    path: Path, record: dict[str, Any], task: Task, config: LoopConfig, first: int, num_processes: int
) -> None:
    """Adds this phase of the run to the record and writes it, because a resumed run may have other settings."""
    if task.before is not None:
        record["before"] = task.before
    phase = {"first_step": first, "task": task.settings, "loop": asdict(config), "processes": num_processes}
    earlier = [p for p in record["phases"] if p["first_step"] < first]
    if not earlier or {**earlier[-1], "first_step": first} != phase:
        earlier.append(phase)
    record["phases"] = earlier
    path.write_text(json.dumps(record, indent=1))


def _batches(task: Task, config: LoopConfig, first: int, accelerator: Accelerator) -> Iterator[Any]:
    """The batches of this process: batch b belongs to process b modulo the number of processes."""
    stream = _Stream(
        task,
        first=first,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        process=(accelerator.process_index, accelerator.num_processes),
    )
    loader = DataLoader(
        stream,
        batch_size=config.batch_size,
        collate_fn=task.collate,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
    )
    for batch in loader:
        yield send_to_device(batch, accelerator.device)


@torch.no_grad()
def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def _with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(weights)
    return model.eval()


def _evaluate(
    task: Task, average: dict[str, Tensor], step: int, out: Path, writer: SummaryWriter, loss: float
) -> None:
    """Scores the averaged weights, then restores the training weights."""
    (out / "samples").mkdir(exist_ok=True)
    trained = {k: v.detach().clone() for k, v in task.model.state_dict().items()}
    started = time.monotonic()
    with torch.no_grad():
        scores = task.evaluate(_with_weights(task.model, average), step, out / "samples")
    task.model.load_state_dict(trained)
    task.model.train()
    for key, value in scores.items():
        writer.add_scalar(f"evaluation/{key}", value, step)
    line = {"step": step, "loss": round(loss, 5), "seconds": round(time.monotonic() - started, 1), **scores}
    with (out / "scores.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    tqdm.write(json.dumps(line))


def save_checkpoint(
    path: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Writes what a resumed run needs, as a safetensors file (no pickle). An interrupted write leaves the earlier file intact."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    unfinished = path.with_suffix(".part")
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, str(unfinished), {"step": str(step)})
    unfinished.replace(path)


def load_checkpoint(
    path: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer | None = None
) -> int:
    """Loads a checkpoint into `model`, `average` and `optimizer`; returns the number of steps done.

    Raises CheckpointError if the file is damaged or belongs to other parameters.
    """
    try:
        with safe_open(str(path), "pt") as file:
            step = int(file.metadata()["step"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({error!r}): start again in another --out"
        ) from error
    weights, averaged, moments = (
        {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        for part in ("model", "average", "optimizer")
    )
    _check_weights(path, model.state_dict(), weights)
    _check_weights(path, average, averaged)
    model.load_state_dict(weights)
    for key, value in averaged.items():
        average[key].copy_(value)
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in moments.items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
        _check_optimizer_state(path, optimizer, state)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _check_weights(path: Path, needed: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    expected, found = ({k: v.shape for k, v in each.items()} for each in (needed, given))
    odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if odd:
        raise CheckpointError(
            f"{path} has other parameters than the recipe now, for example {odd[:3]}: resume it with the version that "
            "started it, or start again in another --out"
        )


def _check_optimizer_state(
    path: Path, optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]
) -> None:
    """Raises CheckpointError for a state of other groups. The state is numbered by parameter, and the numbers change when
    parameters move between Muon and AdamW."""
    needed = [(group["kind"], p.shape) for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        found = (
            ("muon", values["momentum"].shape) if "momentum" in values else ("adamw", values["mean"].shape)
        )
        if index >= len(needed) or needed[index] != found:
            raise CheckpointError(
                f"{path} has the optimizer state of other parameters: set muon_learning_rate to 0 if it was 0 in the "
                "earlier run, else above 0; or start again in another --out"
            )
