"""`unifusion train`: LAP, refiner and DiT on a user's images.

A process sorts its samples of a step by the shape of their latents into passes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from .. import __version__, zoo
from ..checkpoints.generator_file import GeneratorFile, save_generator
from ..checkpoints.vae_file import check_decodes, load_vae
from ..errors import ConfigError
from ..images import read_image_file
from ..models.layers import LayerFactory
from ..models.unifusion import UniFusion
from ..pipeline import Pipeline
from ..vlm.folder import load_vlm
from ..zoo.spec import GeneratorSpec
from . import loop
from .adapters import add_adapters, save_adapters, unchanged_adapters
from .config import TrainConfig
from .connector import build_connected, connected_config, train_connector
from .data import TrainingData, TrainingSample, write_report
from .float8 import quantize_frozen
from .loop import DTYPES, VALIDATION, Loop, LoopConfig, Loss, Task, muon_precision, whole
from .objective import FlowBatch, FlowMatching
from .optimizer import MuonAdamW, parameter_groups
from .sheet import write_image, write_sheet

logger = logging.getLogger(__name__)

# names of parameters that Muon leaves to AdamW: first and last layers, embeddings and vectors
NOT_MUON = ("first.", "last.linear", "projector", "tmlp.0", "modulation")


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    prepare: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Runs a configuration to its end. `prepare`: only fill the caches. `say` prints lines for the user.

    Raises ConfigError or CheckpointError for what cannot be trained, otherwise as `loop.train`.
    """
    loop.train(
        lambda accelerator: FlowTraining(config, accelerator, say),
        loop_config(config),
        config.output,
        name="train",
        resume=resume,
        overwrite=overwrite,
        only_prepare=prepare,
    )


def loop_config(config: TrainConfig) -> LoopConfig:
    """What the loop needs of a configuration."""
    return LoopConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        accumulate=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        decay=config.decay,
        clip=config.clip,
        ema=config.ema,
        precision=config.precision,
        shard=config.shard,
        seed=config.seed,
        save_every=config.save_every,
        evaluate_every=config.save_every if config.validation else 0,
        draw_every=config.sample_every,
        keep=config.keep,
        workers=config.workers,
    )


