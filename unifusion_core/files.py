"""Files: outputs are checked to be writable before the work begins, then written whole or not at all; inputs are no devices."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from .errors import ConfigError


def check_writable(path: Path) -> None:
    """Makes the folder of a file that will be written later. Raises ConfigError if the file could not be written."""
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder and a file is needed: give the name of a file in it")
        if path.exists() and not os.access(path, os.W_OK):
            raise ConfigError(f"{path} is write-protected: give another name, or allow writing to it")
        if path.exists() and not path.is_file():
            # a device or a pipe is written to in place
            return
        check_folder(path.parent)
        # a name that the file system does not take fails here
        path.touch(exist_ok=False)
        path.unlink()
    except FileExistsError:
        return
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def check_folder(folder: Path) -> None:
    """Makes a folder. Raises ConfigError if it cannot be made, or no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{secrets.token_hex(8)}.part"
        trial.touch(exist_ok=False)
        trial.unlink()
    except FileExistsError as error:
        raise ConfigError(f"{folder} is a file and a folder is needed: give the name of a folder") from error
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from error


def check_readable(path: Path) -> None:
    """Raises OSError for what is neither a file nor a pipe (/dev/zero never ends), and for what can be no name."""
    try:
        impossible = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:
        impossible = True
    if impossible or (path.exists() and not (path.is_file() or path.is_fifo())):
        raise OSError(errno.EINVAL, "no file", ascii(str(path)))


def write_whole(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Writes a file whole or not at all, and returns whether it was written. With `replace` False a file of that name is kept,
    also one that another process writes at the same time.

    Raises ConfigError if it cannot be written, for example on a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return True
        # the file behind a link is replaced, not the link
        path = path.resolve() if path.is_symlink() else path
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with part.open("xb") as file:
                file.write(data)
            if not replace and not _claim(path):
                return False
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    return True


def _claim(path: Path) -> bool:
    """Whether this process is the one that made the file: of several, one is."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _unwritable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(
        f"{path} cannot be written ({reason}): make room or allow writing there, or give another place"
    )
