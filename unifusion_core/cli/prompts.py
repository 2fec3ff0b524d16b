"""The prompts of a call: one of its own, or the lines of a JSONL file."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError
from ..vlm.styles import with_style

if TYPE_CHECKING:
    # for annotations alone
    from ..contracts import Request

LINE_KEYS = {"id": str, "prompt": str, "images": list, "seed": int, "rewrite_text": str}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One prompt: the only one of a call, or a line of a JSONL file (`source`)."""

    id: str
    prompt: str
    images: tuple[Path, ...]
    seed: int
    rewrite_text: str | None
    source: dict[str, Any]

    def request(self, style: str, *, keep_rewrite: bool = True) -> Request:
        """Reads the pictures."""
        from ..contracts import Request
        from ..images import read_image_file

        images = [read_image_file(path) for path in self.images]
        request = Request(
            prompt=self.prompt, images=images, rewrite=self.rewrite_text if keep_rewrite else None
        )
        return with_style(request, style)


def read_lines(arguments: argparse.Namespace) -> list[Line]:
    """The prompts of a call. ConfigError or PromptError for none, two sources of them, or a line that is none."""
    seed, images, text = arguments.seed or 0, tuple(arguments.image), getattr(arguments, "rewrite_text", None)
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise ConfigError("give either a PROMPT or --prompts FILE.jsonl")
    if text is not None and not text.strip():
        raise PromptError("the rewrite is empty: give its words, or use --no-rewrite")
    if arguments.prompts is None:
        return [Line(id="", prompt=arguments.prompt, images=images, seed=seed, rewrite_text=text, source={})]
    if images or text is not None:
        raise ConfigError(
            '--image and --rewrite-text belong to one PROMPT; in a file write "images" and "rewrite_text"'
        )
    if arguments.out is None:
        raise ConfigError("--prompts needs --out")
    lines: list[Line] = []
    try:
        # not splitlines(): JSON strings may hold U+2028
        text_lines = arguments.prompts.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"{arguments.prompts} is no UTF-8 text ({error})") from error
    except OSError as error:
        raise PromptError(
            f"{arguments.prompts} cannot be read ({error.strerror}): give a JSONL file"
        ) from error
    for number, written in enumerate(text_lines, start=1):
        if written.strip():
            line = _read_line(written, arguments.prompts, number, seed)
            if line.id in {other.id for other in lines}:
                raise PromptError(f'{arguments.prompts}, line {number}: the id "{line.id}" is used twice')
            lines.append(line)
    if not lines:
        raise PromptError(
            f'{arguments.prompts} has no lines; write one like {{"id": "a", "prompt": "a red circle"}}'
        )
    return lines


def _read_line(written: str, file: Path, number: int, seed: int) -> Line:
    where = f"{file}, line {number}"
    try:
        line = json.loads(written)
    except ValueError as error:
        raise PromptError(f"{where} is no JSON ({error})") from error
    if not isinstance(line, dict) or not {"id", "prompt"} <= set(line):
        raise PromptError(f'{where} needs "id" and "prompt", like {{"id": "a", "prompt": "a red circle"}}')
    unknown = sorted(set(line) - set(LINE_KEYS))
    if unknown:
        raise PromptError(f"{where} has unknown keys {unknown}; known are {', '.join(LINE_KEYS)}")
    for key, value in line.items():
        if not isinstance(value, LINE_KEYS[key]) or isinstance(value, bool):
            raise PromptError(
                f'{where}: "{key}" is {value!r}, a value of type {LINE_KEYS[key].__name__} is needed'
            )
    if not line["id"] or Path(line["id"]).name != line["id"]:
        raise PromptError(f'{where}: the id "{line["id"]}" cannot be a file name; leave out slashes')
    if not all(isinstance(image, str) for image in line.get("images", [])):
        raise PromptError(f'{where}: "images" must be a list of file names')
    if not 0 <= line.get("seed", 0) < 2**63:
        raise PromptError(f'{where}: "seed" is {line["seed"]}, a whole number from 0 to 2^63 - 1 is needed')
    if not line.get("rewrite_text", "x").strip():
        raise PromptError(f'{where}: "rewrite_text" is empty; give its words, or leave the key out')
    beside = [file.parent / image for image in line.get("images", [])]
    images = tuple(
        path if path.exists() else Path(name)
        for path, name in zip(beside, line.get("images", []), strict=True)
    )
    return Line(
        id=line["id"],
        prompt=line["prompt"],
        images=images,
        seed=line.get("seed", seed),
        rewrite_text=line.get("rewrite_text"),
        source=line,
    )


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[..., None]]:
    """A bar with the time left on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, leave=False, disable=None) as bar:

        def done(*_: object) -> None:
            bar.update()

        yield done
