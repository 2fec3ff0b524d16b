"""`unifusion train`: a run from its configuration to the finished file.

It runs in one process or in several (`torchrun`, `accelerate launch`). A step has batch_size * gradient_accumulation * processes
samples. A process sorts its samples of a step by the shape of their latents into passes, and the loss of every sample counts the
same, so that any number of processes computes the same gradient.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .. import __version__, zoo
from ..checkpoints.generator_file import save_generator
from ..checkpoints.vae_file import load_vae
from ..errors import CheckpointError, ConfigError, TrainingError
from ..files import check_folder
from ..images import read_image_file
from ..models.unifusion import UniFusion, initialize
from ..pipeline import Pipeline
from ..vlm.folder import load_vlm
from .adapters import add_adapters, save_adapters, unchanged_adapters
from .checkpoint import checkpoints, load_checkpoint, remove_old, save_checkpoint
from .config import TrainConfig
from .data import TrainingData, TrainingSample, write_report
from .objective import FlowBatch, FlowMatching
from .optimizer import MuonAdamW, parameter_groups
from .sheet import write_image, write_sheet

logger = logging.getLogger(__name__)

# names of parameters that Muon leaves to AdamW: first and last layers, embeddings and vectors
NOT_MUON = ("first.", "last.linear", "projector", "tmlp.0", "modulation")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# edges of the buckets in which the loss is logged by time
TIME_EDGES = (0.25, 0.5, 0.75)


class InterruptedRunError(Exception):
    """The run was asked to stop, and has saved a checkpoint."""


@dataclass
class _Passes:
    """The samples of a process for one step, in passes of one latent shape."""

    passes: list[list[TrainingSample]]
    names: list[str]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    prepare: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Runs a configuration to its end. `prepare`: only fill the caches. `say` prints lines for the user.

    Raises ConfigError or CheckpointError for what cannot be trained, TrainingError for a loss that is not finite or a full disk,
    and InterruptedRunError after Ctrl-C or SIGTERM.
    """
    _check_output(config, resume=resume, overwrite=overwrite)
    if config.precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError("precision fp16 needs a GPU, and there is none here: use fp32 or bf16")
    # without `cpu=True`, Accelerator does not join processes on CPUs
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if overwrite:
        _remove_earlier_run(config, accelerator)
    try:
        run = Run(config, accelerator, say)
        run.prepare_data()
        if not prepare:
            run.train(resume=resume)
    finally:
        # a process that ends while its group still has threads is aborted
        accelerator.end_training()


