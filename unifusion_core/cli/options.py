"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..vlm.styles import STYLES

MAX_CFG = 100.0
# ends as a file's name does, a strength (of an adapter) behind it included
_LIKE_A_FILE = re.compile(r".*\.[A-Za-z0-9]{1,12}(:[-\d.]+)?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, without a usage text in front, with the nearest known name in it."""

    def error(self, message: str) -> None:  # type: ignore[override]  (raising is a way of not returning)
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        choice = re.search(r"invalid choice: '([^']*)'", message)
        known: list[str] = []
        word = ""
        if unknown:
            word, known = unknown[1].partition("=")[0], list(self._option_string_actions)
            for action in self._actions:
                if isinstance(action, argparse._SubParsersAction):
                    known += [o for parser in action.choices.values() for o in parser._option_string_actions]
        elif choice:
            word = choice[1]
            known = [str(name) for action in self._actions for name in action.choices or ()]
        found = difflib.get_close_matches(word, known, n=1)
        raise ConfigError(
            f"{message}{f', did you mean {found[0]}?' if found else ''}; see {self.prog} --help"
        )


Commands = "argparse._SubParsersAction[Parser]"


class Files(argparse.Action):
    """One or more files. What follows them may be the PROMPT: a last word that is no file goes there (`--image a.png "make it
    blue"`)."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Adds the files to those that were given before."""
        *files, last = values
        takes_prompt = hasattr(namespace, "prompt") and namespace.prompt is None
        if files and takes_prompt and not _LIKE_A_FILE.fullmatch(last) and not _exists(last):
            namespace.prompt = text(last)
        else:
            files = values
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *map(Path, files)])


class Prompt(argparse.Action):
    """The PROMPT, unless it was found behind the files of an option."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Sets it. An absent one changes nothing."""
        if values is None:
            return
        if namespace.prompt is not None:
            parser.error(
                f'two prompts were given, "{namespace.prompt}" and "{values}": write one, in quotation marks'
            )
        namespace.prompt = text(values)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:
        # longer than a file name can be
        return False


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """PROMPT or --prompts, and the images that belong to a prompt."""
    parser.add_argument("prompt", nargs="?", action=Prompt, metavar="PROMPT", help='may be empty ("")')
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help='one JSON object a line: "id" and "prompt", and as you like "images", "seed", "rewrite_text", "style", "negative", '
        '"size", "steps", "cfg", "image_cfg", "schedule", "max_tiles", "mask", "denoise", which win over the options',
    )
    parser.add_argument(
        "--image",
        nargs="+",
        action=Files,
        default=[],
        metavar="FILE",
        help="input images, the first one first",
    )
    parser.add_argument(
        "--max-tiles",
        type=positive,
        metavar="N",
        help="tiles per input image, default 10: the VLM reads an image in this many parts at most, the small whole (thumbnail) "
        "included; more show more detail and take longer",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="length of a rewrite (default: what suits the model)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="with --prompts: make again what is there (default: a second call makes what is missing)",
    )


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """--quiet, --verbose and --strict."""
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("--quiet", action="store_true", help="print results, warnings and errors only")
    talk.add_argument(
        "--verbose", action="store_true", help="print everything that is known, and where an error arose"
    )
    parser.add_argument("--strict", action="store_true", help="treat warnings about a prompt as errors")


def add_style_option(parser: argparse.ArgumentParser) -> None:
    """--style."""
    parser.add_argument(
        "--style",
        type=text,
        metavar="NAME",
        help=f"how the VLM rewrites: {', '.join(STYLES)}, or what to tell it in your own words",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the weights (default: float32, for large generators bfloat16)",
    )


def dtype_of(arguments: argparse.Namespace) -> Any:
    """The type that --dtype names; None leaves it to the model."""
    import torch

    return None if arguments.dtype is None else getattr(torch, arguments.dtype)


def add_part_options(parser: argparse.ArgumentParser, *, vae: bool = True) -> None:
    """--model, --vlm and --vae."""
    parser.add_argument("--model", default="tiny", metavar="tiny|FILE", help="the generator")
    parser.add_argument("--vlm", default="tiny", metavar="tiny|DIR", help="the vision-language model")
    if vae:
        parser.add_argument("--vae", default="tiny", metavar="tiny|FILE|DIR", help="the autoencoder")
        parser.add_argument(
            "--lora",
            nargs="+",
            action=Files,
            default=[],
            metavar="FILE[:STRENGTH]",
            help="adapters (LoRA, LoKr, DoRA) of the generator, merged in this order; strength 1 if none is given",
        )


def size(text: str) -> tuple[int, int]:
    """WxH in pixels."""
    width, _, height = text.lower().replace("\u00d7", "x").partition("x")
    if not (_is_whole(width) and _is_whole(height)):
        raise argparse.ArgumentTypeError(f'"{text}" is no size: write width x height in pixels, like 128x128')
    return int(width), int(height)


def text(given: str) -> str:
    """Text in UTF-8, also where the locale is POSIX's and the system took its bytes for ASCII."""
    try:
        return given.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        # told by `check_text`, which knows whose text it is
        return given


def _is_whole(text: str) -> bool:
    # Python refuses to convert thousands of digits
    return text.isascii() and text.isdecimal() and len(text) < 20


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not _is_whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" was given, a whole number of at least 1 is needed')
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 to 2^63 - 1."""
    if not _is_whole(text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f'"{text}" was given, a whole number from 0 to 2^63 - 1 is needed')
    return int(text)


def finite(text: str) -> float:
    """A number, neither infinite nor NaN."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f'"{text}" was given, a number is needed')
    return number


def scale(text: str) -> float:
    """A guidance scale from 0 to 100, the range of ComfyUI's samplers."""
    number = finite(text)
    if not 0 <= number <= MAX_CFG:
        raise argparse.ArgumentTypeError(f'"{text}" was given, a number from 0 to {MAX_CFG:g} is needed')
    return number


def share(text: str) -> float:
    """A number above 0, up to 1."""
    number = finite(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f'"{text}" was given, a number above 0 and up to 1 is needed')
    return number


def training_needs(error: ModuleNotFoundError) -> ConfigError:
    """The error for a package that only training needs."""
    return ConfigError(f'training needs {error.name}, which is not installed: pip install "unifusion[train]"')
