"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..errors import ConfigError
from ..vlm.styles import STYLES


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, without a usage text in front."""

    def error(self, message: str) -> None:  # type: ignore[override]  (raising is a way of not returning)
        raise ConfigError(f"{message}; see {self.prog} --help")


Commands = "argparse._SubParsersAction[Parser]"


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """PROMPT or --prompts, and the images that belong to a prompt."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='may be empty ("")')
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help='lines of {"id", "prompt", "images", "seed", ...}'
    )
    parser.add_argument(
        "--image", nargs="+", action="extend", default=[], type=Path, metavar="FILE", help="input images"
    )
    parser.add_argument(
        "--max-tiles",
        type=positive,
        default=10,
        metavar="N",
        help="tiles per input image, thumbnail included; default 10",
    )


def add_style_option(parser: argparse.ArgumentParser) -> None:
    """--style."""
    parser.add_argument(
        "--style",
        metavar="NAME",
        default=next(iter(STYLES)),
        help=f"how the VLM rewrites: {', '.join(STYLES)}, or what to tell it in your own words",
    )


def add_part_options(parser: argparse.ArgumentParser, *, vae: bool = True) -> None:
    """--model, --vlm and --vae."""
    parser.add_argument("--model", default="tiny", metavar="tiny|FILE", help="the generator")
    parser.add_argument("--vlm", default="tiny", metavar="tiny|DIR", help="the vision-language model")
    if vae:
        parser.add_argument("--vae", default="tiny", metavar="tiny|FILE|DIR", help="the autoencoder")
        parser.add_argument(
            "--lora",
            nargs="+",
            default=[],
            type=Path,
            metavar="FILE",
            help="adapters (LoRA, LoKr, DoRA) of the generator, merged in this order",
        )


def size(text: str) -> tuple[int, int]:
    """WxH in pixels."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'"{text}" is no size: write width x height in pixels, like 128x128')
    return int(width), int(height)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" was given, a whole number of at least 1 is needed')
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 to 2^63 - 1."""
    if not text.isdecimal() or int(text) >= 2**63:
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


def training_needs(error: ModuleNotFoundError) -> ConfigError:
    """The error for a package that only training needs."""
    return ConfigError(f'training needs {error.name}, which is not installed: pip install "unifusion[train]"')