class Run:
    """The parts of a run."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, say: Callable[[str], None] = print
    ) -> None:
        self.config, self.accelerator, self.say = config, accelerator, say
        self.chief = accelerator.is_main_process
        self.pipeline = build_pipeline(config, accelerator.device)
        self.model = self.pipeline.model
        if config.mode == "lora":
            add_adapters(self.model, config.lora, config.seed)
        else:
            self.model.requires_grad_(True)
        self.data = TrainingData(config, self.pipeline)
        self.folder = config.output / "checkpoints"
        self.best: tuple[float, int] | None = None
        self._stop: int | None = None

    @property
    def samples_per_process(self) -> int:
        """Samples of a step and process."""
        return self.config.batch_size * self.config.gradient_accumulation

    def prepare_data(self) -> None:
        """Prints the scan and the sizes of the caches, then fills them."""
        lines = [*self.data.report.lines(), *self.data.describe_caches()]
        if self.chief:
            self.say("\n".join(lines))
            write_report(self.config.output / "scan.json", self.data.report)
        self.data.fill_caches((self.accelerator.process_index, self.accelerator.num_processes))
        self.accelerator.wait_for_everyone()

    def train(self, *, resume: bool) -> None:
        """The training loop."""
        config = self.config
        done = self._begin(resume=resume)
        bar = tqdm(total=config.steps, initial=done, desc="train", mininterval=5, disable=not self.chief)
        batches = self._steps(done)
        for step in range(done, config.steps):
            started = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - started
            values = self._step(step, batch)
            seconds = time.monotonic() - started
            values["samples_per_second"] = self.samples_per_process * self.accelerator.num_processes / seconds
            values["waiting_for_data"] = waited / seconds
            self._log(step + 1, values)
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            bar.update()
            if self._after(step + 1):
                bar.close()
                raise InterruptedRunError(f"stopped after step {step + 1}: go on with --resume")
        bar.close()
        self._export()

    def _begin(self, *, resume: bool) -> int:
        """Everything before the first step. Returns the number of steps done."""
        config = self.config
        self.objective: Any = FlowMatching(self.model, checkpointing=config.checkpointing).train()
        self.pipeline.backbone.eval()
        if config.compile:
            for block in self.model.blocks:
                block.compile()
        if config.shard:
            shard(self.model, self.objective)
        self.trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(config, self.model)
        # of fp16, whose small gradients would vanish without a factor
        self.scaler = torch.GradScaler(self.accelerator.device.type, enabled=config.precision == "fp16")
        self.average = {name: p.detach().clone() for name, p in self.trainable.items()} if config.ema else {}
        done = self._load() if resume else 0
        if self.accelerator.num_processes > 1 and not config.shard:
            self.objective = self.accelerator.prepare_model(self.objective)
        if self.chief:
            self.writer = SummaryWriter(str(config.output / "log"))
        if config.samples and not done:
            self._draw(0)
        self._catch_signals()
        return done

    def _step(self, step: int, batch: _Passes) -> dict[str, float]:
        """One step of the optimiser. Returns what is logged."""
        factor = learning_rate_factor(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        loss, parts = self._accumulate(batch)
        self.scaler.unscale_(self.optimizer)
        norm = float(_whole(nn.utils.clip_grad_norm_(list(self.trainable.values()), self.config.clip)))
        # a factor that is too large for one step is lowered by the scaler, which leaves the step out
        if not math.isfinite(loss) or not (self.scaler.is_enabled() or math.isfinite(norm)):
            self._stop_at_nan(step, batch, loss, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        update_average(self.average, self.trainable, min(self.config.ema, (step + 1) / (step + 10)))
        rate = self.optimizer.param_groups[0]["lr"]
        return {"loss": loss, "learning_rate": rate, "gradient_norm": norm, **parts}

    def _after(self, step: int) -> bool:
        """Validation, checkpoint and samples, if it is time for them. Returns whether the run was asked to stop."""
        config, finished, stop = self.config, step == self.config.steps, self._asked_to_stop()
        if step % config.save_every == 0 or finished or stop:
            self._validate(step)
            self._save(step)
        if config.samples and (finished or (config.sample_every and step % config.sample_every == 0)):
            self._draw(step)
        return stop and not finished

    def _log(self, step: int, values: dict[str, float]) -> None:
        """A line in metrics.jsonl, and TensorBoard's log."""
        if not self.chief:
            return
        with (self.config.output / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    # One step ------------------------------------------------------------------------------------

    def _steps(self, done: int) -> Iterator[_Passes]:
        """The samples of each step of this process, from step `done` on."""
        own, count = self.samples_per_process, self.accelerator.num_processes
        first = self.accelerator.process_index * own
        positions = [
            step * own * count + first + i for step in range(done, self.config.steps) for i in range(own)
        ]
        loader = DataLoader(
            _Positions(self.data, positions),
            batch_size=own,
            collate_fn=list,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
        )
        for samples in loader:
            yield _Passes(
                passes=passes_of(samples, self.config.batch_size), names=[each.name for each in samples]
            )

    def _accumulate(self, batch: _Passes) -> tuple[float, dict[str, float]]:
        """Adds up the gradients of a step. Returns the mean loss of all samples of all processes, and its parts by time."""
        processes = self.accelerator.num_processes
        passes = [*batch.passes]
        number = int(self._sum_or_max(torch.tensor(float(len(passes))), largest=True))
        # a process with fewer passes repeats one without weight, since gradients are exchanged in every last pass
        weights = [1.0] * len(passes) + [0.0] * (number - len(passes))
        passes += passes[:1] * (number - len(passes))
        total = self.samples_per_process * processes
        losses, times = [], []
        for index, (samples, weight) in enumerate(zip(passes, weights, strict=True)):
            last = index == number - 1
            with nullcontext() if last else self._without_exchange():
                flow = self.flow_batch(samples)
                each = self._loss(flow)
                # gradients are averaged over the processes
                self.scaler.scale(weight * each.sum() * processes / total).backward()
            if weight:
                losses.append(each.detach().float())
                times.append(flow.t)
        loss = torch.cat(losses)
        mean = float(self._sum_or_max(loss.sum())) / total
        return mean, loss_by_time(loss, torch.cat(times))

    def flow_batch(self, samples: Sequence[TrainingSample]) -> FlowBatch:
        """What the objective gets: the condition is made by the pipeline, as when a user draws."""
        device = self.accelerator.device
        features = self.pipeline.encode([each.request for each in samples], self.config.max_tiles)
        latents = torch.stack([self._latents(each) for each in samples]).to(device)
        noise = torch.stack(
            [
                torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(each.noise_seed))
                for each in samples
            ]
        )
        t = torch.tensor([each.t for each in samples])
        return FlowBatch(features=features, latents=latents, noise=noise, t=t).to(device)

    def _latents(self, sample: TrainingSample) -> Tensor:
        if sample.latents is not None:
            return sample.latents.float()
        assert sample.pixels is not None
        return self.data.encode(sample.pixels[None])[0]

    def _loss(self, flow: FlowBatch) -> Tensor:
        """The loss of each sample, computed in the configuration's type."""
        with self._autocast():
            return self.objective(flow)

    def _autocast(self) -> torch.autocast:
        """A context that computes in the configuration's type."""
        dtype = DTYPES[self.config.precision]
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)

    def _without_exchange(self) -> Any:
        """A context in which gradients are added up without being exchanged."""
        if self.config.shard:
            return _without_shard_exchange(self.objective)
        return self.accelerator.no_sync(self.objective)

    def _sum_or_max(self, value: Tensor, *, largest: bool = False) -> Tensor:
        if self.accelerator.num_processes > 1:
            value = value.to(self.accelerator.device)
            dist.all_reduce(value, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
        return value

    def _stop_at_nan(self, step: int, batch: _Passes, loss: float, norm: float) -> None:
        """Writes the names of the step's samples. Raises TrainingError."""
        path = self.config.output / f"not-finite-{self.accelerator.process_index}.json"
        path.write_text(json.dumps({"step": step, "samples": batch.names}, indent=1, ensure_ascii=False))
        raise TrainingError(
            f"step {step + 1}: the loss is {loss} and the gradient {norm}; {path} names the samples. Lower the learning rate, or "
            "remove the samples, and go on with --resume"
        )

    # Between steps -------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """The loss of the held-back samples; each process computes its share."""
        samples = self.data.validation_samples()
        if not samples:
            return
        mine = samples[self.accelerator.process_index :: self.accelerator.num_processes] or samples[:1]
        if self.config.shard:
            # sharded weights are gathered in every pass, so all processes need the same number of passes
            mine = samples
        losses = [self._loss(self.flow_batch(each)).sum() for each in passes_of(mine, self.config.batch_size)]
        total = self._sum_or_max(
            torch.stack([torch.stack(losses).sum().cpu(), torch.tensor(float(len(mine)))])
        )
        value = float(total[0] / total[1])
        if self.best is None or value < self.best[0]:
            self.best = (value, step)
        self._log(step, {"validation_loss": value})

    def _save(self, step: int) -> None:
        tensors = run_tensors(self.trainable, self.average, self.optimizer)
        state = {"config": self._identity(), "best": self.best, "version": __version__}
        save_checkpoint(self.folder, step, tensors, state)
        if self.chief:
            remove_old(self.folder, self.config.keep, self.best[1] if self.best else None)

    def _load(self) -> int:
        """Loads the last checkpoint. Returns its step."""
        start_optimizer(self.optimizer)
        found = checkpoints(self.folder)
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.folder}: start without --resume")

        def check(state: dict[str, Any]) -> None:
            own = self._identity()
            changed = [key for key, value in own.items() if state["config"].get(key) != value]
            if changed:
                raise CheckpointError(
                    f"{found[-1]} was made with another {', '.join(changed)}: give what it was, or another output"
                )
            if int(state["step"]) > self.config.steps:
                raise ConfigError(
                    f"{found[-1]} has more steps than steps = {self.config.steps}: --set steps={state['step']} or more"
                )
            self.best = tuple(state["best"]) if state["best"] else None

        return load_checkpoint(found[-1], run_tensors(self.trainable, self.average, self.optimizer), check)

    def _identity(self) -> dict[str, Any]:
        """What must be equal to go on: another value would be another run."""
        values = json.loads(self.config.model_dump_json())
        kept = (
            "mode",
            "lora",
            "model",
            "data",
            "resolution",
            "seed",
            "optimizer",
            "batch_size",
            "reconstruct",
        )
        identity = {key: values[key] for key in kept} | {"ema": bool(self.config.ema)}
        samples = self.samples_per_process * self.accelerator.num_processes
        # the same samples per step may be divided otherwise
        identity.pop("batch_size")
        return identity | {
            "samples per step": samples,
            "vlm": self.pipeline.backbone.fingerprint,
            "vae": self.data.latents.folder.name,
            "samples found": [len(each) for each in self.data.entries],
        }

    def _draw(self, step: int) -> None:
        """The sample sheet, drawn by the product's own pipeline with the averaged weights; each process draws its share."""
        folder, count = self.config.output / "samples", self.accelerator.num_processes
        with averaged(self.trainable, self.average):
            for number in range(self.accelerator.process_index, len(self.config.samples), count):
                sample = self.config.samples[number]
                image = self.pipeline(
                    sample.prompt,
                    images=[read_image_file(path) for path in sample.images],
                    rewrite=sample.rewrite,
                    seed=sample.seed,
                )
                write_image(folder, step, number, image)
        self.accelerator.wait_for_everyone()
        if self.chief:
            write_sheet(folder, step, self.config.samples)

    def _export(self) -> None:
        """The finished file. Warns of adapters without effect."""
        with averaged(self.trainable, self.average):
            weights = {name: _whole(p.detach()) for name, p in self.trainable.items()}
            whole = {k: _whole(v) for k, v in self.model.state_dict().items()} if self.config.shard else None
            if not self.chief:
                return
            path = self.config.output / "final.safetensors"
            record = {
                "mode": self.config.mode,
                "steps": self.config.steps,
                "version": __version__,
                "config": json.loads(self.config.model_dump_json(exclude={"output", "cache", "samples"})),
                "before": self.pipeline.training,
            }
            if self.config.mode == "lora":
                save_adapters(path, self.model, self.config.lora, weights, record)
                if count := unchanged_adapters(self.model):
                    logger.warning(
                        "%s adapters have no effect: nothing was learned there. Train longer or raise the learning rate.",
                        count,
                    )
            else:
                save_generator(
                    self.model, path, record, dtype=torch.float32, spec=self.pipeline.spec, weights=whole
                )
            self.say(str(path))

    # Stopping ------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """Ctrl-C and SIGTERM end the run after the present step; a second Ctrl-C ends it at once."""

        def note(number: int, _: object) -> None:
            self._stop = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, note)

    def _asked_to_stop(self) -> bool:
        """Whether any process was asked to stop, so that all save together."""
        return bool(self._sum_or_max(torch.tensor(float(self._stop is not None)), largest=True))


