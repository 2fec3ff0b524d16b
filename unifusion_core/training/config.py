"""The configuration of a training run: one YAML file, checked before anything is loaded.

Every key is documented at its field. `schema` gives the same text to editors as a JSON schema.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..contracts import MAX_TILES
from ..errors import ConfigError

Mode = Literal["lora", "full", "connector", "scratch"]
AdapterType = Literal["lora", "lokr", "dora"]
Target = Literal["dit.attention", "dit.mlp", "text_fusion"]
OptimizerName = Literal["adamw", "adamw8bit", "muon"]
Precision = Literal["fp32", "bf16", "fp16"]

Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class AdapterConfig(_Section):
    """Low-rank adapters on frozen weights (peft)."""

    type: AdapterType = "lora"
    """lora (arXiv 2106.09685), lokr (Kronecker products) or dora (arXiv 2402.09353)"""
    rank: int = Field(16, ge=1)
    """inner width of the adapters"""
    alpha: float = Field(16, gt=0)
    """the adapter's output is multiplied by alpha / rank"""
    targets: list[Target] = Field(list(get_args(Target)), min_length=1)
    """dit.attention and dit.mlp: the DiT's blocks; text_fusion: the blocks of LAP and refiner"""


class ConnectorConfig(_Section):
    """LAP and refiner for the VLM of `vlm`: what stands between a VLM and the DiT."""

    taps: list[int] = []
    """the VLM's layers that are read, ascending; empty = every third one from the last down to 2, as in the paper"""
    layer_blocks: int = Field(2, ge=0)
    """blocks of LAP"""
    refiner_blocks: int = Field(2, ge=0)
    heads: int = Field(0, ge=0)
    """attention heads of both, which must divide the VLM's width; 0 = those of the VLM"""
    mlp_size: int = Field(0, ge=0)
    """inner width of both; 0 = 8/3 of the VLM's width, rounded up to a multiple of 64"""
    token_selection: Literal["rewrite", "prompt"] = "rewrite"
    """the tokens that become the condition. rewrite: image tokens, the rewrite (the prompt where there is none) and what opens
    the answer. prompt: everything behind the system's part"""
    train_dit: bool = False
    """train the DiT as well; it goes on from its weights"""


