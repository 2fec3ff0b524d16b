"""The prompts of a call: one of its own, or the lines of a JSONL file, each of which stands for itself."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import math
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigError, PromptError
from ..files import check_readable
from ..vlm.styles import check_style
from .options import size as size_from_text

if TYPE_CHECKING:
    # for annotations alone
    from ..contracts import Request
    from ..zoo.spec import GeneratorSpec

EXAMPLE = '{"id": "a", "prompt": "a red circle"}'
SEED_LIMIT = 2**63
# bytes of a file name in UTF-8, which leaves room for the number of a batch and the ending
MAX_ID_BYTES = 240
# not allowed in names on one of the usual file systems
_FORBIDDEN = frozenset('/\\:*?"<>|')
_RESERVED = frozenset(
    ("con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in "0123456789¹²³"))
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One prompt: the only one of a call, or a line of a JSONL file.

    where      "FILE, line N (id "a")", for messages; empty for the only prompt of a call
    options    what the line sets for itself, by the name of the option
    source     the JSON object of the line
    """

    id: str = ""
    where: str = ""
    prompt: str
    images: tuple[Path, ...] = ()
    rewrite_text: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str, arguments: argparse.Namespace) -> Any:
        """The line's own value of an option, else that of the call."""
        return self.options.get(name, getattr(arguments, name, None))

    def request(self, spec: GeneratorSpec, style: str, *, keep_rewrite: bool = True) -> Request:
        """Reads the images. Raises ShapeError for one that cannot be read, PromptError for text that is no Unicode and for a
        style that the generator's VLM does not follow."""
        from ..contracts import Request
        from ..images import read_image_file

        for text in (self.prompt, self.rewrite_text or "", style):
            check_text(text)
        images = [read_image_file(path) for path in self.images]
        request = Request(
            prompt=self.prompt, images=images, rewrite=self.rewrite_text if keep_rewrite else None
        )
        return spec.with_style(request, style)


# Lines of a file ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that is no prompt, and why."""

    number: int
    where: str
    error: PromptError


class PromptFile:
    """A JSONL file of prompts. It is scanned once at the start, for its ids and errors, and then read line by line.

    Raises PromptError for a file that cannot be read or has no lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: bytes | None = None
        try:
            check_readable(path)
            with path.open("rb") as file:
                if not path.is_file():
                    # a pipe is read once
                    self._content = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PromptError(f"{path} cannot be read ({reason}): give a JSONL file") from error
        self.bad: list[BadLine] = []
        self.count = 0
        self._scan()
        if not self.count and not self.bad:
            raise PromptError(f"{path} has no lines; write one like {EXAMPLE}")

    def lines(self) -> Iterator[Line]:
        """The good lines in their order, one at a time."""
        bad = {each.number for each in self.bad}
        for number, raw in self._numbered():
            if number not in bad:
                yield self._parse(number, raw)

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") if self._content is None else io.BytesIO(self._content) as file:
            for number, raw in enumerate(file, start=1):
                text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if number == 1 and text.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise PromptError(f"{self.path} is UTF-16 text: save it as UTF-8")
                if text.strip():
                    yield number, text

    def _scan(self) -> None:
        seen: dict[str, int] = {}
        for number, raw in self._numbered():
            try:
                line = self._parse(number, raw)
                # names that some file systems take for the same
                key = unicodedata.normalize("NFC", line.id).casefold()
                if key in seen:
                    raise PromptError(
                        f'the id "{line.id}" is used twice, first in line {seen[key]} (upper and lower case are one): rename it'
                    )
                seen[key] = number
                self.count += 1
            except PromptError as error:
                self.bad.append(BadLine(number=number, where=self._where(number, raw), error=error))

    def _where(self, number: int, raw: bytes) -> str:
        """File, line, and the id as far as there is one."""
        name = None
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(raw)
            name = content.get("id") if isinstance(content, dict) else None
        return f"{self.path}, line {number}" + (f" (id {json.dumps(name)})" if isinstance(name, str) else "")

    def _parse(self, number: int, raw: bytes) -> Line:
        try:
            content = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
        except UnicodeDecodeError as error:
            raise PromptError(
                f"no UTF-8 text ({error.reason} at byte {error.start}): save the file as UTF-8"
            ) from error
        except RecursionError as error:
            raise PromptError("nested too deeply: write one flat object") from error
        except ValueError as error:
            raise PromptError(f"no JSON ({error}): write each prompt in one line, like {EXAMPLE}") from error
        if not isinstance(content, dict) or not {"id", "prompt"} <= set(content):
            raise PromptError(f'"id" and "prompt" are needed, like {EXAMPLE}')
        for key, value in content.items():
            if key not in LINE_KEYS:
                raise PromptError(
                    f'the key "{key}" is unknown{near(key, LINE_KEYS)}; known are {", ".join(LINE_KEYS)}'
                )
            content[key] = LINE_KEYS[key](key, value)
        check_id(content["id"])
        return Line(
            id=content["id"],
            where=f"{self.path}, line {number} (id {json.dumps(content['id'], ensure_ascii=False)})",
            prompt=content["prompt"],
            images=tuple(self._beside(name) for name in content.get("images", ())),
            rewrite_text=content.get("rewrite_text"),
            options={
                key: self._beside(value) if key == "mask" else value
                for key, value in content.items()
                if key not in ("id", "prompt", "images", "rewrite_text")
            },
            source=json.loads(raw),
        )

    def _beside(self, name: str) -> Path:
        """A file's path: beside the prompt file if it is there, else as it is."""
        beside = self.path.parent / name
        return beside if beside.exists() else Path(name)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise PromptError(f'"{key}" is {_shown(value)}, a value of type str is needed')
    check_text(value)
    return value


