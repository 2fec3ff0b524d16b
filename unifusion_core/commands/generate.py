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
from ..styles import STYLES
from .prompts import Line, progress, read_lines

if TYPE_CHECKING:  # for annotations alone
    from ..contracts import VLMRequest

PIXELS_PER_BATCH = 16 * 128 * 128  # drawn at once: more is no faster on a CPU


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture to draw."""

    line: Line
    request: VLMRequest
    seed: int
    size: tuple[int, int]
    path: Path


def generate(arguments: argparse.Namespace) -> None:
    """Draw and write a PNG for each prompt, with all that made it in its metadata. Raises UniFusionError for what cannot be
    drawn."""
    lines = read_lines(arguments)
    from ..checkpoint import read_config
    from ..pipeline import DrawSettings, Pipeline, generator_path, write_picture_file
    from ..presets import drawing_for
    from ..rewriting import REWRITE_BY_DEFAULT
    from ..vlm.prompts import join_features

    _check_schedule(arguments.schedule)
    config = read_config(generator_path(arguments.model))
    by_default = REWRITE_BY_DEFAULT[config.vlm.kept_tokens]
    rewriting = by_default if arguments.rewrite is None else arguments.rewrite
    _check_style(arguments, rewriting)
    drawing = drawing_for(config, arguments.schedule)
    jobs = list(_jobs(lines, arguments, drawing.size))  # read all before the models: mistakes show at once
    pipeline = Pipeline.load(arguments.model, arguments.vlm, arguments.vae, offload=arguments.offload)
    batches = list(_batches(jobs))
    steps = arguments.steps or drawing.steps
    with progress(steps * len(batches), "drawing") as step_done:
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
    from ..flow.schedule import SCHEDULES

    if name is not None and name not in SCHEDULES:
        raise ConfigError(f'there is no schedule "{name}"; choose one of {", ".join(SCHEDULES)}')


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
    from ..sizes import check_size, edited_size, warn_of_other_size

    stem = _out_stem(arguments)
    for line in lines:
        request = line.request(arguments.style, keep_rewrite=arguments.rewrite is not False)
        if arguments.image_cfg is not None and not request.pictures:
            raise ConfigError("--image-cfg guides by input pictures: give --image, or leave --image-cfg out")
        size = arguments.size or (_size_of_first(line, request) if request.pictures else usual_size)
        edited = edited_size(request.pictures)
        if edited is not None:
            warn_of_other_size(size, edited)
        for number in range(arguments.batch):
            name = (line.id or stem.name) + (f"-{number + 1}" if arguments.batch > 1 else "")
            path = stem.with_name(f"{name}.png")
            yield _Job(line=line, request=request, seed=line.seed + number, size=check_size(size), path=path)


def _size_of_first(line: Line, request: VLMRequest) -> tuple[int, int]:
    from ..sizes import MAX_SIDE, size_of_picture

    try:
        return size_of_picture(request.pictures[0])
    except ShapeError as error:
        height, width = request.pictures[0].shape[1:]
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
    """Jobs of one size, as many as fit."""
    by_size: dict[tuple[int, int], list[_Job]] = {}
    for job in jobs:
        by_size.setdefault(job.size, []).append(job)
    for (width, height), same in by_size.items():
        fitting = max(1, PIXELS_PER_BATCH // (width * height))
        for start in range(0, len(same), fitting):
            yield same[start : start + fitting]
