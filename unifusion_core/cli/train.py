"""`unifusion train`: train on your own images (training/README.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import ConfigError
from ..files import check_readable
from .options import positive, training_needs


def add_command(commands: argparse._SubParsersAction) -> None:
    """The command and its options."""
    parser = commands.add_parser("train", help="train on your own images")
    parser.set_defaults(run=train)
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the output folder"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier run in the output folder"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="scan the data and fill the caches, train nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be trained, train nothing"
    )
    parser.add_argument(
        "--gpus", type=positive, default=1, metavar="N", help="GPUs that a dry run counts with (default 1)"
    )
    parser.add_argument("--verbose", action="store_true", help="print where an error arose")
    # of the recipes that this command ran once
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the configuration")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the configuration, e.g. lora.rank=8"
    )


def train(arguments: argparse.Namespace) -> None:
    """Runs a configuration. Raises ConfigError for one that cannot be run, or for a missing package."""
    try:
        from ..training.config import load_config, schema
        from ..training.dry_run import dry_run
        from ..training.loop import InterruptedRunError
        from ..training.trainer import train as run
    except ModuleNotFoundError as error:
        raise training_needs(error) from error
    if arguments.schema:
        print(schema())
        return
    if arguments.config is None:
        raise ConfigError(
            "give a configuration: unifusion train CONFIG.yaml (training/README.md has an example)"
        )
    check_readable(arguments.config)
    _refuse_recipe_name(arguments.config)
    if arguments.out is not None:
        raise ConfigError("--out belongs to unifusion shapes train; here it is a key: --set output=DIR")
    config = load_config(arguments.config, arguments.set)
    if arguments.dry_run:
        dry_run(config, gpus=arguments.gpus)
        return
    try:
        run(config, resume=arguments.resume, overwrite=arguments.overwrite, prepare=arguments.prepare)
    except InterruptedRunError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)


def _refuse_recipe_name(path: Path) -> None:
    """Raises ConfigError for the name of a recipe of the embedded model, which this command ran once."""
    if path.exists() or path.suffix:
        return
    from ..shapes.training.recipes import RECIPES

    if str(path) in RECIPES:
        raise ConfigError(f'the recipes of the embedded model are run by "unifusion shapes train {path}"')