def _filled_text(key: str, value: Any) -> str:
    if not _text(key, value).strip():
        raise PromptError(f'"{key}" is empty; give its words, or leave the key out')
    return value


def _style(key: str, value: Any) -> str:
    check_style(_text(key, value))
    return value


def _texts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise PromptError(f'"{key}" is {_shown(value)}, a list of file names is needed')
    return value


def _whole(low: int, high: float) -> Callable[[str, Any], int]:
    def check(key: str, value: Any) -> int:
        # JSON knows one kind of number: 7.0 and 7e0 are 7
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
            top = "up" if high == math.inf else "to 2^63 - 1" if high == SEED_LIMIT else f"to {high - 1:.0f}"
            raise PromptError(f'"{key}" is {_shown(value)}, a whole number from {low} {top} is needed')
        return value

    return check


def _number(low: float, high: float) -> Callable[[str, Any], float]:
    def check(key: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise PromptError(f'"{key}" is {_shown(value)}, a number from {low:g} to {high:g} is needed')
        return float(value)

    return check


def _size(key: str, value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        try:
            return size_from_text(value)
        except argparse.ArgumentTypeError as error:
            raise PromptError(f'"{key}": {error}') from error
    if not isinstance(value, list) or len(value) != 2:
        raise PromptError(f'"{key}" is {_shown(value)}; write "128x128" or [128, 128]')
    width, height = (_whole(1, math.inf)(key, side) for side in value)
    return width, height


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# a key of a line -> its value, checked
LINE_KEYS: dict[str, Callable[[str, Any], Any]] = {
    "id": _filled_text,
    "prompt": _text,
    "images": _texts,
    "seed": _whole(0, SEED_LIMIT),
    "rewrite_text": _filled_text,
    "style": _style,
    "negative": _text,
    "size": _size,
    "steps": _whole(1, 10_001),
    "cfg": _number(0, 100),
    "image_cfg": _number(0, 100),
    "schedule": _filled_text,
    "max_tiles": _whole(1, 1001),
    "mask": _filled_text,
    "denoise": _number(0.01, 1),
}


def check_text(text: str) -> None:
    """Raises PromptError for text that is no Unicode, such as half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the text {json.dumps(text[:40])} holds half a character at {error.start}: write it in UTF-8"
        ) from error


def check_id(name: str) -> None:
    """Raises PromptError for an id that cannot be a file name on one of the usual file systems."""
    bad = sorted({c for c in name if c in _FORBIDDEN or unicodedata.category(c) in ("Cc", "Cs")})
    if bad:
        shown = " ".join(c if c in _FORBIDDEN else f"U+{ord(c):04X}" for c in bad)
        raise PromptError(f"the id {json.dumps(name)} cannot be a file name: leave out {shown}")
    if name[0] == " " or name[-1] in " .":
        raise PromptError(
            f"the id {json.dumps(name)} cannot be a file name: leave out the space or dot at its start or end"
        )
    if name.partition(".")[0].rstrip().casefold() in _RESERVED:
        raise PromptError(f'the id "{name}" is the name of a device on Windows: rename it')
    if len(name.encode()) > MAX_ID_BYTES:
        raise PromptError(f'the id "{name[:20]}..." is longer than {MAX_ID_BYTES} bytes: shorten it')


def near(word: str, known: object) -> str:
    """ ", did you mean ...?" with the known word that is nearest; empty if none is near."""
    found = difflib.get_close_matches(word, [str(each) for each in cast("Any", known)], n=1, cutoff=0.6)
    return f', did you mean "{found[0]}"?' if found else ""


# The prompts of a call ----------------------------------------------------------------------------


def read_prompts(arguments: argparse.Namespace) -> PromptFile | Line:
    """The file of --prompts, or the only prompt of a call. Raises ConfigError or PromptError for none, or for two sources."""
    images, text = tuple(arguments.image), getattr(arguments, "rewrite_text", None)
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise ConfigError("give either a PROMPT or --prompts FILE.jsonl")
    if text is not None and not text.strip():
        raise PromptError("the rewrite is empty: give its words, or use --no-rewrite")
    if arguments.prompts is None:
        return Line(prompt=arguments.prompt, images=images, rewrite_text=text)
    if images or text is not None:
        raise ConfigError(
            '--image and --rewrite-text belong to one PROMPT; in a file write "images" and "rewrite_text"'
        )
    if arguments.out is None:
        raise ConfigError("--prompts needs --out")
    return PromptFile(arguments.prompts)
