"""`unifusion train`: run a recipe, or tell what it would take."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .inspect import millions

if TYPE_CHECKING:  # for annotations alone
    from ..training.loop import LoopConfig, Task


def train_recipe(arguments: argparse.Namespace) -> None:
    """Run a recipe. Raises ConfigError for one that does not exist, or for a missing package."""
    try:
        from ..training.loop import train
        from ..training.recipes import RECIPES
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'training needs {error.name}, which is not installed: pip install "unifusion[train]"'
        ) from error
    if arguments.recipe not in RECIPES:
        raise ConfigError(f'there is no recipe "{arguments.recipe}"; choose one of {", ".join(RECIPES)}')
    out = arguments.out or Path("runs") / arguments.recipe
    task, config = RECIPES[arguments.recipe]()
    config = _changed(config, arguments.set)
    if arguments.dry_run:
        _describe_run(task, config)
    else:
        train(task, config, out, recipe=arguments.recipe, resume=arguments.resume)


def _changed(config: LoopConfig, changes: Sequence[str]) -> LoopConfig:
    """The loop's configuration with KEY=VALUE put in, each of the field's own type."""
    types = typing.get_type_hints(type(config))
    types.pop("batch_size")  # tasks draw their streams by it
    values: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in types:
            raise ConfigError(f'--set {change}: there is no "{key}" to set; choose from {", ".join(types)}')
        try:
            values[key] = types[key](text)
        except ValueError as error:
            raise ConfigError(f"--set {change}: {key} needs a value of type {types[key].__name__}") from error
    return dataclasses.replace(config, **values)


def _describe_run(task: Task, config: LoopConfig) -> None:
    """Configuration, size and the time it will take, from three measured steps."""
    parameters = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    print(json.dumps(dataclasses.asdict(config), indent=1))
    print(f"parameters       {millions(parameters)}")
    print(f"steps            {config.num_steps} of {config.batch_size} items")
    seconds = _seconds_per_step(task, config)
    hours = seconds * config.num_steps / 3600
    print(f"time             {seconds:.3f} s per step, {hours:.2f} h in all (evaluations not counted)")


def _seconds_per_step(task: Task, config: LoopConfig, steps: int = 3) -> float:
    import torch

    from ..pipeline import default_device
    from ..training.loop import build_optimizer

    device = torch.device(default_device())
    task.model.to(device)
    task.place(device)
    optimizer = build_optimizer(task, config)
    for index in range((steps + 1) * config.batch_size):
        task.item(index)  # what a run would take from a file (a pool's latents) is made now, and not timed
    started = 0.0
    for step in range(steps + 1):  # the first one only warms up
        if step == 1:
            started = time.perf_counter()
        first = step * config.batch_size
        batch = task.collate([task.item(i) for i in range(first, first + config.batch_size)]).to(device)
        loss, _ = task.loss(task.model, batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / steps
