"""`unifusion shapes`: train and measure the embedded model, which draws coloured shapes (shapes/README.md)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ..errors import ConfigError
from ..evaluation.suites import BENCHMARKS
from ..shapes.evaluation.suites import ABOUT, SUITES
from .evaluate import add_suite_options, print_suites, run
from .inspect import millions
from .options import positive, seed, training_needs

if TYPE_CHECKING:
    # for annotations alone
    from ..training.loop import LoopConfig, Task


def add_command(commands: argparse._SubParsersAction) -> None:
    """The verbs of `shapes`."""
    parser = commands.add_parser("shapes", help="train and measure the embedded model of coloured shapes")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    train_options = verbs.add_parser("train", help="run a training recipe")
    train_options.set_defaults(run=train)
    train_options.add_argument("recipe", metavar="RECIPE")
    train_options.add_argument("--out", type=Path, metavar="DIR", help="default runs/RECIPE")
    train_options.add_argument(
        "--resume", action="store_true", help="go on from the folder's last checkpoint"
    )
    train_options.add_argument(
        "--overwrite", action="store_true", help="replace an earlier run in the folder"
    )
    train_options.add_argument(
        "--dry-run", action="store_true", help="show what would run, and how long it would take"
    )
    train_options.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe's loop, e.g. steps=100",
    )

    install_options = verbs.add_parser(
        "install", help="put a recipe's finished part in its place in the package"
    )
    install_options.set_defaults(run=install_part)
    install_options.add_argument("folder", type=Path, metavar="DIR", help="of the run")
    install_options.add_argument(
        "--next", action="store_true", help="among the parts of the next edition, which recipes alone read"
    )

    evaluate_options = verbs.add_parser("evaluate", help="judge its pictures exactly")
    evaluate_options.set_defaults(run=evaluate)
    add_suite_options(evaluate_options, SUITES)

    examples_options = verbs.add_parser(
        "examples", help="draw captioned images or edits, to try out unifusion train"
    )
    examples_options.set_defaults(run=examples)
    examples_options.add_argument("folder", type=Path, metavar="DIR")
    examples_options.add_argument("--count", type=positive, default=60, metavar="N", help="default 60")
    examples_options.add_argument(
        "--kind",
        choices=("style", "color", "paint", "plain"),
        default="style",
        help="style (default); color: an eighth colour; paint: edits of a new kind; plain: the world as it is",
    )

    encoder_options = verbs.add_parser(
        "encoder", help="write a real language model as a VLM folder, to train a connector on"
    )
    encoder_options.set_defaults(run=encoder)
    encoder_options.add_argument("folder", type=Path, metavar="DIR")

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
    """Print the tables of suites, or without a name the list of suites. Raises ConfigError for one that does not exist."""
    if arguments.suite:
        run(arguments.suite, SUITES, arguments)
    else:
        print_suites("unifusion shapes evaluate", SUITES, ABOUT)


def examples(arguments: argparse.Namespace) -> None:
    """Write images with captions."""
    from ..shapes.examples import write_examples

    print(write_examples(arguments.folder, arguments.count, arguments.kind))


def install_part(arguments: argparse.Namespace) -> None:
    """Put a finished part in its place."""
    from ..shapes.training.chain import NEXT, install
    from ..zoo.tiny import BUILT_IN

    print(install(arguments.folder, NEXT if arguments.next else BUILT_IN))


def encoder(arguments: argparse.Namespace) -> None:
    """Write the VLM folder of a real language model."""
    try:
        from ..shapes.encoder import write_encoder
    except ModuleNotFoundError as error:
        raise training_needs(error) from error
    print(write_encoder(arguments.folder))


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
        from ..training.loop import InterruptedRunError
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
        try:
            run_recipe(
                lambda _: task,
                config,
                out,
                name=arguments.recipe,
                resume=arguments.resume,
                overwrite=arguments.overwrite,
            )
        except InterruptedRunError as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(130)


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
            values[key] = TypeAdapter(types[key]).validate_python(text)
        except ValidationError as error:
            raise ConfigError(f"--set {change}: {key} cannot be that: {error.errors()[0]['msg']}") from error
    return dataclasses.replace(config, **values)


def _describe_run(task: Task, config: LoopConfig) -> None:
    """Configuration, size and the time it will take, from three measured steps."""
    parameters = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    print(json.dumps(dataclasses.asdict(config), indent=1))
    print(f"parameters       {millions(parameters)}")
    print(f"steps            {config.steps} of {config.batch_size} samples")
    seconds = _seconds_per_step(task, config)
    hours = seconds * config.steps / 3600
    print(f"time             {seconds:.3f} s per step, {hours:.2f} h in all (evaluations not counted)")


def _seconds_per_step(task: Task, config: LoopConfig, steps: int = 3) -> float:
    import torch

    from ..pipeline import default_device

    device = torch.device(default_device())
    task.model.to(device)
    task.place(device)
    optimizer = task.optimizer(config)
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
