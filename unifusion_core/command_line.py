"""The command `unifusion`: draw, rewrite, train, evaluate, inspect.

Torch and transformers are imported by the commands that need them, so that `--help` answers at once.
A user's error ends in one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import ConfigError, PromptError, UniFusionError, VLMError
from .evaluation import SHIPPED_SUITES, SUITE_NAMES
from .styles import STYLES, with_style

if TYPE_CHECKING:  # for annotations alone
    from torch import Tensor

    from .contracts import VLMRequest
    from .training.loop import LoopConfig, Task

USER_ERROR = 2
INTERRUPTED = 130
SAMPLES = 500  # per row of an evaluation
PIXELS_PER_BATCH = 16 * 128 * 128  # drawn at once: more is no faster on a CPU
VARIED_TEMPERATURE = 0.7  # of a rewrite with a seed; without one the likeliest words are taken
LINE_KEYS = {"id": str, "prompt": str, "images": list, "seed": int, "rewrite_text": str}


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

    generate = commands.add_parser("generate", help="draw pictures")
    generate.set_defaults(run=_generate)
    _add_prompt_options(generate)
    _add_style_option(generate)
    how = generate.add_mutually_exclusive_group()
    how.add_argument(
        "--rewrite",
        action=argparse.BooleanOptionalAction,
        help="have the VLM write what to show, or draw from the prompt as it is (default: what suits the model)",
    )
    how.add_argument("--rewrite-text", metavar="TEXT", help="your own rewrite, taken as it is")
    generate.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="pixels; default: the first picture's size, or the model's (128x128, Krea 2 1024x1024)",
    )
    generate.add_argument(
        "--schedule",
        metavar="NAME",
        help='times of the steps: what the model is known to draw best with; for a Krea 2 file "krea-2 raw" or '
        '"krea-2 turbo" (default: what suits the model, turbo for Krea 2)',
    )
    generate.add_argument(
        "--steps", type=_positive, metavar="N", help="default: the schedule's; 20, Krea 2 raw 28, turbo 8"
    )
    generate.add_argument(
        "--cfg",
        type=_finite,
        metavar="X",
        help="guidance, 1 = off; default: the schedule's; 2, Krea 2 raw 5.5, turbo 1",
    )
    generate.add_argument(
        "--image-cfg",
        type=_finite,
        metavar="X",
        help="guidance by the input pictures, apart from the text's (default: guided together)",
    )
    generate.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="default 0; a batch counts on from it"
    )
    generate.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="pictures per prompt; default 1"
    )
    _add_part_options(generate)
    generate.add_argument(
        "--offload",
        action="store_true",
        help="weights wait in main memory and visit the graphics card layer by layer: slower, for cards too small for them",
    )
    generate.add_argument(
        "--out", type=Path, help="PNG file (default: the next free unifusion-N.png); a folder with --prompts"
    )

    rewrite = commands.add_parser("rewrite", help="write what the target picture shows")
    rewrite.set_defaults(run=_rewrite)
    _add_prompt_options(rewrite)
    _add_style_option(rewrite)
    rewrite.add_argument(
        "--seed", type=_seed, metavar="N", help="another wording; default: the likeliest one"
    )
    _add_part_options(rewrite, vae=False)
    rewrite.add_argument(
        "--out", type=Path, help='JSONL file for the lines of --prompts with "rewrite_text" added'
    )

    train = commands.add_parser("train", help="run a training recipe")
    train.set_defaults(run=_train)
    train.add_argument("recipe", metavar="RECIPE")
    train.add_argument("--out", type=Path, metavar="DIR", help="default runs/RECIPE")
    train.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    train.add_argument(
        "--dry-run", action="store_true", help="show what would run, and how long it would take"
    )
    train.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe's loop, e.g. num_steps=100",
    )

    evaluate = commands.add_parser("evaluate", help="measure a model on the small world")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument(
        "--suite",
        nargs="+",
        default=SHIPPED_SUITES,
        metavar="NAME",
        help=f"one or more of {', '.join(SUITE_NAMES)}; default all that judge the given model",
    )
    _add_part_options(evaluate)
    evaluate.add_argument(
        "--samples", type=_positive, default=SAMPLES, metavar="N", help=f"per measurement; default {SAMPLES}"
    )
    evaluate.add_argument("--seed", type=_seed, default=0, metavar="N", help="default 0")
    evaluate.add_argument(
        "--out", type=Path, metavar="FILE.json", help="the numbers, and sheets of pictures beside them"
    )

    evaluate.add_argument(
        "--page", type=Path, metavar="FILE.md", help="a page with plots of designs, verifi, edits and layers"
    )

    inspect = commands.add_parser("inspect", help="what a generator, a VAE or a VLM folder is")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("file", metavar="FILE", help="tiny, a safetensors file, or a VLM folder")
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


# Prompts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One prompt: the only one of a call, or a line of a JSONL file (`source`)."""

    id: str
    prompt: str
    images: tuple[Path, ...]
    seed: int
    rewrite_text: str | None
    source: dict[str, Any]

    def request(self, style: str, *, keep_rewrite: bool = True) -> VLMRequest:
        """Reads the pictures."""
        from .contracts import VLMRequest
        from .pipeline import read_picture_file

        pictures = [read_picture_file(path) for path in self.images]
        request = VLMRequest(
            prompt=self.prompt, pictures=pictures, decoded=self.rewrite_text if keep_rewrite else None
        )
        return with_style(request, style)


