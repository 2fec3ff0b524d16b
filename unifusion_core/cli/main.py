"""The command `unifusion`.

Torch and transformers are imported by the commands that need them, so `--help` answers at once. A user's error prints one line on
stderr and exits with status 2.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence

from .. import __version__
from ..errors import UniFusionError
from . import evaluate, generate, inspect, rewrite, shapes, train
from .options import Parser

# "unifusion_core", whatever the pack around it is called
PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]
USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    with _warnings_on_stderr():
        try:
            arguments = build_parser().parse_args(argv)
            arguments.run(arguments)
        except (UniFusionError, OSError) as error:
            print(f"unifusion: {' '.join(str(error).split())}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("unifusion: interrupted", file=sys.stderr)
            return INTERRUPTED
    return 0


def build_parser() -> Parser:
    """All commands with their options."""
    parser = Parser(
        prog="unifusion",
        description="Text-to-image and image editing with one frozen vision-language model as the only encoder.",
    )
    parser.add_argument("--version", action="version", version=f"unifusion {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (generate, rewrite, inspect, train, evaluate, shapes):
        command.add_command(commands)
    return parser


@contextlib.contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Shows each of the package's own warnings once. The handler is removed afterwards: a caller of `main` may have its own."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in shown
        shown.add(text)
        return new

    handler = logging.StreamHandler()
    handler.addFilter(is_new)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    package = logging.getLogger(PACKAGE)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