# Parts --------------------------------------------------------------------------------------------


def build_pipeline(config: TrainConfig, device: torch.device) -> Pipeline:
    """The pipeline whose generator is trained. Raises ConfigError for an unknown preset, otherwise as `Pipeline.load`."""
    if isinstance(config.model, str):
        # frozen weights in the type of the computation; trained ones keep 32 bits, so that small steps are not rounded away
        dtype = DTYPES[config.precision] if config.mode == "lora" else torch.float32
        return Pipeline.load(config.model, config.vlm, config.vae, device=device, dtype=dtype)
    name = config.model["scratch"]
    spec = next((each for each in zoo.specs() if each.name == name), None)
    if spec is None:
        names = ", ".join(each.name for each in zoo.specs())
        raise ConfigError(f'there is no preset "{name}" to train from scratch; choose one of {names}')
    backbone = load_vlm(zoo.path_of(config.vlm, "vlm"), torch.float32, device, spec=spec.config.vlm)
    model = UniFusion(spec.config)
    initialize(model, torch.Generator().manual_seed(config.seed))
    return Pipeline(model.to(device), backbone, load_vae(config.vae, device), spec=spec)


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the trainable parameters. Raises ConfigError if bitsandbytes is needed and absent."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "muon":
        groups = parameter_groups(
            model,
            learning_rate=config.learning_rate / 10,
            muon_learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            not_muon=NOT_MUON,
        )
        return MuonAdamW(groups)
    if config.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415  (optional)
        except ImportError as error:
            raise ConfigError(
                "optimizer adamw8bit needs bitsandbytes, which is not installed: pip install bitsandbytes, or use adamw"
            ) from error
        kind: Any = AdamW8bit
    else:
        kind = torch.optim.AdamW
    optimizer = cast(
        torch.optim.Optimizer,
        kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay),
    )
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def shard(model: UniFusion, objective: nn.Module) -> None:
    """Divides the weights among the processes by block (FSDP2). Raises ConfigError in a single process."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # noqa: PLC0415

    if not dist.is_initialized():
        raise ConfigError(
            "shard: true divides weights among processes, and there is one: start several by torchrun or accelerate launch"
        )
    device = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
    mesh = dist.device_mesh.init_device_mesh(str(device), (dist.get_world_size(),))
    for block in model.dit_blocks:
        fully_shard(block, mesh=mesh)
        # called by `prepare` and, in the joint form, by `forward`
        for method in ("with_keys_values", "keys_values"):
            register_fsdp_forward_method(block, method)
    for block in (*model.txtfusion.layerwise_blocks, *model.txtfusion.refiner_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)


class _without_shard_exchange:  # noqa: N801  (a context manager, used like a function)
    """Inside, sharded gradients are added up without being exchanged."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def __enter__(self) -> None:
        self.objective.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self.objective.set_requires_gradient_sync(True)


