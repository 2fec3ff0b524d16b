"""`unifusion shapes`: train and measure the embedded model, which draws coloured shapes (shapes/README.md)."""

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
from ..evaluation.suites import BENCHMARKS
from ..shapes.evaluation.suites import OF_THE_MODEL, SUITES
from .evaluate import add_suite_options, run
from .inspect import millions
from .options import positive, seed, training_needs

if TYPE_CHECKING:
    # for annotations alone
    from ..training.loop import LoopConfig, Task


def add_command(commands: argparse._SubParsersAction) -> None:
    """`shapes train`, `shapes evaluate` and `shapes results`."""
    parser = commands.add_parser("shapes", help="train and measure the embedded model of coloured shapes")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    train_options = verbs.add_parser("train", help="run a training recipe")
    train_options.set_defaults(run=train)
    train_options.add_argument("recipe", metavar="RECIPE")
    train_options.add_argument("--out", type=Path, metavar="DIR", help="default runs/RECIPE")
    train_options.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    train_options.add_argument(
        "--dry-run", action="store_true", help="show what would run, and how long it would take"
    )
    train_options.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe's loop, e.g. num_steps=100",
    )

    evaluate_options = verbs.add_parser("evaluate", help="judge its pictures exactly")
    evaluate_options.set_defaults(run=evaluate)
    add_suite_options(evaluate_options, SUITES)

    examples_options = verbs.add_parser(
        "examples", help="draw captioned images in a style, to try out unifusion train"
    )
    examples_options.set_defaults(run=examples)
    examples_options.add_argument("folder", type=Path, metavar="DIR")
    examples_options.add_argument("--count", type=positive, default=60, metavar="N", help="default 60")

    benchmark_options = verbs.add_parser(
        "benchmark", help="write a file of shapes in a benchmark's format, for unifusion evaluate"
    )
    benchmark_options.set_defaults(run=benchmark)
    benchmark_options.add_argument(
        "name", choices=tuple(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS)
    )
    benchmark_options.add_argument("folder", type=Path, metavar="DIR")
    benchmark_options.add_argument("--count", type=positive, default=200, metavar="N", help="default 200")
    benchmark_options.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")

    results_options = verbs.add_parser("results", help="write the page of results from the reports of suites")
    results_options.set_defaults(run=results)
    results_options.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="reports (*.json); default: those of the package"
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the tables of suites. Raises ConfigError for one that does not exist."""
    run(arguments.suite or list(OF_THE_MODEL), SUITES, arguments)


def examples(arguments: argparse.Namespace) -> None:
    """Write images with captions."""
    from ..shapes.examples import write_examples

    print(write_examples(arguments.folder, arguments.count))


def benchmark(arguments: argparse.Namespace) -> None:
    """Write a benchmark's file, and print the --data that reads it."""
    from ..shapes.benchmarks import write_benchmark

    print(write_benchmark(arguments.name, arguments.folder, arguments.count, arguments.seed))


def results(arguments: argparse.Namespace) -> None:
    """Write RESULTS.md and its plots beside the reports. Raises ConfigError for a folder without reports."""
    from ..shapes.evaluation.page import RESULTS, write_results

    print(write_results(arguments.folder or RESULTS))


def train(arguments: argparse.Namespace) -> None:
    """Run a recipe. Raises ConfigError for one that does not exist, or for a missing package."""
    try:
        from ..shapes.training.recipes import RECIPES
        from ..training.loop import train as run_recipe
    except ModuleNotFoundError as error:
        raise training_needs(error) from error
    if arguments.recipe not in RECIPES:
        raise ConfigError(f'there is no recipe "{arguments.recipe}"; choose one of {", ".join(RECIPES)}')
    out = arguments.out or Path("runs") / arguments.recipe
    task, config = RECIPES[arguments.recipe]()
    config = _changed(config, arguments.set)
    if arguments.dry_run:
        _describe_run(task, config)
    else:
        run_recipe(task, config, out, recipe=arguments.recipe, resume=arguments.resume)


def _changed(config: LoopConfig, changes: Sequence[str]) -> LoopConfig:
    """The loop's configuration with KEY=VALUE put in, each of the field's own type."""
    types = typing.get_type_hints(type(config))
    # tasks draw their streams by it
    types.pop("batch_size")
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
        # what a run would take from a file (a pool's latents) is made now, and not timed
        task.item(index)
    started = 0.0
    # the first step only warms up
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        first = step * config.batch_size
        batch = task.collate([task.item(i) for i in range(first, first + config.batch_size)]).to(device)
        loss, _ = task.loss(task.model, batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / steps