class SourceConfig(_Section):
    """One source of samples. Exactly one of folder, jsonl, webdataset and dataset is given."""

    folder: Path | None = None
    """images, each with a caption file of the same name (.txt, or .json with "prompt")"""
    jsonl: Path | None = None
    """one JSON object a line: {"prompt", "image"} or {"instruction", "input_images": [...], "output_image"}; paths are relative
    to the file"""
    webdataset: str | None = None
    """tar shards, braces as in "shards-{0000..0099}.tar": KEY.jpg with KEY.txt or KEY.json; edits have KEY.src0.jpg,
    KEY.src1.jpg, ..., KEY.tgt.jpg and KEY.json"""
    dataset: Path | None = None
    """a local folder of Hugging Face datasets: an imagefolder with metadata.jsonl, or parquet files"""
    repeats: int = Field(1, ge=1)
    """how often an epoch of the run has each sample of this source"""
    weight: float | None = Field(None, gt=0)
    """the source's share of all samples, 0..1. Sources without a weight divide the rest by their numbers of samples"""

    @model_validator(mode="after")
    def _one_kind(self) -> SourceConfig:
        kinds = [name for name in SOURCE_KINDS if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give one of {', '.join(SOURCE_KINDS)}, not {len(kinds)}")
        return self

    @property
    def kind(self) -> str:
        """The key that is given."""
        return next(name for name in SOURCE_KINDS if getattr(self, name) is not None)

    @property
    def place(self) -> str:
        """The path that is given."""
        return str(getattr(self, self.kind))


SOURCE_KINDS = ("folder", "jsonl", "webdataset", "dataset")


class RewriteConfig(_Section):
    """Captions rewritten by the VLM (VERIFI). Each is made once, before the training."""

    share: Share | None = None
    """share of the samples that are conditioned on a rewrite; default: 0.8 for models that rewrite by themselves, else 0"""
    cache: bool = True
    """keep the rewrites in the cache folder, for later runs too; false = in the output folder, for this run"""


class DropoutConfig(_Section):
    """Parts of a request that are left out at random, so that the model can be guided by each of them."""

    text: Share = 0.1
    """share of the samples without words"""
    images: Share = 0.1
    """share of the samples without their input images"""


class CacheConfig(_Section):
    """What is computed once and kept on disk, keyed by content and shared by all runs that name the same folder."""

    folder: Path | None = None
    """default: "cache" beside the output folder"""
    latents: bool = True
    """keep the VAE's latents of the target images"""
    states: Literal["bf16", "fp8"] | None = None
    """keep the VLM's states of the conditions in this type, instead of computing them in every step; fp8 rounds each to 3 bits"""
    limit_gb: float = Field(100.0, gt=0)
    """a run whose caches would be larger is refused before they are made"""


class SampleConfig(_Section):
    """One image of the sample sheets."""

    prompt: str
    images: list[Path] = []
    """input images, in the order in which the prompt counts them"""
    rewrite: str | None = None
    """a rewrite to lock; default: as the model wants it"""
    seed: int = Field(1, ge=0)


class TrainConfig(_Section):
    """A training run."""

    version: Literal[1] = 1
    """of this format"""
    model: str | dict[Literal["scratch"], str] = "tiny"
    """tiny, a .safetensors file, or {scratch: PRESET}"""
    vlm: str = "tiny"
    """tiny, or a folder of transformers"""
    vae: str = "tiny"
    """tiny, or a file or folder"""
    output: Path
    """folder of the run"""
    mode: Mode = "lora"
    """lora: adapters on frozen weights. full: all weights. connector: a new LAP and refiner for another VLM, before the model's
    DiT. scratch: all weights, from random ones"""
    lora: AdapterConfig = Field(default_factory=AdapterConfig)  # pyright: ignore[reportArgumentType]
    """the adapters of mode lora"""
    connector: ConnectorConfig | None = None
    """of mode connector; with mode scratch, LAP and refiner for another VLM than the preset's"""
    data: list[SourceConfig] = Field(min_length=1)
    """where the samples come from"""
    resolution: list[int] = Field([128], min_length=1)
    """sides of square targets in pixels; other shapes are put into buckets of the same area"""
    max_tiles: int = Field(MAX_TILES, ge=1)
    """tiles of each input image, thumbnail included"""
    rewrite: RewriteConfig = RewriteConfig()
    dropout: DropoutConfig = DropoutConfig()
    reconstruct: Share = 0.0
    """share of the samples that are replaced by the reconstruction of their target image"""
    validation: Share = 0.0
    """share of each source that is held back, to measure the validation loss at fixed times and noise"""
    steps: int = Field(ge=1)
    """optimiser steps of the whole run, resumed parts included"""
    batch_size: int = Field(1, ge=1)
    """samples per pass and process"""
    noises: int = Field(1, ge=1)
    """points on the path from noise to image that each sample is trained at, on one condition: cheaper than as many samples where
    the VLM, LAP and refiner cost more than the DiT"""
    gradient_accumulation: int = Field(1, ge=1)
    """passes per step; a step has batch_size * gradient_accumulation * processes samples"""
    learning_rate: float = Field(1e-4, gt=0)
    warmup: int = Field(0, ge=0)
    """steps over which the learning rate rises from 0"""
    decay: int = Field(0, ge=0)
    """last steps, over which the learning rate falls to 0"""
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    """largest norm of the gradient of all parameters together"""
    optimizer: OptimizerName = "adamw"
    """adamw8bit needs bitsandbytes and a GPU; muon is refused with sharded weights"""
    precision: Precision = "fp32"
    """of the computation; trained weights stay in fp32"""
    time_shift: float | None = None
    """mean of the logit-normal training times; default: the model's shift for the resolution. Higher = more noise"""
    quantize: Literal["fp8"] | None = None
    """of mode lora: keep the frozen weights of the DiT's, LAP's and the refiner's blocks in 8 bits with a scale for each output,
    which halves their memory"""
    checkpointing: bool = False
    """recompute the activations of all blocks in the backward pass: less memory, a third more time"""
    compile: bool = False
    """compile each block (torch.compile)"""
    shard: bool = False
    """divide weights and optimiser state among the processes (FSDP2)"""
    ema: float = Field(0.999, ge=0, lt=1)
    """decay of the averaged weights, which are exported; 0 = the weights themselves"""
    samples: list[SampleConfig] = []
    """images that are drawn while training, each with its seed"""
    sample_every: int = Field(0, ge=0)
    """steps between sample sheets; 0 = none"""
    save_every: int = Field(200, ge=1)
    """steps between checkpoints"""
    keep: int = Field(3, ge=1)
    """checkpoints that are kept; the one with the lowest validation loss is kept besides"""
    workers: int = Field(0, ge=0)
    """processes that read images; 0 = the training process reads them"""
    seed: int = Field(0, ge=0)
    cache: CacheConfig = Field(default_factory=CacheConfig)  # pyright: ignore[reportArgumentType]

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if isinstance(self.model, dict) != (self.mode == "scratch"):
            raise ValueError("mode scratch and model {scratch: PRESET} go together: give both or neither")
        if self.connector and self.mode not in ("connector", "scratch"):
            raise ValueError(
                f"connector belongs to the modes connector and scratch, and the mode is {self.mode}"
            )
        if any(side < 16 or side % 16 for side in self.resolution):
            raise ValueError(f"resolution is {self.resolution}; give multiples of 16")
        if (total := sum(source.weight or 0 for source in self.data)) > 1 + 1e-9:
            raise ValueError(f"the weights of the sources are {total:g} together; give at most 1")
        if all(source.weight for source in self.data) and total < 1 - 1e-9:
            raise ValueError(f"every source has a weight, and together they are {total:g}; they must be 1")
        if total > 1 - 1e-9 and not all(source.weight for source in self.data):
            raise ValueError(
                "the weights of the sources are 1 together, and one source has none: it would never be used"
            )
        if self.quantize and self.shard:
            raise ValueError("quantize and shard: weights in 8 bits cannot be divided; leave one of them out")
        if self.quantize and (self.mode != "lora" or self.lora.type == "dora"):
            raise ValueError(
                "quantize rounds frozen weights: it goes with mode lora and the types lora and lokr (dora needs exact norms)"
            )
        if self.optimizer == "muon" and self.shard:
            raise ValueError("muon needs whole matrices and shard divides them: use adamw, or shard: false")
        return self


# Reading ------------------------------------------------------------------------------------------


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The configuration in a YAML file, with `changes` ("key=value", "lora.rank=8") put in. Paths in it are relative to the
    folder where the command runs.

    Raises ConfigError with one line for each mistake; unknown keys are answered with the nearest known one.
    """
    try:
        values = yaml.load(path.read_text(), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give a configuration file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has no keys: see training/README.md for an example.")
    for change in changes:
        _put_in(values, change)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path.name}: {_sentence(each)}" for each in error.errors())) from error


def schema() -> str:
    """The JSON schema of the configuration."""
    return json.dumps(TrainConfig.model_json_schema(), indent=1)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key}" stands twice', node.start_mark
                )
        return super().construct_mapping(node, deep)


def _put_in(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {change}: write KEY=VALUE, for example --set steps=100")
    *folders, key = name.split(".")
    inner: Any = values
    for folder in folders:
        inner = inner.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise ConfigError(f'--set {change}: "{folder}" has no keys')
    inner[key] = yaml.safe_load(text)


def _sentence(error: Any) -> str:
    """One mistake in one line."""
    *where, last = error["loc"] or ("",)
    key = ".".join(str(each) for each in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys([each for each in where if isinstance(each, str)])
        near = difflib.get_close_matches(str(last), known, 1, 0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(known)}"
        return f'there is no key "{key}"; {hint}'
    if error["type"] == "missing":
        return f'the key "{key}" is missing'
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} is {error['input']!r}: {message}" if key else message


def _known_keys(where: Sequence[str]) -> list[str]:
    """The keys of the section at a path."""
    sections: dict[str, type[BaseModel]] = {
        "lora": AdapterConfig,
        "connector": ConnectorConfig,
        "data": SourceConfig,
        "rewrite": RewriteConfig,
        "dropout": DropoutConfig,
        "cache": CacheConfig,
        "samples": SampleConfig,
    }
    return list((sections.get(where[0], TrainConfig) if where else TrainConfig).model_fields)
