"""The training loop of everything that is trained here: user data, and the parts of the embedded model.

A `Task` says what is trained: the modules, the samples, the loss and what is measured. The loop runs it in one process or in
several (`torchrun`, `accelerate launch`). A sample and all chance in it depend on its number alone, so that resumed runs and runs
in more processes train on the same samples. The loss of every sample counts the same.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .. import __version__
from ..errors import CheckpointError, ConfigError, TrainingError
from ..files import check_folder
from .checkpoint import checkpoints, load_checkpoint, remove_old, save_checkpoint
from .optimizer import MuonAdamW, parameter_groups

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# name of the score by which the best checkpoint is chosen; lower is better
VALIDATION = "validation_loss"


class InterruptedRunError(Exception):
    """The run was asked to stop, and has saved a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Hyperparameters of the loop. Intervals are in steps.

    steps                of the optimiser in the whole run, resumed parts included
    batch_size           samples per pass and process
    accumulate           passes per step; a step has batch_size * accumulate * processes samples
    learning_rate        of AdamW
    muon_learning_rate   of Muon, for matrices; 0 = AdamW for all parameters
    weight_decay         of Muon's matrices
    warmup               first steps, over which the learning rates rise linearly from 0
    decay                last steps, over which they fall linearly to 0; they are constant before, so that a run can be extended
                         from any checkpoint before the decay
    clip                 largest norm of the gradient of all parameters together
    ema                  decay of the averaged weights, 0..1, smaller in the first steps; 0 = no average
    precision            of the computation
    shard                divide weights and optimiser state among the processes (FSDP2)
    evaluate_every       0 = at the end alone
    draw_every           the same for images
    keep                 checkpoints that are kept, besides the best one
    workers              processes that make samples; 0 = the training process makes them

    Raises ConfigError for a number out of range.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.012
    weight_decay: float = 0.0
    warmup: int = 50
    decay: int = 0
    clip: float = 1.0
    ema: float = 0.995
    precision: Precision = "fp32"
    shard: bool = False
    seed: int = 0
    save_every: int = 200
    evaluate_every: int = 1000
    draw_every: int = 0
    keep: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        def check(name: str, fits: bool, needed: str) -> None:
            if not fits:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, {needed} is needed: change it in the recipe or by --set {name}=..."
                )

        for name in ("steps", "batch_size", "accumulate", "save_every", "keep"):
            check(name, getattr(self, name) >= 1, "1 or more")
        for name in (
            "muon_learning_rate",
            "weight_decay",
            "warmup",
            "decay",
            "seed",
            "evaluate_every",
            "draw_every",
            "workers",
        ):
            check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "clip"):
            check(name, getattr(self, name) > 0, "more than 0")
        check("ema", 0 <= self.ema < 1, "a number from 0 to below 1")


# What is trained ----------------------------------------------------------------------------------

M = TypeVar("M", bound=nn.Module)
# of a pass: the mean loss of its samples, and further values to log, one or more of each
Loss = tuple[Tensor, dict[str, Tensor]]


