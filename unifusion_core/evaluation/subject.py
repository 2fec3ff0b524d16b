"""Inputs of a suite (`Subject`, `Sampling`) and its output (`Row`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from .. import zoo
from ..checkpoints.vae_file import AnyAutoencoder, load_vae
from ..pipeline import Pipeline, default_device
from ..vlm.backbone import VLMBackbone
from ..vlm.folder import load_vlm
from .rates import Rate


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: name of the measurement, rates, and other values by name (with the unit in the name)."""

    name: str
    rates: dict[str, Rate] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


class Subject:
    """The model under evaluation. Each part is loaded on first use, so that a VLM can be evaluated without a generator."""

    def __init__(
        self,
        *,
        model: str | Path = "tiny",
        vlm: str | Path = "tiny",
        vae: str | Path = "tiny",
        device: torch.device | str | None = None,
        lora: Sequence[Path] = (),
    ) -> None:
        self.lora = lora
        self.model, self.vlm, self.vae, self.device = model, vlm, vae, device or default_device()

    @cached_property
    def backbone(self) -> VLMBackbone:
        return load_vlm(zoo.path_of(self.vlm, "vlm"), device=self.device)

    @cached_property
    def autoencoder(self) -> AnyAutoencoder:
        return load_vae(self.vae, device=self.device)

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.load(self.model, self.vlm, self.vae, device=self.device, lora=self.lora)

    def release(self) -> None:
        """Frees the memory of all parts; each is loaded again when it is used."""
        for part in ("backbone", "autoencoder", "pipeline"):
            self.__dict__.pop(part, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Size and random seed of a measurement.

    samples    per measurement
    seed       of the random numbers of all rows
    pictures   folder for sheets of images; None = none are written
    """

    samples: int
    seed: int = 0
    pictures: Path | None = None

    def rng(self, name: str) -> random.Random:
        """Random generator of one row. It is the same in every run, independent of other rows, and never used in training."""
        return random.Random(f"evaluation-{self.seed}-{name}")


Suite = Callable[[Subject, Sampling], Iterator[Row]]


T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
