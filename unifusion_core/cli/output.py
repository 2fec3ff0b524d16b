"""Where `unifusion generate` writes: the path that was asked, numbers that no other run takes, a folder of ids, or stdout."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..files import check_folder, check_writable

if TYPE_CHECKING:
    # for annotations alone
    from ..images import Pixels

STDOUT = "-"
_NUMBERED = re.compile(r"unifusion-(\d+)[.-]")


class Output:
    """The files of one call. They are checked to be writable at the start, and each is written whole or not at all."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Raises ConfigError for a place that cannot be written to, or a format that is not written."""
        from ..images import written_format

        out: str | None = arguments.out
        self.batch: int = 1 if arguments.grid else arguments.batch
        self.overwrite: bool = arguments.overwrite
        self.stdout = out == STDOUT
        self.folder: Path | None = None
        self.file: Path | None = None
        self.by_id = arguments.prompts is not None
        # the number that this run took for its files without a name
        self._number: int | None = None
        if self.stdout:
            if self.by_id or self.batch > 1:
                raise ConfigError(
                    "--out - writes one picture to stdout: give a folder for several, or --grid"
                )
            if sys.stdout.isatty():
                raise ConfigError(
                    "--out - would write a picture to the terminal: send it to a file or a program"
                )
        elif self.by_id or out is None or out.endswith(("/", os.sep)) or Path(out).is_dir():
            self.folder = Path(out or ".")
            check_folder(self.folder)
        else:
            self.file = Path(out)
            written_format(self.file)
            for number in range(self.batch):
                check_writable(self._in_batch(self.file, number))

    def exists(self, line_id: str, number: int) -> Path | None:
        """The file of a line, if it is there and is kept."""
        if not self.by_id or self.overwrite:
            return None
        path = self._of_line(line_id, number)
        return path if path.exists() else None

    def write(self, line_id: str, number: int, pixels: Pixels, record: dict[str, Any]) -> tuple[str, bool]:
        """Writes a picture. Returns its name, and whether a file was replaced. Raises ConfigError if it cannot be written."""
        from ..images import encode_image, write_image_file

        if self.stdout:
            sys.stdout.buffer.write(encode_image(pixels, record))
            sys.stdout.buffer.flush()
            return "stdout", False
        if self.file is not None:
            path = self._in_batch(self.file, number)
            replaced = path.is_file()
            write_image_file(path, pixels, record)
            return str(path), replaced
        if self.by_id:
            path = self._of_line(line_id, number)
            replaced = self.overwrite and path.is_file()
            write_image_file(path, pixels, record, replace=self.overwrite)
            return str(path), replaced
        return str(self._write_numbered(number, pixels, record)), False

    def _write_numbered(self, number: int, pixels: Pixels, record: dict[str, Any]) -> Path:
        from ..images import write_image_file

        assert self.folder is not None
        if self._number is not None:
            path = self._in_batch(self._numbered(self._number), number)
            if write_image_file(path, pixels, record, replace=False):
                return path
            raise ConfigError(f"another run took the name {path}: call again")
        taken = {int(m[1]) for each in self.folder.iterdir() if (m := _NUMBERED.match(each.name))}
        for candidate in itertools.count(1):
            path = self._in_batch(self._numbered(candidate), number)
            # of two runs that find it free, one gets it
            if candidate not in taken and write_image_file(path, pixels, record, replace=False):
                self._number = candidate
                return path
        raise AssertionError("numbers do not end")

    def _numbered(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"unifusion-{number:04}.png"

    def _of_line(self, line_id: str, number: int) -> Path:
        assert self.folder is not None
        return self._in_batch(self.folder / f"{line_id}.png", number)

    def _in_batch(self, path: Path, number: int) -> Path:
        """The file's own name, with the number of the picture before its ending if there are several."""
        from ..images import WRITTEN_FORMATS

        if self.batch == 1:
            return path
        ending = path.suffix if path.suffix.lower() in WRITTEN_FORMATS else ""
        return path.with_name(f"{path.name.removesuffix(ending)}-{number + 1}{ending}")
