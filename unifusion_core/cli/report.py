"""What a command tells while it works: results on stdout; facts, failures and the summary on stderr."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator

from ..errors import PromptError
from .processes import Processes

FAILED = 1


class Report:
    """Tells what was done, and counts it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.quiet, self.verbose = arguments.quiet, arguments.verbose
        self.done = self.kept = self.failed = 0

    def result(self, text: str) -> None:
        """A result: the name of a file, or a rewrite."""
        self._write(text, sys.stdout)

    def fact(self, text: str) -> None:
        """What was done, unless --quiet."""
        if not self.quiet:
            self._write(text, sys.stderr)

    def detail(self, text: str) -> None:
        """What is known beyond that, with --verbose."""
        if self.verbose:
            self._write(text, sys.stderr)

    def failure(self, where: str, error: BaseException) -> None:
        """A line that could not be done; the others go on."""
        self.failed += 1
        self._write(f"unifusion: {where}: {' '.join(str(error).split())}", sys.stderr)
        if self.verbose:
            self._write("".join(traceback.format_exception(error)).rstrip(), sys.stderr)

    def summary(self, processes: Processes, done: str) -> int:
        """Tells how many lines were done, kept and failed, over all processes. Returns the exit status."""
        finished, kept, failed = processes.total([self.done, self.kept, self.failed])
        if processes.is_first:
            parts = [f"{finished} {done}"]
            parts += [f"{kept} kept that were there (--overwrite makes them again)"] if kept else []
            parts += (
                [f"{failed} failed, named above: mend them and call again, what is done is kept"]
                if failed
                else []
            )
            (self._always if failed else self.fact)(", ".join(parts))
        return FAILED if failed else 0

    def _always(self, text: str) -> None:
        self._write(text, sys.stderr)

    @staticmethod
    def _write(text: str, file: object) -> None:
        from tqdm import tqdm

        # above a bar that is shown
        tqdm.write(text, file=file)  # pyright: ignore[reportArgumentType]
        file.flush()  # type: ignore[attr-defined]


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[..., None]]:
    """A bar with the time left on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, leave=False, disable=None) as bar:

        def done(*_: object) -> None:
            bar.update()

        yield done


@contextlib.contextmanager
def strictly(strict: bool) -> Iterator[None]:
    """With --strict, the package's warnings inside become one PromptError."""
    told: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        told.append(record.getMessage())
        return False

    if not strict:
        yield
        return
    handlers = logging.getLogger(__name__.split(".cli.")[0]).handlers
    for handler in handlers:
        handler.addFilter(collect)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(collect)
    if told:
        raise PromptError(" ".join(dict.fromkeys(told)))