class Task(ABC, Generic[M]):
    """What is trained.

    model       holds the trained parameters, whose names there are those in checkpoints
    settings    for the record
    before      record of the initial weights; None = from scratch
    not_muon    parameters whose name contains one of these are trained by AdamW
    unused      whether some parameters have no part in the loss of some batches
    """

    model: M
    settings: Mapping[str, Any]
    before: dict[str, Any] | None = None
    not_muon: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[bool] = True

    @abstractmethod
    def item(self, index: int) -> Any:
        """Sample number `index`, which depends on it alone."""

    @abstractmethod
    def collate(self, items: list[Any]) -> Any:
        """The samples of one process for one step. Runs in the process that makes samples."""

    def passes(self, collated: Any) -> list[tuple[Any, float]]:
        """What the step's passes are made of, each with its share of the process's samples; one pass is the default."""
        return [(collated, 1.0)]

    def batch(self, part: Any) -> Any:
        """The batch of a pass. It is made when its turn comes, so that only one is in memory."""
        return part

    @abstractmethod
    def loss(self, model: M, batch: Any, number: int) -> Loss:
        """The loss of a batch. `number` counts the steps of all processes, for `step_generator`: a resumed run does not restore
        torch's global generator."""

    def objective(self) -> nn.Module:
        """A module whose `forward(batch, number)` is the loss, so that hooks of DDP and FSDP see every use of the weights."""
        return _Objective(self)

    def optimizer(self, config: LoopConfig) -> torch.optim.Optimizer:
        """The optimiser of the trainable parameters; each group has its rate as `base_lr`, too."""
        groups = parameter_groups(
            self.model,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            weight_decay=config.weight_decay,
            not_muon=self.not_muon,
        )
        return MuonAdamW(groups, precision=muon_precision(config.precision))

    def place(self, device: torch.device) -> None:
        """Moves the task's frozen models to the device of the run."""

    def prepare(self, process: tuple[int, int]) -> None:
        """Makes this process's part of the files that samples are read from. `process`: (index, number of processes)."""

    def shard(self, objective: nn.Module) -> None:
        """Divides the weights among the processes. Raises ConfigError if the task cannot."""
        raise ConfigError("these weights cannot be divided: leave shard out")

    def name_of(self, index: int) -> str:
        """What a report calls sample number `index`."""
        return f"sample {index}"

    def identity(self) -> dict[str, Any]:
        """What must be equal to go on from a checkpoint: another value would be another run."""
        return {}

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        """Scores of the averaged weights, which are in the model's place. All processes call it."""
        return {}

    def draw(self, loop: Loop, step: int) -> None:
        """Writes images of the averaged weights. All processes call it."""

    @abstractmethod
    def export(self, loop: Loop, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        """Writes the finished file. All processes call it, and the main one writes.

        weights   the averaged trained parameters, whole, by their names in the model
        record    how they were made
        """


class _Objective(nn.Module):
    """A task's loss as a module."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        # outside of the module's own names
        self.loss = task.loss

    def forward(self, batch: Any, number: int) -> Loss:
        return self.loss(self.model, batch, number)


def muon_precision(precision: Precision) -> torch.dtype | None:
    """bfloat16 in runs that compute in it, which is faster there; the weights' own type in others. float16 overflows."""
    return torch.bfloat16 if precision == "bf16" else None


def step_generator(seed: int, number: int) -> torch.Generator:
    """The random generator of one batch: the same in a resumed run, another in each process."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, new modules get the weights of this seed. Afterwards torch's global random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# The loop -----------------------------------------------------------------------------------------


def train(
    build: Callable[[Accelerator], Task],
    config: LoopConfig,
    out: Path,
    *,
    name: str,
    resume: bool = False,
    overwrite: bool = False,
    only_prepare: bool = False,
) -> None:
    """Trains to the end and exports the averaged weights.

    build          makes the task when the processes have found each other
    name           of the run; a checkpoint of another one is refused
    only_prepare   make the files that samples are read from, and train nothing

    Writes to `out`: checkpoints/, metrics.jsonl (a line for each step, and for each evaluation), log/ (TensorBoard), samples/ and
    the task's file.

    Raises CheckpointError if `out` has an earlier run and neither `resume` nor `overwrite` says what to do with it, or nothing
    that can be resumed; ConfigError for what this machine cannot do; TrainingError for a loss that is not finite or a full disk,
    and InterruptedRunError after Ctrl-C or SIGTERM.
    """
    if resume and overwrite:
        raise ConfigError(
            "--resume goes on with the earlier run and --overwrite replaces it: give one of them"
        )
    present = checkpoints(out / "checkpoints") or any(out.glob("*.safetensors"))
    if present and not (resume or overwrite):
        raise CheckpointError(
            f"{out} has an earlier run: go on with --resume, replace it with --overwrite, or choose another output"
        )
    check_folder(out)
    if config.precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError("precision fp16 needs a GPU, and there is none here: use fp32 or bf16")
    if config.precision != "fp32" and not torch.accelerator.is_available():
        factor = slowdown_on_cpu(DTYPES[config.precision])
        # less is noise
        if factor > 1.5:
            logger.warning(
                "this processor takes %.1f times as long for a matrix product in %s as in fp32: use precision fp32",
                factor,
                config.precision,
            )
    accelerator = start_processes()
    try:
        task = build(accelerator)
        task.prepare((accelerator.process_index, accelerator.num_processes))
        accelerator.wait_for_everyone()
        if not only_prepare:
            if overwrite:
                # only when the new one is known to be possible
                _remove_earlier_run(out, accelerator)
            Loop(task, config, out, accelerator, name=name).run(resume=resume)
            accelerator.wait_for_everyone()
    finally:
        # A process that ends while its group still has threads is aborted, and a module that exchanges gradients keeps some.
        gc.collect()
        accelerator.end_training()


def slowdown_on_cpu(dtype: torch.dtype) -> float:
    """Time of a matrix product in `dtype` over its time in 32 bits: many times 1 on processors without instructions for it."""
    times: list[float] = []
    for kind in (torch.float32, dtype):
        matrix = torch.ones(256, 256, dtype=kind)
        seconds = []
        # several, since the first one sets up threads and kernels
        for _ in range(4):
            start = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - start)
        times.append(min(seconds))
    return times[1] / times[0]


def start_processes() -> Accelerator:
    """Joins the processes of the run, on GPUs where there are some."""
    return Accelerator(
        # without `cpu=True`, Accelerator does not join processes on CPUs
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


class Loop:
    """A run of a task in this process.

    chief   whether this is the main process, which logs and writes
    """

    def __init__(
        self, task: Task, config: LoopConfig, out: Path, accelerator: Accelerator, *, name: str = ""
    ) -> None:
        self.task, self.config, self.out, self.accelerator, self.name = task, config, out, accelerator, name
        self.chief = accelerator.is_main_process
        self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self.folder = out / "checkpoints"
        self.best: tuple[float, int] | None = None
        self.phases: list[dict[str, Any]] = []
        self._stop: int | None = None

    @property
    def samples(self) -> int:
        """Samples of a step in this process."""
        return self.config.batch_size * self.config.accumulate

    def run(self, *, resume: bool) -> None:
        """All steps, then the export."""
        done = self.begin(resume=resume)
        handlers = self._catch_signals()
        try:
            self._run(done)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _run(self, done: int) -> None:
        config = self.config
        bar = tqdm(
            total=config.steps,
            initial=done,
            desc=self.name or "train",
            mininterval=5,
            dynamic_ncols=True,
            disable=not self.chief,
        )
        batches = self.batches(done)
        for step in range(done, config.steps):
            started = time.monotonic()
            collated = next(batches)
            waited = time.monotonic() - started
            values = self.step(step, collated)
            seconds = time.monotonic() - started
            values["samples_per_second"] = self.samples * self.processes / seconds
            values["waiting_for_data"] = waited / seconds
            self._log(step + 1, values)
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            bar.update()
            if self._after(step + 1):
                bar.close()
                raise InterruptedRunError(f"stopped after step {step + 1}: go on with --resume")
        bar.close()
        self._export()

    def begin(self, *, resume: bool) -> int:
        """Everything before the first step. Returns the number of steps done."""
        config, task, device = self.config, self.task, self.accelerator.device
        self.out.mkdir(parents=True, exist_ok=True)
        task.place(device)
        task.model.to(device)
        if self.processes > 1:
            # frozen weights are equal, since all processes read the same files
            for parameter in task.model.parameters():
                if parameter.requires_grad:
                    dist.broadcast(parameter.data, 0)
        self.objective: Any = task.objective().train()
        if config.shard:
            if not dist.is_initialized():
                raise ConfigError(
                    "shard: true divides weights among processes, and there is one: start several by torchrun"
                )
            task.shard(self.objective)
        self.trainable = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
        self.optimizer = task.optimizer(config)
        # of fp16, whose small gradients would vanish without a factor
        self.scaler = torch.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average = {name: p.detach().clone() for name, p in self.trainable.items()} if config.ema else {}
        done = self._load() if resume else 0
        self._record_phase(done)
        if self.processes > 1 and not config.shard:
            cast(Any, self.accelerator.ddp_handler).find_unused_parameters = task.unused
            _leave_out_frozen(self.objective)
            self.objective = self.accelerator.prepare_model(self.objective)
        if self.chief:
            self.writer = SummaryWriter(str(self.out / "log"))
        if not done:
            if config.shard:
                # a pass makes the sharded blocks know the module around them, without which they cannot be drawn with
                with torch.no_grad():
                    part, _ = task.passes(task.collate([task.item(index) for index in self.indices(0)]))[0]
                    self.compute(part, 0)
                    self.objective.reshard()
            self._draw(0)
        return done

    def batches(self, done: int) -> Iterator[Any]:
        """The collated samples of each step of this process, from step `done` on."""
        loader = DataLoader(
            _Items(self.task, [i for step in range(done, self.config.steps) for i in self.indices(step)]),
            batch_size=self.samples,
            collate_fn=self.task.collate,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
        )
        yield from loader

    def indices(self, step: int) -> range:
        """The numbers of this process's samples in a step."""
        first = (step * self.processes + self.process) * self.samples
        return range(first, first + self.samples)

    def step(self, step: int, collated: Any) -> dict[str, float]:
        """One step of the optimiser. Returns what is logged."""
        factor = learning_rate_factor(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        loss, parts = self._accumulate(step, collated)
        self.scaler.unscale_(self.optimizer)
        norm = float(whole(nn.utils.clip_grad_norm_(list(self.trainable.values()), self.config.clip)))
        # a factor that is too large for one step is lowered by the scaler, which leaves the step out
        if not math.isfinite(loss) or not (self.scaler.is_enabled() or math.isfinite(norm)):
            self._stop_at_nan(step, loss, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        update_average(self.average, self.trainable, min(self.config.ema, (step + 1) / (step + 10)))
        rate = self.optimizer.param_groups[0]["lr"]
        return {"loss": loss, "learning_rate": rate, "gradient_norm": norm, **parts}

    def compute(self, part: Any, number: int) -> Loss:
        """The loss of a pass, computed in the configuration's type."""
        batch = send_to_device(self.task.batch(part), self.accelerator.device)
        with self.autocast():
            return self.objective(batch, number)

    def autocast(self) -> torch.autocast:
        """A context that computes in the configuration's type."""
        dtype = DTYPES[self.config.precision]
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)

    def sum_of_all(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduce(value, dist.ReduceOp.SUM)

    # One step ------------------------------------------------------------------------------------

    def _accumulate(self, step: int, collated: Any) -> tuple[float, dict[str, float]]:
        """Adds up the gradients of a step. Returns the mean loss of all samples of all processes, and means of its parts."""
        passes = self.task.passes(collated)
        number = int(self._reduce(torch.tensor(float(len(passes))), dist.ReduceOp.MAX))
        # a process with fewer passes repeats one without weight, since gradients are exchanged in every last pass
        passes += [(part, 0.0) for part, _ in passes[:1] * (number - len(passes))]
        loss, parts = torch.zeros((), device=self.accelerator.device), dict[str, list[Tensor]]()
        for index, (part, share) in enumerate(passes):
            with nullcontext() if index == number - 1 else self._without_exchange():
                mean, values = self.compute(part, step * self.processes + self.process)
                # gradients are averaged over the processes, which have equal numbers of samples
                self.scaler.scale(mean * share).backward()
            if share:
                loss += mean.detach().float() * share
                for key, value in values.items():
                    parts.setdefault(key, []).append(value.detach().float().reshape(-1))
        means = {key: float(torch.cat(values).mean()) for key, values in parts.items()}
        return float(self.sum_of_all(loss)) / self.processes, means

    def _without_exchange(self) -> Any:
        """A context in which gradients are added up without being exchanged. Sharded ones are exchanged in every pass, since each
        process would have to keep them whole otherwise."""
        return nullcontext() if self.config.shard else self.accelerator.no_sync(self.objective)

    def _reduce(self, value: Tensor, how: Any) -> Tensor:
        if self.processes > 1:
            value = value.to(self.accelerator.device)
            dist.all_reduce(value, how)
        return value

    def _stop_at_nan(self, step: int, loss: float, norm: float) -> None:
        """Writes the names of the step's samples. Raises TrainingError."""
        path = self.out / f"not-finite-{self.process}.json"
        names = [self.task.name_of(index) for index in self.indices(step)]
        path.write_text(json.dumps({"step": step, "samples": names}, indent=1, ensure_ascii=False))
        raise TrainingError(
            f"step {step + 1}: the loss is {loss} and the gradient {norm}; {path} names the samples. Lower the learning rate, or "
            "remove the samples, and go on with --resume"
        )

    # Between steps -------------------------------------------------------------------------------

    def _after(self, step: int) -> bool:
        """Evaluation, checkpoint and images, if it is time for them. Returns whether the run was asked to stop."""
        config, finished, stop = self.config, step == self.config.steps, self._asked_to_stop()
        if finished or _is_time(step, config.evaluate_every):
            self._evaluate(step)
        if finished or stop or _is_time(step, config.save_every):
            self._save(step)
        if finished or _is_time(step, config.draw_every):
            self._draw(step)
        return stop and not finished

    @torch.no_grad()
    def _evaluate(self, step: int) -> None:
        with averaged(self.trainable, self.average):
            scores = self.task.evaluate(self, step)
            if self.config.shard:
                # a pass without a backward pass leaves the outer weights gathered, and the next one would use them
                self.objective.reshard()
        value = scores.get(VALIDATION)
        if value is not None and (self.best is None or value < self.best[0]):
            self.best = (value, step)
        if scores:
            self._log(step, scores)

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        with averaged(self.trainable, self.average):
            self.task.draw(self, step)
        self.accelerator.wait_for_everyone()

    def _export(self) -> None:
        with averaged(self.trainable, self.average):
            weights: dict[str, Tensor] = {}
            for name, parameter in self.trainable.items():
                value = whole(parameter.detach())
                # one at a time, in the main process's memory
                if self.chief:
                    weights[name] = value.cpu()
            try:
                self.task.export(self, weights, self._record())
            except (OSError, SafetensorError) as error:
                raise TrainingError(
                    f"the finished weights cannot be written to {self.out} ({error}): make room, then go on with --resume"
                ) from error

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        """A line in metrics.jsonl, and TensorBoard's log."""
        if not self.chief:
            return
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def _record(self) -> dict[str, Any]:
        """How the weights were made."""
        before = {} if self.task.before is None else {"before": self.task.before}
        return {"recipe": self.name, "version": __version__, "phases": self.phases, **before}

    def _record_phase(self, done: int) -> None:
        """Adds this part of the run to the record, because a resumed run may have other settings."""
        phase = {
            "first_step": done,
            "task": dict(self.task.settings),
            "loop": asdict(self.config),
            "processes": self.processes,
        }
        # as it is read from a checkpoint
        phase = json.loads(json.dumps(phase))
        self.phases = [each for each in self.phases if each["first_step"] < done]
        if not self.phases or {**self.phases[-1], "first_step": done} != phase:
            self.phases.append(phase)

    # Checkpoints ---------------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        tensors = run_tensors(self.trainable, self.average, self.optimizer)
        state = {
            "identity": self._identity(),
            "untouched": untouched(self.trainable, self.optimizer),
            "best": self.best,
            "phases": self.phases,
            "version": __version__,
        }
        save_checkpoint(self.folder, step, tensors, state)
        if self.chief:
            remove_old(self.folder, self.config.keep, self.best[1] if self.best else None)

    def _load(self) -> int:
        """Loads the last checkpoint. Returns its step."""
        found = checkpoints(self.folder)
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.folder}: start without --resume")

        def read(state: dict[str, Any]) -> dict[str, Tensor]:
            own = self._identity()
            changed = [key for key, value in own.items() if state["identity"].get(key) != value]
            if changed:
                raise CheckpointError(
                    f"{found[-1]} was made with another {', '.join(changed)}: give what it was, or another output"
                )
            if int(state["step"]) > self.config.steps:
                raise ConfigError(
                    f"{found[-1]} has more steps than steps = {self.config.steps}: --set steps={state['step']} or more"
                )
            self.best = tuple(state["best"]) if state["best"] else None
            self.phases = state["phases"]
            # checkpoints of earlier versions do not tell
            without = state.get("untouched", ())
            left_out = {id(each) for name, each in self.trainable.items() if name in without}
            start_optimizer(self.optimizer, left_out)
            return run_tensors(self.trainable, self.average, self.optimizer)

        done = load_checkpoint(found[-1], read)
        if self.chief:
            _forget_later_steps(self.out / "metrics.jsonl", done)
        return done

    def _identity(self) -> dict[str, Any]:
        """What must be equal to go on."""
        groups = [len(group["params"]) for group in self.optimizer.param_groups]
        own = {
            "name": self.name,
            "seed": self.config.seed,
            "average (ema)": bool(self.config.ema),
            # the same samples may be divided otherwise
            "samples per step": self.samples * self.processes,
            "optimizer": [type(self.optimizer).__name__, *groups],
        }
        return json.loads(json.dumps(own | self.task.identity()))

    # Stopping ------------------------------------------------------------------------------------

    def _catch_signals(self) -> dict[int, Any]:
        """Ctrl-C and SIGTERM end the run after the present step; a second Ctrl-C ends it at once. Returns the handlers before."""

        def note(number: int, _: object) -> None:
            self._stop = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        return {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}

    def _asked_to_stop(self) -> bool:
        """Whether any process was asked to stop, so that all save together."""
        return bool(self._reduce(torch.tensor(float(self._stop is not None)), dist.ReduceOp.MAX))


# Parts --------------------------------------------------------------------------------------------


class averaged:  # noqa: N801  (a context manager, used like a function)
    """Inside, the averaged weights are in the model's place."""

    def __init__(self, trainable: Mapping[str, nn.Parameter], average: Mapping[str, Tensor]) -> None:
        self.trainable, self.average = trainable, average

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.average.items():
            kept = self.trainable[name].detach().clone()
            self.trainable[name].copy_(value)
            value.copy_(kept)


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], trainable: Mapping[str, nn.Parameter], decay: float
) -> None:
    """Moves the averaged weights towards the present ones."""
    for name, value in average.items():
        value.lerp_(trainable[name].detach(), 1 - decay)


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """The factor on the learning rates, 0..1: linear warm-up, constant, linear decay to 0 at the end."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    left = config.steps - step
    return warm * (min(1.0, left / config.decay) if config.decay else 1.0)


def untouched(trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters that no gradient has reached, which have no state yet."""
    return [name for name, parameter in trainable.items() if parameter not in optimizer.state]


