"""The command `unifusion`: draw, rewrite, train, evaluate, inspect.

Torch and transformers are imported by the commands that need them, so that `--help` answers at once.
A user's error ends in one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from .commands import evaluate, generate, inspect, rewrite, train
from .errors import ConfigError, UniFusionError
from .evaluation import SUITE_NAMES
from .styles import STYLES

USER_ERROR = 2
INTERRUPTED = 130
SAMPLES = 500  # per row of an evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    os.environ.setdefault(
        "HF_HUB_DISABLE_PROGRESS_BARS", "1"
    )  # transformers' own bar for weights that load in no time
    with _warnings_on_stderr():
        try:
            arguments = _build_parser().parse_args(argv)
            arguments.run(arguments)
        except (UniFusionError, OSError) as error:
            print(f"unifusion: {' '.join(str(error).split())}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("unifusion: interrupted", file=sys.stderr)
            return INTERRUPTED
    return 0


@contextlib.contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Show each of the package's own warnings once. The handler goes again: a caller of `main` may have its own."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in shown
        shown.add(text)
        return new

    handler = logging.StreamHandler()
    handler.addFilter(is_new)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    package = logging.getLogger(__package__)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)


# Options ------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse with one sentence instead of a usage text in front of every error."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="unifusion", description="Pictures from prompts, by way of a vision-language model."
    )
    parser.add_argument("--version", action="version", version=f"unifusion {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate_options = commands.add_parser("generate", help="draw pictures")
    generate_options.set_defaults(run=generate.generate)
    _add_prompt_options(generate_options)
    _add_style_option(generate_options)
    how = generate_options.add_mutually_exclusive_group()
    how.add_argument(
        "--rewrite",
        action=argparse.BooleanOptionalAction,
        help="have the VLM write what to show, or draw from the prompt as it is (default: what suits the model)",
    )
    how.add_argument("--rewrite-text", metavar="TEXT", help="your own rewrite, taken as it is")
    generate_options.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="pixels; default: the first picture's size, or the model's (128x128, Krea 2 1024x1024)",
    )
    generate_options.add_argument(
        "--schedule",
        metavar="NAME",
        help='times of the steps: what the model is known to draw best with; for a Krea 2 file "krea-2 raw" or '
        '"krea-2 turbo" (default: what suits the model, turbo for Krea 2)',
    )
    generate_options.add_argument(
        "--steps", type=_positive, metavar="N", help="default: the schedule's; 20, Krea 2 raw 28, turbo 8"
    )
    generate_options.add_argument(
        "--cfg",
        type=_finite,
        metavar="X",
        help="guidance, 1 = off; default: the schedule's; 2, Krea 2 raw 5.5, turbo 1",
    )
    generate_options.add_argument(
        "--image-cfg",
        type=_finite,
        metavar="X",
        help="guidance by the input pictures, apart from the text's (default: guided together)",
    )
    generate_options.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="default 0; a batch counts on from it"
    )
    generate_options.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="pictures per prompt; default 1"
    )
    _add_part_options(generate_options)
    generate_options.add_argument(
        "--offload",
        action="store_true",
        help="weights wait in main memory and visit the graphics card layer by layer: slower, for cards too small for them",
    )
    generate_options.add_argument(
        "--out", type=Path, help="PNG file (default: the next free unifusion-N.png); a folder with --prompts"
    )

    rewrite_options = commands.add_parser("rewrite", help="write what the target picture shows")
    rewrite_options.set_defaults(run=rewrite.rewrite_prompts)
    _add_prompt_options(rewrite_options)
    _add_style_option(rewrite_options)
    rewrite_options.add_argument(
        "--seed", type=_seed, metavar="N", help="another wording; default: the likeliest one"
    )
    _add_part_options(rewrite_options, vae=False)
    rewrite_options.add_argument(
        "--out", type=Path, help='JSONL file for the lines of --prompts with "rewrite_text" added'
    )

    train_options = commands.add_parser("train", help="run a training recipe")
    train_options.set_defaults(run=train.train_recipe)
    train_options.add_argument("recipe", metavar="RECIPE")
    train_options.add_argument("--out", type=Path, metavar="DIR", help="default runs/RECIPE")
    train_options.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    train_options.add_argument(
        "--dry-run", action="store_true", help="show what would run, and how long it would take"
    )
    train_options.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe's loop, e.g. num_steps=100",
    )

    evaluate_options = commands.add_parser("evaluate", help="measure a model on the small world")
    evaluate_options.set_defaults(run=evaluate.evaluate_suites)
    evaluate_options.add_argument(
        "--suite",
        nargs="+",
        metavar="NAME",
        help=f"one or more of {', '.join(SUITE_NAMES)}; default all that judge the given model",
    )
    _add_part_options(evaluate_options)
    evaluate_options.add_argument(
        "--samples", type=_positive, default=SAMPLES, metavar="N", help=f"per measurement; default {SAMPLES}"
    )
    evaluate_options.add_argument("--seed", type=_seed, default=0, metavar="N", help="default 0")
    evaluate_options.add_argument(
        "--out", type=Path, metavar="FILE.json", help="the numbers, and sheets of pictures beside them"
    )
    evaluate_options.add_argument(
        "--page", type=Path, metavar="FILE.md", help="a page with plots of some suites, as PROOF.md"
    )
    evaluate_options.add_argument(
        "--report",
        nargs="+",
        default=[],
        type=Path,
        metavar="FILE.json",
        help="for --page: what --out wrote before, in the place of suites that need not run again",
    )

    inspect_options = commands.add_parser("inspect", help="what a generator, a VAE or a VLM folder is")
    inspect_options.set_defaults(run=inspect.inspect)
    inspect_options.add_argument("file", metavar="FILE", help="tiny, a safetensors file, or a VLM folder")
    return parser


def _add_prompt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='may be empty ("")')
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help='lines of {"id", "prompt", "images", "seed", ...}'
    )
    parser.add_argument(
        "--image", nargs="+", action="extend", default=[], type=Path, metavar="FILE", help="input pictures"
    )
    parser.add_argument(
        "--max-tiles", type=_positive, default=10, metavar="N", help="per input picture; default 10"
    )


def _add_style_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--style",
        metavar="NAME",
        default=next(iter(STYLES)),
        help=f"how the VLM rewrites: {', '.join(STYLES)}, or what to tell it in your own words",
    )


def _add_part_options(parser: argparse.ArgumentParser, *, vae: bool = True) -> None:
    parser.add_argument("--model", default="tiny", metavar="tiny|FILE", help="the generator")
    parser.add_argument("--vlm", default="tiny", metavar="tiny|DIR")
    if vae:
        parser.add_argument("--vae", default="tiny", metavar="tiny|FILE|DIR")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'"{text}" is no size: write width x height in pixels, like 128x128')
    return int(width), int(height)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" was given, a whole number of at least 1 is needed')
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f'"{text}" was given, a whole number from 0 to 2^63 - 1 is needed')
    return int(text)


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f'"{text}" was given, a number is needed')
    return number
