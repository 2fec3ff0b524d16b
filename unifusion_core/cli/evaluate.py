"""`unifusion evaluate`: measure a model, whatever it draws. The suites of coloured shapes are `unifusion shapes evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError
from ..evaluation.suites import SUITES
from .options import add_part_options, positive, seed

SAMPLES = 500


def add_command(commands: argparse._SubParsersAction) -> None:
    """The command and its options."""
    parser = commands.add_parser("evaluate", help="measure how fast a model draws and encodes")
    parser.set_defaults(run=evaluate)
    add_suite_options(parser, SUITES)
    # of earlier versions: answered with the command to write now
    for name in ("--page", "--report"):
        parser.add_argument(name, nargs="+", help=argparse.SUPPRESS)


def add_suite_options(parser: argparse.ArgumentParser, suites: Mapping[str, str]) -> None:
    """Which suites, of what, on how many samples, and where the numbers go."""
    parser.add_argument("--suite", nargs="+", metavar="NAME", help=f"one or more of {', '.join(suites)}")
    add_part_options(parser)
    parser.add_argument(
        "--samples",
        type=positive,
        default=SAMPLES,
        metavar="N",
        help=f"per measurement; default {SAMPLES}",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="the numbers, and sheets of pictures beside them"
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the tables of suites. Raises ConfigError for one that does not exist, or that belongs to the demo."""
    from ..shapes.evaluation.suites import SUITES as OF_SHAPES

    if arguments.page or arguments.report:
        raise ConfigError(
            "the page of results is made by unifusion shapes results DIR, from the reports (*.json) in a folder"
        )
    names = arguments.suite or list(SUITES)
    for name in names:
        if name in OF_SHAPES:
            raise ConfigError(
                f'the suite "{name}" judges coloured shapes: write unifusion shapes evaluate --suite {name}'
            )
    run(names, SUITES, arguments)


def run(names: list[str], suites: Mapping[str, str], arguments: argparse.Namespace) -> None:
    """Run suites by name. Raises ConfigError for one that does not exist."""
    from ..evaluation.runner import evaluate as run_suites
    from ..evaluation.subject import Subject

    unknown = [name for name in names if name not in suites]
    if unknown:
        raise ConfigError(f'there is no suite "{unknown[0]}"; choose from {", ".join(suites)}')
    subject = Subject(model=arguments.model, vlm=arguments.vlm, vae=arguments.vae, lora=arguments.lora)
    chosen = {name: suites[name] for name in names}
    run_suites(chosen, subject, samples=arguments.samples, seed=arguments.seed, out=arguments.out)
    if arguments.out is not None:
        print(f"\n{arguments.out}")
