"""`unifusion train`: reserved for training on your own data; the recipes of the embedded model are `unifusion shapes train`."""

from __future__ import annotations

import argparse

from ..errors import ConfigError


def add_command(commands: argparse._SubParsersAction) -> None:
    """The command, which says where its recipes went."""
    parser = commands.add_parser("train", help="moved: unifusion shapes train RECIPE")
    parser.set_defaults(run=_say_where)
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="RECIPE")


def _say_where(arguments: argparse.Namespace) -> None:
    """Raises ConfigError with the command to write now."""
    words = " ".join(arguments.words) or "RECIPE"
    raise ConfigError(
        f'the recipes of the embedded model are run by "unifusion shapes train {words}"; training on your own data is not '
        "there yet"
    )
