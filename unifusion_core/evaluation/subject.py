"""What every suite of measurements gets (`Subject`, `Sampling`) and gives (`Row`)."""

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
    """One line of a table: what was measured, rates with their intervals, other values by name (unit in the name)."""

    name: str
    rates: dict[str, Rate] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


class Subject:
    """What is evaluated. Parts are loaded when a suite asks for them: a VLM can be judged before a generator exists."""

    def __init__(
        self,
        *,
        model: str | Path = "tiny",
        vlm: str | Path = "tiny",
        vae: str | Path = "tiny",
        device: torch.device | str | None = None,
    ) -> None:
        self.model, self.vlm, self.vae, self.device = model, vlm, vae, device or default_device()

    @cached_property
    def backbone(self) -> VLMBackbone:
        return load_vlm(zoo.path_of(self.vlm, "vlm"), device=self.device)

    @cached_property
    def autoencoder(self) -> AnyAutoencoder:
        return load_vae(self.vae, device=self.device)

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.load(self.model, self.vlm, self.vae, device=self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How much is measured, on which draw, and where a suite may leave pictures beside the report."""

    samples: int
    seed: int = 0
    pictures: Path | None = None  # a folder

    def rng(self, name: str) -> random.Random:
        """The random numbers of one row: the same in every run, whatever other rows do; never those of a training."""
        return random.Random(f"evaluation-{self.seed}-{name}")


Suite = Callable[[Subject, Sampling], Iterator[Row]]


T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