class averaged:  # noqa: N801  (a context manager, used like a function)
    """Inside, the averaged weights are in the model's place."""

    def __init__(self, trainable: dict[str, nn.Parameter], average: dict[str, Tensor]) -> None:
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
def update_average(average: dict[str, Tensor], trainable: dict[str, nn.Parameter], decay: float) -> None:
    """Moves the averaged weights towards the present ones."""
    for name, value in average.items():
        value.lerp_(trainable[name].detach(), 1 - decay)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """The factor on the learning rate, 0..1: linear warm-up, constant, linear decay to 0 at the end."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    left = config.steps - step
    return warm * (min(1.0, left / config.decay) if config.decay else 1.0)


def passes_of(samples: Sequence[TrainingSample], size: int) -> list[list[TrainingSample]]:
    """The samples in passes of one latent shape and at most `size` samples, in their order."""
    by_size: dict[tuple[int, int], list[TrainingSample]] = {}
    for each in samples:
        by_size.setdefault(each.size, []).append(each)
    return [group[i : i + size] for group in by_size.values() for i in range(0, len(group), size)]


def loss_by_time(losses: Tensor, times: Tensor) -> dict[str, float]:
    """Mean loss of the samples in each quarter of time."""
    buckets = torch.bucketize(times.cpu(), torch.tensor(TIME_EDGES))
    names = ("0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")
    return {
        f"loss_t_{name}": float(losses.cpu()[buckets == i].mean())
        for i, name in enumerate(names)
        if bool((buckets == i).any())
    }


def start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Makes the state that a checkpoint is loaded into: a step with gradients and learning rates of 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group["lr"], group["weight_decay"] = rate, decay


def run_tensors(
    trainable: dict[str, nn.Parameter], average: dict[str, Tensor], optimizer: torch.optim.Optimizer
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


class _Positions(Dataset):
    """Samples by their place in a list of positions."""

    def __init__(self, data: TrainingData, positions: Sequence[int]) -> None:
        self.data, self.positions = data, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> TrainingSample:
        return self.data.sample(self.positions[index])


def _check_output(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Raises CheckpointError if the output has a run and neither --resume nor --overwrite says what to do with it, and
    ConfigError if nothing can be written there."""
    final = config.output / "final.safetensors"
    present = final.exists() or checkpoints(config.output / "checkpoints")
    if present and not (resume or overwrite):
        raise CheckpointError(
            f"{config.output} has an earlier run: go on with --resume, replace it with --overwrite, or choose another output"
        )
    check_folder(config.output)


def _remove_earlier_run(config: TrainConfig, accelerator: Accelerator) -> None:
    """Removes what --resume and readers would take for this run's."""
    if accelerator.is_main_process:
        shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
        for name in ("metrics.jsonl", "final.safetensors"):
            (config.output / name).unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def _whole(value: Tensor) -> Tensor:
    """A tensor of all processes' parts."""
    return cast(Any, value).full_tensor() if hasattr(value, "full_tensor") else value