def start_optimizer(optimizer: torch.optim.Optimizer, left_out: Container[int] = ()) -> None:
    """Makes the state that a checkpoint is loaded into: a step with gradients and learning rates of 0.

    left_out  ids of the parameters that get none
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
        for parameter in group["params"]:
            if id(parameter) not in left_out:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group["lr"], group["weight_decay"] = rate, decay


def run_tensors(
    trainable: Mapping[str, nn.Parameter], average: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Everything that a checkpoint keeps, by name: trained weights, their average, the optimiser's state."""
    tensors = {f"model.{name}": p.detach() for name, p in trainable.items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    names = {id(p): name for name, p in trainable.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{names[id(parameter)]}.{key}"] = value
    return tensors


def whole(value: Tensor) -> Tensor:
    """A tensor of all processes' parts."""
    return cast(Any, value).full_tensor() if hasattr(value, "full_tensor") else value


def _leave_out_frozen(module: nn.Module) -> None:
    """Keeps frozen weights out of what processes exchange; some are of types that cannot be."""
    names = [name for name, p in module.named_parameters() if not p.requires_grad]
    names += [name for name, _ in module.named_buffers()]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


class _Items(Dataset):
    """A task's samples by their numbers."""

    def __init__(self, task: Task, indices: Sequence[int]) -> None:
        self.task, self.indices = task, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Any:
        return self.task.item(self.indices[place])


def _is_time(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _forget_later_steps(path: Path, done: int) -> None:
    """Removes the lines of steps after the checkpoint, which a run that was killed has left and which are done again."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= done]
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in kept))
    part.replace(path)


def _remove_earlier_run(out: Path, accelerator: Accelerator) -> None:
    """Removes what --resume and readers would take for this run's."""
    if accelerator.is_main_process:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        for name in ("metrics.jsonl", "final.safetensors"):
            (out / name).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
