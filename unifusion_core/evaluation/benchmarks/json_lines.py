"""Files with one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ConfigError


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file. Raises ConfigError for a file that cannot be read and for a line that is no JSON object."""
    try:
        # not splitlines(): JSON strings may hold U+2028
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): give a JSONL file") from error
    objects = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            read = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{file}, line {number} is no JSON ({error}): the file is cut off or damaged, copy it again"
            ) from error
        if not isinstance(read, dict):
            raise ConfigError(f"{file}, line {number} is no JSON object: give one object per line")
        objects.append(read)
    return objects
