"""`unifusion generate`: draw pictures."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import ConfigError, ShapeError
from ..vlm.styles import STYLES
from .options import add_part_options, add_prompt_options, add_style_option, finite, positive, seed, size
from .prompts import Line, progress, read_lines

if TYPE_CHECKING:
    # for annotations alone
    from ..contracts import Request
    from ..pipeline import SamplingSettings


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture to draw."""

    line: Line
    request: Request
    seed: int
    size: tuple[int, int]
    path: Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """The command and its options."""
    parser = commands.add_parser("generate", help="draw images")
    parser.set_defaults(run=generate)
    add_prompt_options(parser)
    add_style_option(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--rewrite",
        action=argparse.BooleanOptionalAction,
        help="have the VLM rewrite the prompt, or draw from the prompt as it is (default: what suits the model)",
    )
    how.add_argument("--rewrite-text", metavar="TEXT", help="your own rewrite, taken as it is")
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="pixels; default: the first image's size, or the model's own"
    )
    parser.add_argument(
        "--schedule",
        metavar="NAME",
        help='times of the steps; for Krea 2 "krea-2 raw" or "krea-2 turbo" (default: what suits the model, turbo for Krea 2)',
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="default: what suits the model")
    parser.add_argument(
        "--cfg", type=finite, metavar="X", help="guidance scale, 1 = off (default: what suits the model)"
    )
    parser.add_argument(
        "--image-cfg",
        type=finite,
        metavar="X",
        help="guidance by the input images, apart from the text's (default: guided together)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="default 0; a batch counts on from it"
    )
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images per prompt; default 1")
    add_part_options(parser)
    parser.add_argument(
        "--offload",
        action="store_true",
        help="weights wait in main memory and visit the graphics card layer by layer: slower, for cards too small for them",
    )
    parser.add_argument(
        "--out", type=Path, help="PNG file (default: the next free unifusion-N.png); a folder with --prompts"
    )


def generate(arguments: argparse.Namespace) -> None:
    """Draw and write a PNG for each prompt, with what made it in its metadata. Raises UniFusionError for what cannot be drawn."""
    lines = read_lines(arguments)
    from ..checkpoints.generator_file import GeneratorFile
    from ..flow.schedule import check_schedule
    from ..images import write_image_file
    from ..pipeline import Pipeline
    from ..vlm.prompt_check import warn_of_unread_parts

    if arguments.schedule is not None:
        check_schedule(arguments.schedule)
    file = GeneratorFile(arguments.model)
    rewriting = file.spec.rewrites if arguments.rewrite is None else arguments.rewrite
    _check_style(arguments, rewriting)
    # all are read before the models are loaded, so that mistakes show at once
    jobs = list(_jobs(lines, arguments, file.spec.size))
    pipeline = Pipeline.load(
        file, arguments.vlm, arguments.vae, offload=arguments.offload, lora=arguments.lora
    )

    warn_of_unread_parts(pipeline.backbone.tokenizer, [job.request for job in jobs])

    def settings(job: _Job) -> SamplingSettings:
        return pipeline.settings(
            size=job.size,
            steps=arguments.steps,
            cfg=arguments.cfg,
            schedule=arguments.schedule,
            image_cfg=arguments.image_cfg,
            max_tiles=arguments.max_tiles,
        )

    groups = list(_batches(jobs))
    with progress(settings(jobs[0]).steps * len(groups), "drawing") as step_done:
        for batch in groups:
            requests, seeds = [job.request for job in batch], [job.seed for job in batch]
            how = settings(batch[0])
            drawn = pipeline.generate(requests, seeds, how, rewriting=rewriting, on_step=step_done)
            for job, each in zip(batch, drawn, strict=True):
                record = {
                    "prompt": each.request.prompt,
                    "images": [str(path) for path in job.line.images],
                    "style": each.request.style,
                    "rewrite": each.request.rewrite,
                    "seed": job.seed,
                    "settings": dataclasses.asdict(how),
                    "model": arguments.model,
                    "version": __version__,
                }
                write_image_file(job.path, each.pixels, record)
                print(job.path, flush=True)


def _check_style(arguments: argparse.Namespace, rewriting: bool) -> None:
    if rewriting or not STYLES.get(arguments.style, arguments.style):
        return
    if arguments.rewrite_text is not None:  # beside which there is no --rewrite
        raise ConfigError("--style says how to rewrite, and --rewrite-text is the rewrite: leave --style out")
    raise ConfigError("--style says how to rewrite: add --rewrite, or leave --style out")


def _jobs(
    lines: Sequence[Line], arguments: argparse.Namespace, usual_size: tuple[int, int]
) -> Iterator[_Job]:
    """`--batch` pictures per line, with seeds that count on."""
    from ..images import check_size, edited_size, warn_of_other_size

    stem = _out_stem(arguments)
    for line in lines:
        request = line.request(arguments.style, keep_rewrite=arguments.rewrite is not False)
        if arguments.image_cfg is not None and not request.images:
            raise ConfigError("--image-cfg guides by input pictures: give --image, or leave --image-cfg out")
        drawn = arguments.size or (_size_of_first(line, request) if request.images else usual_size)
        edited = edited_size(request.images)
        if edited is not None:
            warn_of_other_size(drawn, edited)
        for number in range(arguments.batch):
            name = (line.id or stem.name) + (f"-{number + 1}" if arguments.batch > 1 else "")
            path = stem.with_name(f"{name}.png")
            yield _Job(line=line, request=request, seed=line.seed + number, size=check_size(drawn), path=path)


def _size_of_first(line: Line, request: Request) -> tuple[int, int]:
    from ..images import MAX_SIDE, size_for_image

    try:
        return size_for_image(request.images[0])
    except ShapeError as error:
        height, width = request.images[0].shape[1:]
        raise ShapeError(
            f"{line.images[0]} is {width}x{height}, too large to be drawn in its own size: give --size, with sides of up to "
            f"{MAX_SIDE} pixels"
        ) from error


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
    """Jobs of one size, as many as are drawn at once."""
    from ..pipeline import batches

    by_size: dict[tuple[int, int], list[_Job]] = {}
    for job in jobs:
        by_size.setdefault(job.size, []).append(job)
    for of_one_size, same in by_size.items():
        for part in batches(len(same), of_one_size):
            yield same[part]
