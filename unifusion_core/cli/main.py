"""The command `unifusion`.

Torch and transformers are imported by the commands that need them, so `--help` answers at once. A user's error prints one line on
stderr and exits with status 2.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

from .. import __version__
from ..errors import UniFusionError
from . import evaluate, generate, inspect, rewrite, shapes, train
from .options import Parser

# "unifusion_core", whatever the pack around it is called
PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]
USER_ERROR = 2
INTERRUPTED = 130
# as sysexits.h has it: an internal error
UNFORESEEN = 70


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. No exception leaves it."""
    _print_any_text()
    verbose = "--verbose" in (sys.argv[1:] if argv is None else argv)
    with _warnings_on_stderr():
        try:
            arguments = build_parser().parse_args(argv)
            return arguments.run(arguments) or 0
        except BrokenPipeError:
            # what reads the output has ended: nothing is left to be told
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return USER_ERROR
        except KeyboardInterrupt:
            _tell("interrupted")
            return INTERRUPTED
        except (UniFusionError, OSError) as error:
            _tell(str(error))
            return USER_ERROR
        # a sentence and a status for what nobody foresaw, and the way to see where it arose
        except Exception as error:
            if verbose:
                traceback.print_exc()
            _tell(_unforeseen(error))
            return UNFORESEEN


def _tell(text: str) -> None:
    print(f"unifusion: {' '.join(text.split())}", file=sys.stderr)


def _unforeseen(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return f"there is not enough memory ({text[:200]}): draw a smaller size, a smaller batch, or close other programs"
    return (
        f"{type(error).__name__}: {text[:500]}. This is a defect of unifusion: call again with --verbose, and report what it "
        "prints"
    )


def _print_any_text() -> None:
    """Lets stdout and stderr take any text in any locale: what they cannot show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