def _lines(arguments: argparse.Namespace) -> list[_Line]:
    """The prompts of a call. ConfigError or PromptError for none, two sources of them, or a line that is none."""
    seed, images, text = arguments.seed or 0, tuple(arguments.image), getattr(arguments, "rewrite_text", None)
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise ConfigError("give either a PROMPT or --prompts FILE.jsonl")
    if text is not None and not text.strip():
        raise PromptError("the rewrite is empty: give its words, or use --no-rewrite")
    if arguments.prompts is None:
        return [_Line(id="", prompt=arguments.prompt, images=images, seed=seed, rewrite_text=text, source={})]
    if images or text is not None:
        raise ConfigError(
            '--image and --rewrite-text belong to one PROMPT; in a file write "images" and "rewrite_text"'
        )
    if arguments.out is None:
        raise ConfigError("--prompts needs --out")
    lines: list[_Line] = []
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


def _read_line(written: str, file: Path, number: int, seed: int) -> _Line:
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
    return _Line(
        id=line["id"],
        prompt=line["prompt"],
        images=images,
        seed=line.get("seed", seed),
        rewrite_text=line.get("rewrite_text"),
        source=line,
    )


# Commands -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture to draw."""

    line: _Line
    request: VLMRequest
    seed: int
    size: tuple[int, int]
    path: Path


def _generate(arguments: argparse.Namespace) -> None:
    lines = _lines(arguments)
    from .checkpoint import read_config
    from .pipeline import DrawSettings, Pipeline, generator_path, write_picture_file
    from .presets import drawing_for
    from .vlm.prompts import join_features

    _check_schedule(arguments.schedule)
    _check_style(arguments.style, arguments.rewrite is not False)
    drawing = drawing_for(read_config(generator_path(arguments.model)), arguments.schedule)
    jobs = list(_jobs(lines, arguments, drawing.size))  # read all before the models: mistakes show at once
    pipeline = Pipeline.load(arguments.model, arguments.vlm, arguments.vae, offload=arguments.offload)
    rewriting = pipeline.rewrites_by_default if arguments.rewrite is None else arguments.rewrite
    _check_style(arguments.style, rewriting)
    batches = list(_batches(jobs))
    steps = arguments.steps or drawing.steps
    with _progress(steps * len(batches), "drawing") as step_done:
        for batch in batches:
            settings = DrawSettings(
                size=batch[0].size,
                steps=steps,
                cfg=drawing.cfg if arguments.cfg is None else arguments.cfg,
                schedule=drawing.schedule,
                image_cfg=1.0 if arguments.image_cfg is None else arguments.image_cfg,
                max_tiles=arguments.max_tiles,
            )
            requests, seeds = [job.request for job in batch], [job.seed for job in batch]
            if rewriting:
                rewrites = pipeline.rewrite(requests, max_tiles=arguments.max_tiles)
                requests = [each.request for each in rewrites]
                features = join_features([each.features for each in rewrites])
            else:
                features = pipeline.read(requests, arguments.max_tiles)
            apart = None
            if arguments.image_cfg is not None:  # the pictures with an empty prompt
                alone = [
                    dataclasses.replace(request, prompt="", style="", decoded=None) for request in requests
                ]
                apart = pipeline.read(alone, arguments.max_tiles)
            pictures = pipeline.draw(features, seeds, settings, step_done, picture_only=apart)
            for job, request, picture in zip(batch, requests, pictures, strict=True):
                record = {
                    "prompt": request.prompt,
                    "images": [str(path) for path in job.line.images],
                    "style": request.style,
                    "rewrite": request.decoded,
                    "seed": job.seed,
                    "settings": dataclasses.asdict(settings),
                    "model": arguments.model,
                    "version": __version__,
                }
                write_picture_file(job.path, picture, record)
                print(job.path, flush=True)