class FlowTraining(Task[UniFusion]):
    """A generator on the samples of a configuration.

    pipeline   with the model that is trained
    """

    unused = False

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, say: Callable[[str], None] = print
    ) -> None:
        self.config, self.accelerator, self.say = config, accelerator, say
        check_samples(config)
        self.settings = json.loads(config.model_dump_json(exclude={"output", "cache", "samples"}))
        self.pipeline = build_pipeline(config, accelerator.device)
        self.model = self.pipeline.model
        choose_trained(self.model, config)
        self.data = TrainingData(config, self.pipeline)

    def prepare(self, process: tuple[int, int]) -> None:
        """Prints the scan and the sizes of the caches, then fills them."""
        lines = [*self.data.report.lines(), *self.data.describe_caches()]
        if self.accelerator.is_main_process:
            self.say("\n".join(lines))
            write_report(self.config.output / "scan.json", self.data.report)
        self.data.fill_caches(process)
        if self.data.states:
            # the room is the generator's from here on
            self.pipeline.backbone.to("cpu")

    def objective(self) -> nn.Module:
        """The loss of each point on the path; blocks are compiled if asked for."""
        objective = FlowMatching(self.model, checkpointing=self.config.checkpointing)
        if self.config.compile:
            for block in self.model.blocks:
                block.compile()
        return objective

    def optimizer(self, config: LoopConfig) -> torch.optim.Optimizer:
        """The configuration's. Raises ConfigError if bitsandbytes is needed and absent."""
        return build_optimizer(self.config, self.model)

    def shard(self, objective: nn.Module) -> None:
        shard(self.model, objective)

    def identity(self) -> dict[str, Any]:
        values = json.loads(self.config.model_dump_json())
        kept = ("mode", "lora", "model", "data", "resolution", "optimizer", "reconstruct", "noises")
        spec = self.model.config
        return {key: values[key] for key in kept} | {
            "vlm": self.pipeline.backbone.fingerprint,
            "LAP and refiner": asdict(spec.lap),
            "taps and tokens": [*spec.vlm.taps, spec.vlm.token_selection],
            "vae": self.data.latents.folder.name,
            "samples found": [len(each) for each in self.data.entries],
        }

    # Samples -------------------------------------------------------------------------------------

    def item(self, index: int) -> TrainingSample:
        return self.data.sample(index)

    def name_of(self, index: int) -> str:
        return self.data.entry(index).name

    def collate(self, items: list[TrainingSample]) -> list[TrainingSample]:
        return items

    def passes(self, collated: list[TrainingSample]) -> list[tuple[list[TrainingSample], float]]:
        """Samples of one latent shape."""
        groups = passes_of(collated, self.config.batch_size)
        return [(each, len(each) / len(collated)) for each in groups]

    def loss(self, model: UniFusion, batch: FlowBatch, number: int) -> Loss:
        raise NotImplementedError("the objective computes it")

    def batch(self, part: Sequence[TrainingSample]) -> FlowBatch:
        """The condition is made by the pipeline, as when a user draws."""
        samples, features = part, self.data.features([each.request for each in part])
        latents = torch.stack([self._latents(each) for each in samples])
        shape = (self.config.noises, *latents.shape[1:])
        noise = torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(each.noise_seed)) for each in samples]
        )
        t = torch.stack([each.t for each in samples])
        weights = None
        if any(each.weights is not None for each in samples):
            whole_image = torch.ones(1, *latents.shape[2:])
            weights = torch.stack(
                [whole_image if w is None else w for w in (each.weights for each in samples)]
            )
        return FlowBatch(features=features, latents=latents, noise=noise, t=t, weights=weights)

    def _latents(self, sample: TrainingSample) -> Tensor:
        if sample.latents is not None:
            return sample.latents.float()
        assert sample.pixels is not None
        return self.data.encode(sample.pixels[None])[0].cpu()

    # Between steps -------------------------------------------------------------------------------

    def evaluate(self, loop: Loop, step: int) -> dict[str, float]:
        """The loss of the held-back samples; each process computes its share."""
        if not self.data.held_back:
            return {}
        # sharded weights are gathered in every pass, so all processes need the same number of passes
        share = (0, 1) if self.config.shard else (loop.process, loop.processes)
        total = torch.zeros(2)
        for group in self.data.validation_batches(share):
            mean, _ = loop.compute(group, step)
            total += torch.tensor([float(mean) * len(group), len(group)])
        total = loop.sum_of_all(total)
        return {VALIDATION: float(total[0] / total[1])}

    def draw(self, loop: Loop, step: int) -> None:
        """The sample sheet, drawn by the product's own pipeline; each process draws its share."""
        samples, folder = self.config.samples, loop.out / "samples"
        if not samples:
            return
        waiting = next(self.pipeline.backbone.parameters()).device
        self.pipeline.backbone.to(self.accelerator.device)
        numbers = range(loop.process, len(samples), loop.processes)
        if self.config.shard:
            # sharded blocks are gathered as they are called, so all processes draw every sample together
            numbers = range(len(samples))
            loop.objective.unshard()
        for number in numbers:
            sample = samples[number]
            # frozen and trained weights may be of two types
            with loop.autocast():
                image = self.pipeline(
                    sample.prompt,
                    images=[read_image_file(path) for path in sample.images],
                    rewrite=sample.rewrite,
                    seed=sample.seed,
                )
            if loop.chief or not self.config.shard:
                write_image(folder, step, number, image)
        if self.config.shard:
            loop.objective.reshard()
        self.pipeline.backbone.to(waiting)
        loop.accelerator.wait_for_everyone()
        if loop.chief:
            write_sheet(folder, step, samples)

    def export(self, loop: Loop, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        """The finished file. Warns of adapters without effect."""
        everything: dict[str, Tensor] | None = None
        if self.config.shard:
            # of sharded weights every process has a part, frozen ones included
            frozen = {
                name: whole(value).cpu()
                for name, value in self.model.state_dict().items()
                if name not in loop.trainable
            }
            everything = {**frozen, **weights}
        if not loop.chief:
            return
        path = loop.out / "final.safetensors"
        record = {
            "mode": self.config.mode,
            "steps": self.config.steps,
            "version": __version__,
            "config": self.settings,
            "phases": len(record["phases"]),
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
            if self.config.mode in ("connector", "scratch"):
                # prompts are rewritten by default only where the model has learned to read rewrites
                record["rewritten"] = self.data.rewrite_share
            dtype = torch.float32 if self.config.precision == "fp32" else torch.bfloat16
            save_generator(self.model, path, record, dtype=dtype, spec=self.pipeline.spec, weights=everything)
        self.say(str(path))


# Parts --------------------------------------------------------------------------------------------


def build_pipeline(config: TrainConfig, device: torch.device | str) -> Pipeline:
    """The pipeline whose generator is trained. `device` "meta": generator and VLM have no weights, which suffices to scan data.

    Raises ConfigError for an unknown preset, otherwise as `Pipeline.load`.
    """
    file = GeneratorFile(config.model) if isinstance(config.model, str) else None
    spec = file.spec if file else _preset(config.model)
    own, before = (file.config, file.training) if file else (spec.config, None)
    vae = load_vae(config.vae, "cpu" if str(device) == "meta" else device)
    check_decodes(vae, own)
    connects = config.mode == "connector" or config.connector is not None
    # frozen weights in the type of the computation; trained ones keep 32 bits, so that small steps are not rounded away
    frozen = DTYPES[config.precision]
    backbone = load_vlm(zoo.path_of(config.vlm, "vlm"), frozen, device, spec=None if connects else own.vlm)
    if connects:
        own = connected_config(config, backbone, own)
    if config.rewrite.share is not None and config.mode in ("connector", "scratch"):
        # samples are drawn as the finished model will draw
        spec = replace(spec, rewrites=config.rewrite.share > 0)
    dtype = frozen if config.mode in ("lora", "connector") else torch.float32
    if str(device) == "meta":
        model = UniFusion(own, LayerFactory(device="meta", dtype=dtype))
    elif file and not connects:
        # weights to be rounded wait in main memory until they are
        model = file.load(dtype=dtype, device="cpu" if config.quantize else device)
    else:
        model = build_connected(own, config.seed, file and file.load(dtype=dtype)).to(device)
    return Pipeline(model, backbone, vae, spec=spec, training=before)


def check_samples(config: TrainConfig) -> None:
    """Raises ConfigError for an image of the sample sheets that is not there."""
    for number, sample in enumerate(config.samples):
        for path in sample.images:
            if not path.is_file():
                raise ConfigError(f"samples.{number}: there is no image {path}")


def choose_trained(model: UniFusion, config: TrainConfig) -> None:
    """Adds adapters, or makes the parameters of the mode trainable."""
    if config.mode == "lora":
        add_adapters(model, config.lora, config.seed)
        if config.quantize:
            quantize_frozen(model)
    elif config.mode == "connector":
        train_connector(model, dit=bool(config.connector and config.connector.train_dit))
    else:
        model.requires_grad_(True)


def _preset(model: Any) -> GeneratorSpec:
    """The generator that {scratch: PRESET} names. Raises ConfigError if there is none."""
    name = model["scratch"]
    spec = next((each for each in zoo.specs() if each.name == name), None)
    if spec is None:
        names = ", ".join(each.name for each in zoo.specs())
        raise ConfigError(f'there is no preset "{name}" to train from scratch; choose one of {names}')
    return spec


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
        return MuonAdamW(groups, precision=muon_precision(config.precision))
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


def passes_of(samples: Sequence[TrainingSample], size: int) -> list[list[TrainingSample]]:
    """The samples in passes of one latent shape and at most `size` samples, in their order."""
    by_size: dict[tuple[int, int], list[TrainingSample]] = {}
    for each in samples:
        by_size.setdefault(each.size, []).append(each)
    return [group[i : i + size] for group in by_size.values() for i in range(0, len(group), size)]