def _check_schedule(name: str | None) -> None:
    from .flow.schedule import SCHEDULES

    if name is not None and name not in SCHEDULES:
        raise ConfigError(f'there is no schedule "{name}"; choose one of {", ".join(SCHEDULES)}')


def _check_style(style: str, rewriting: bool) -> None:
    if STYLES.get(style, style) and not rewriting:
        raise ConfigError("--style says how to rewrite: add --rewrite, or leave --style out")


def _jobs(
    lines: Sequence[_Line], arguments: argparse.Namespace, usual_size: tuple[int, int]
) -> Iterator[_Job]:
    """`--batch` pictures per line, with seeds that count on."""
    from .sizes import check_size, size_of_picture, warn_of_other_size

    stem = _out_stem(arguments)
    for line in lines:
        request = line.request(arguments.style, keep_rewrite=arguments.rewrite is not False)
        if arguments.image_cfg is not None and not request.pictures:
            raise ConfigError("--image-cfg guides by input pictures: give --image, or leave --image-cfg out")
        size = arguments.size or (size_of_picture(request.pictures[0]) if request.pictures else usual_size)
        if len(request.pictures) == 1:
            warn_of_other_size(size, size_of_picture(request.pictures[0]))
        for number in range(arguments.batch):
            name = (line.id or stem.name) + (f"-{number + 1}" if arguments.batch > 1 else "")
            path = stem.with_name(f"{name}.png")
            yield _Job(line=line, request=request, seed=line.seed + number, size=check_size(size), path=path)


def _out_stem(arguments: argparse.Namespace) -> Path:
    """Where pictures go, without ".png". Makes the folder: better to fail before the drawing than after it."""
    out: Path | None = arguments.out
    if out is None:
        free = (n for n in itertools.count(1) if not any(Path().glob(f"unifusion-{n:04}*.png")))
        stem = Path(f"unifusion-{next(free):04}")
    elif arguments.prompts is not None:
        stem = out / "id"  # each line has its own name there
    elif out.suffix.lower() in ("", ".png"):
        stem = out.with_suffix("")
    else:
        raise ConfigError(f'--out is "{out}": pictures are written as PNG, choose a name that ends in .png')
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem


def _batches(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Jobs of one size, as many as fit."""
    by_size: dict[tuple[int, int], list[_Job]] = {}
    for job in jobs:
        by_size.setdefault(job.size, []).append(job)
    for (width, height), same in by_size.items():
        fitting = max(1, PIXELS_PER_BATCH // (width * height))
        for start in range(0, len(same), fitting):
            yield same[start : start + fitting]


def _rewrite(arguments: argparse.Namespace) -> None:
    lines = _lines(arguments)
    if arguments.prompts is None and arguments.out is not None:
        raise ConfigError("--out belongs to --prompts; a single rewrite is printed")
    from .checkpoint import read_config
    from .pipeline import default_device, default_dtype, generator_path, vlm_path
    from .rewriting import rewrite
    from .vlm.folder import load_vlm

    requests = [line.request(arguments.style) for line in lines]
    config = read_config(generator_path(arguments.model))
    spec = config.vlm  # whose chat template it is
    backbone = load_vlm(vlm_path(arguments.vlm), default_dtype(config), default_device(), spec=spec)
    backbone.check_fits(spec)
    temperature = 0.0 if arguments.seed is None else VARIED_TEMPERATURE
    texts: list[str] = []
    with _progress(len(lines), "rewriting") as line_done:
        for request in requests:
            text = request.decoded
            if text is None:  # what has a rewrite keeps it
                (done,) = rewrite(
                    backbone,
                    spec,
                    [request],
                    max_tiles=arguments.max_tiles,
                    temperature=temperature,
                    seed=arguments.seed or 0,
                )
                text = str(done.request.decoded)
            texts.append(text)
            line_done()
    if arguments.out is None:
        print(texts[0])
        return
    written = [
        json.dumps({**line.source, "rewrite_text": t}, ensure_ascii=False)
        for line, t in zip(lines, texts, strict=True)
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(written) + "\n", encoding="utf-8")
    print(arguments.out)


def _train(arguments: argparse.Namespace) -> None:
    try:
        from .training.loop import train
        from .training.recipes import RECIPES
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'training needs {error.name}, which is not installed: pip install "unifusion[train]"'
        ) from error
    if arguments.recipe not in RECIPES:
        raise ConfigError(f'there is no recipe "{arguments.recipe}"; choose one of {", ".join(RECIPES)}')
    out = arguments.out or Path("runs") / arguments.recipe
    task, config = RECIPES[arguments.recipe]()
    config = _changed(config, arguments.set)
    if arguments.dry_run:
        _describe_run(task, config)
    else:
        train(task, config, out, recipe=arguments.recipe, resume=arguments.resume)


def _changed(config: LoopConfig, changes: Sequence[str]) -> LoopConfig:
    """The loop's configuration with KEY=VALUE put in, each of the field's own type."""
    types = typing.get_type_hints(type(config))
    types.pop("batch_size")  # tasks draw their streams by it
    values: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in types:
            raise ConfigError(f'--set {change}: there is no "{key}" to set; choose from {", ".join(types)}')
        try:
            values[key] = types[key](text)
        except ValueError as error:
            raise ConfigError(f"--set {change}: {key} needs a value of type {types[key].__name__}") from error
    return dataclasses.replace(config, **values)


def _describe_run(task: Task, config: LoopConfig) -> None:
    """Configuration, size and the time it will take, from three measured steps."""
    parameters = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    print(json.dumps(dataclasses.asdict(config), indent=1))
    print(f"parameters       {_millions(parameters)}")
    print(f"steps            {config.num_steps} of {config.batch_size} items")
    seconds = _seconds_per_step(task, config)
    hours = seconds * config.num_steps / 3600
    print(f"time             {seconds:.3f} s per step, {hours:.2f} h in all (evaluations not counted)")


def _seconds_per_step(task: Task, config: LoopConfig, steps: int = 3) -> float:
    import torch

    from .pipeline import default_device
    from .training.optimizer import MuonAdamW, parameter_groups

    device = torch.device(default_device())
    task.model.to(device)
    task.place(device)
    groups = parameter_groups(
        task.model,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        weight_decay=config.weight_decay,
        not_muon=task.not_muon,
    )
    optimizer = MuonAdamW(groups)
    started = 0.0
    for step in range(steps + 1):  # the first one only warms up
        if step == 1:
            started = time.perf_counter()
        first = step * config.batch_size
        batch = task.collate([task.item(i) for i in range(first, first + config.batch_size)]).to(device)
        loss, _ = task.loss(task.model, batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / steps


def _evaluate(arguments: argparse.Namespace) -> None:
    unknown = [name for name in arguments.suite if name not in SUITE_NAMES]
    if unknown:
        raise ConfigError(f'there is no suite "{unknown[0]}"; choose from {", ".join(SUITE_NAMES)}')
    from .evaluation.suite import Subject
    from .evaluation.suites import evaluate

    subject = Subject(model=arguments.model, vlm=arguments.vlm, vae=arguments.vae)
    evaluate(
        arguments.suite,
        subject,
        samples=arguments.samples,
        seed=arguments.seed,
        out=arguments.out,
        page=arguments.page,
    )
    for written in (arguments.out, arguments.page):
        if written is not None:
            print(f"\n{written}")


def _inspect(arguments: argparse.Namespace) -> None:
    from . import embedded

    path = embedded.GENERATOR if arguments.file == "tiny" else Path(arguments.file)
    if path.is_dir() and not _is_of_diffusers(path):
        title, facts, blocks = _vlm_facts(path)
    else:
        from .checkpoint import read_layout

        tensors, metadata = read_layout(path)
        if "taesd_decoder.1.weight" in tensors:
            title, facts, blocks = _vae_facts(tensors, metadata)
        else:
            title, facts, blocks = _generator_facts(tensors, metadata, path.name)
    print(f"{path}: {title}")
    for name, fact in facts.items():
        print(f"{name:16} {fact}")
    for name, content in blocks.items():
        print(f"{name}:\n{json.dumps(content, indent=1)}" if content else f"{name}: not recorded")


def _is_of_diffusers(folder: Path) -> bool:
    config = folder / "config.json"
    whole = (folder / "model_index.json").is_file()
    return whole or (
        config.is_file() and '"_class_name"' in config.read_text(encoding="utf-8", errors="replace")
    )


_Facts = tuple[str, dict[str, Any], dict[str, dict[str, Any]]]  # title, one-line facts, JSON blocks


def _generator_facts(tensors: dict[str, Tensor], metadata: dict[str, str], name: str) -> _Facts:
    from .checkpoint import CONFIG_KEY, split_generator_tensors
    from .memory import SIZE, fits, gigabytes, taps_of_tiles, working_bytes
    from .presets import DRAWN_WITH
    from .quantized import without_parts

    stored, config, training = split_generator_tensors(tensors, metadata, name)
    weights = without_parts(stored)
    spec, total = config.vlm, _count(weights.values())
    pooling = _count(t for key, t in weights.items() if key.startswith("txt"))
    types = sorted({str(t.dtype).removeprefix("torch.") for t in weights.values()})
    drawing = DRAWN_WITH.get(config.latent_format)
    facts = {
        "parameters": f"{_millions(total)}: LAP and refiner {_millions(pooling)}, DiT {_millions(total - pooling)}",
        "weights": f"{gigabytes(sum(t.nbytes for t in stored.values()))} in the file ({', '.join(types)})",
        "VLM it needs": f"{spec.family}, {spec.num_layers} layers of width {spec.hidden_size}",
        "its weights": spec.fingerprint or "any of that size",
        "tapped layers": ", ".join(map(str, spec.taps)),
        "their states": taps_of_tiles(config),
        "latents": config.latent_format,
        "drawn with": f"{drawing.schedule}, {drawing.steps} steps, cfg {drawing.cfg:g}"
        if drawing
        else "unknown",
        "trained sizes": ", ".join(f"{w}x{h}" for w, h in config.trained_sizes) or "not recorded",
        "one step": f"about {gigabytes(working_bytes(config))} at {SIZE[0]}x{SIZE[1]}, beside the weights; of which fit",
        **fits(config, total),
    }
    configured = any(key.endswith(CONFIG_KEY) for key in (*metadata, *tensors))
    title = "UniFusion generator" if configured else "Krea 2 generator (raw or turbo, which no file tells)"
    return title, facts, {"config": dataclasses.asdict(config), "training": training}


def _vae_facts(tensors: dict[str, Tensor], metadata: dict[str, str]) -> _Facts:
    facts = {
        "parameters": _millions(_count(tensors.values())),
        "latents": f"{tensors['taesd_decoder.1.weight'].shape[1]} channels, one cell for 8 x 8 pixels",
    }
    return "VAE in the TAESD layout", facts, {"training": json.loads(metadata.get("training", "{}"))}


def _vlm_facts(folder: Path) -> _Facts:
    """From the folder's files alone: transformers would take seconds to import."""
    from .checkpoint import read_layout

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLMError(f"{folder} is no VLM folder: its config.json cannot be read ({error})") from error
    text = config.get("text_config", config)
    files = sorted(folder.glob("*.safetensors"))
    record = folder / "training.json"
    facts = {
        "parameters": _millions(sum(_count(read_layout(file)[0].values()) for file in files)),
        "family": config.get("model_type"),
        "language model": f"{text.get('num_hidden_layers')} layers of width {text.get('hidden_size')}",
        "longest chat": f"{text.get('max_position_embeddings')} tokens",
    }
    return (
        "VLM folder",
        facts,
        {"training": json.loads(record.read_text("utf-8")) if record.is_file() else {}},
    )


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


@contextlib.contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[..., None]]:
    """A bar with the time left on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, leave=False, disable=None) as bar:

        def done(*_: object) -> None:
            bar.update()

        yield done
