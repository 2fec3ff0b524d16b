"""`unifusion generate`: draw pictures."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import ConfigError, UniFusionError
from ..vlm.styles import STYLES, check_style
from .options import (
    add_device_options,
    add_part_options,
    add_prompt_options,
    add_style_option,
    add_talk_options,
    dtype_of,
    finite,
    positive,
    scale,
    seed,
    share,
    size,
    text,
)
from .output import Output
from .processes import Processes
from .prompts import Line, PromptFile, check_text, read_prompts
from .report import Report, progress, strictly

if TYPE_CHECKING:
    # for annotations alone
    from ..checkpoints.generator_file import GeneratorFile
    from ..contracts import Request
    from ..pipeline import Generated, Pipeline, SamplingSettings, Start

logger = logging.getLogger(__name__)

# lines that are read ahead, to draw those of one size together, as long as their images are small
READ_AHEAD = 64
READ_AHEAD_BYTES = 256_000_000
# of the rewrites of a batch after the first, so that they differ where the words leave things open
VARIED_TEMPERATURE = 0.3


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture to draw: the `number`-th of its line."""

    line: Line
    number: int
    request: Request
    seed: int
    settings: SamplingSettings
    start: Start | None
    temperature: float


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
    how.add_argument("--rewrite-text", type=text, metavar="TEXT", help="your own rewrite, taken as it is")
    parser.add_argument(
        "--temperature",
        type=finite,
        metavar="X",
        help="variety of rewrites by their seed, 0 = the likeliest words (default: 0 for the first image of a batch, "
        f"{VARIED_TEMPERATURE} for the others)",
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="pixels; default: the first image's size as far as the model draws it well, or the model's own",
    )
    parser.add_argument(
        "--schedule",
        metavar="NAME",
        help='times of the steps; for Krea 2 "krea-2 raw" or "krea-2 turbo" (default: what suits the model, turbo for Krea 2)',
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="default: what suits the model")
    parser.add_argument(
        "--cfg", type=scale, metavar="X", help="guidance scale, 1 = off (default: what suits the model)"
    )
    parser.add_argument(
        "--image-cfg",
        type=scale,
        metavar="X",
        help="guidance by the input images, apart from the text's (default: guided together)",
    )
    parser.add_argument("--negative", type=text, metavar="TEXT", help="what guidance leads away from")
    parser.add_argument(
        "--denoise",
        type=share,
        metavar="X",
        help="below 1: start from the first input image, and keep more of it the smaller X is (img2img)",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="draw anew where this image is white; the first input image stays where it is black (inpainting)",
    )
    parser.add_argument("--seed", type=seed, metavar="N", help="default 0; a batch counts on from it")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images per prompt; default 1")
    parser.add_argument("--grid", action="store_true", help="write the images of a batch as one picture")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="PICTURE",
        help="take prompt, seed and settings from a picture that this command wrote; other options win",
    )
    add_part_options(parser)
    add_device_options(parser)
    parser.add_argument(
        "--offload",
        action="store_true",
        help="weights wait in main memory and visit the graphics card layer by layer: slower, for cards too small for them",
    )
    parser.add_argument(
        "--out",
        metavar="FILE|DIR|-",
        help="PNG, JPEG or WebP file, a folder, or - for stdout (default: next free unifusion-N.png); with --prompts a folder",
    )
    add_talk_options(parser)


def generate(arguments: argparse.Namespace) -> int:
    """Draw and write an image for each prompt, with what made it in its metadata. Returns the exit status.

    Raises UniFusionError for a call or a single prompt that cannot be drawn. A line of a file that cannot be drawn is reported,
    and the others go on.
    """
    if arguments.like is not None:
        _take_from(arguments.like, arguments)
    _check(arguments)
    prompts = read_prompts(arguments)
    from ..checkpoints.generator_file import GeneratorFile
    from ..flow.schedule import check_schedule
    from ..pipeline import Pipeline

    if arguments.schedule is not None:
        check_schedule(arguments.schedule)
    report, processes = Report(arguments), Processes()
    file = GeneratorFile(arguments.model)
    rewriting = file.spec.rewrites if arguments.rewrite is None else arguments.rewrite
    _check_style(arguments, rewriting)
    output = Output(arguments)
    if isinstance(prompts, PromptFile) and processes.is_first:
        for bad in prompts.bad:
            report.failure(bad.where, bad.error)
    if isinstance(prompts, PromptFile) and not prompts.count:
        return report.summary(processes, "drawn")

    def load() -> Pipeline:
        return Pipeline.load(
            file,
            arguments.vlm,
            arguments.vae,
            device=arguments.device or processes.device,
            dtype=dtype_of(arguments),
            offload=arguments.offload,
            lora=arguments.lora,
        )

    try:
        work = _Work(arguments, output, report, file, load, rewriting=rewriting)
        if isinstance(prompts, Line):
            work.draw_single(prompts)
            return 0
        share = sum(1 for _ in processes.share(range(prompts.count)))
        work.draw_lines(processes.share(prompts.lines()), share)
        return report.summary(processes, "drawn")
    finally:
        processes.end()


class _Work:
    """Draws lines in batches of one size and writes each image when it is drawn."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        output: Output,
        report: Report,
        file: GeneratorFile,
        load: Callable[[], Pipeline],
        *,
        rewriting: bool,
    ) -> None:
        self.arguments, self.output, self.report, self.rewriting = arguments, output, report, rewriting
        self.file, self._load = file, load
        self._pipeline: Pipeline | None = None
        self._told: SamplingSettings | None = None

    @property
    def pipeline(self) -> Pipeline:
        """Loaded when something is left to draw."""
        if self._pipeline is None:
            self._pipeline = self._load()
        return self._pipeline

    def draw_single(self, line: Line) -> None:
        """Draws the only prompt of a call. Raises UniFusionError if it cannot be drawn."""
        jobs = list(self._jobs(line))
        batches = list(_batches(jobs))
        drawn: list[Generated] = []
        with progress(jobs[0].settings.steps * len(batches), "drawing") as step_done:
            for batch in batches:
                done = self._draw(batch, step_done)
                drawn += done
                if not self.arguments.grid:
                    for job, each in zip(batch, done, strict=True):
                        self._write(job, each)
        if self.arguments.grid:
            self._write_grid(jobs, drawn)

    def draw_lines(self, lines: Iterable[Line], count: int) -> None:
        """Draws lines of a file. One that fails is reported."""
        with progress(count, "drawing") as line_done:
            jobs: list[_Job] = []
            for number, line in enumerate(lines, start=1):
                with self._reported(line):
                    missing = [n for n in range(self.output.batch) if not self.output.exists(line.id, n)]
                    if missing:
                        jobs += [job for job in self._jobs(line) if job.number in missing]
                    else:
                        self._keep(line)
                pixels = sum(image.nbytes for job in jobs for image in job.request.images)
                if number % READ_AHEAD == 0 or pixels > READ_AHEAD_BYTES:
                    self._draw_jobs(jobs)
                    jobs = []
                line_done()
            self._draw_jobs(jobs)

    def _draw_jobs(self, jobs: Sequence[_Job]) -> None:
        """Draws and writes jobs of several lines, and counts the lines."""
        failed: set[str] = set()
        for batch in _batches(jobs):
            failed |= self._draw_batch(batch)
        self.report.done += len({job.line.id for job in jobs} - failed)

    def _keep(self, line: Line) -> None:
        """Counts a line whose images are there. Warns if the first was drawn from something else."""
        from ..images import read_record

        self.report.kept += 1
        path = self.output.exists(line.id, 0)
        assert path is not None
        record = read_record(path)
        rewrite = line.rewrite_text
        if (record["prompt"], record["seed"]) != (line.prompt, line.option("seed", self.arguments) or 0) or (
            rewrite is not None and self.arguments.rewrite is not False and record["rewrite"] != rewrite
        ):
            logger.warning(
                "%s: %s is kept, which was drawn from other words or another seed (--overwrite draws it again)",
                line.where,
                path,
            )

    @contextlib.contextmanager
    def _reported(self, line: Line) -> Iterator[None]:
        """Turns an error into a report about the line."""
        try:
            yield
        except (UniFusionError, OSError, RuntimeError, MemoryError) as error:
            self.report.failure(line.where, error)

    def _draw_batch(self, batch: Sequence[_Job]) -> set[str]:
        """Draws and writes jobs. Those of a batch that fails are drawn one by one. Returns the ids of the failed."""
        try:
            drawn = self._draw(batch)
        except (UniFusionError, OSError, RuntimeError, MemoryError) as error:
            if len(batch) == 1:
                self.report.failure(batch[0].line.where, error)
                return {batch[0].line.id}
            return set().union(*(self._draw_batch([job]) for job in batch))
        failed: set[str] = set()
        for job, each in zip(batch, drawn, strict=True):
            try:
                self._write(job, each)
            except UniFusionError as error:
                self.report.failure(job.line.where, error)
                failed.add(job.line.id)
        return failed

    def _jobs(self, line: Line) -> Iterator[_Job]:
        """The images of a line, with seeds that count on. Warns of what the model cannot draw; raises with --strict."""
        with strictly(self.arguments.strict):
            first = self._plan(line)
            # loaded after what can be refused without it
            for sentence in self.pipeline.outside(first.request, first.settings):
                logger.warning("%s%s", f"{line.where}: " if line.where else "", sentence)
        varied = self.rewriting and first.request.rewrite is None and self.arguments.temperature is None
        for number in range(self.arguments.batch):
            yield dataclasses.replace(
                first,
                number=number,
                seed=(first.seed + number) % 2**63,
                temperature=VARIED_TEMPERATURE if varied and number else first.temperature,
            )

    def _plan(self, line: Line) -> _Job:
        """The first image of a line."""
        from ..contracts import MAX_TILES
        from ..images import edited_size, read_image_file, size_to_draw, warn_of_other_size
        from ..pipeline import settings_for, start_from

        def chosen(name: str) -> Any:
            return line.option(name, self.arguments)

        spec = self.file.spec
        style = chosen("style") or next(iter(STYLES))
        request = line.request(spec, style, keep_rewrite=self.arguments.rewrite is not False)
        if request.style and not (self.rewriting and request.rewrite is None):
            raise ConfigError(
                "a style says how to rewrite, and nothing is rewritten: leave it out, or rewrite"
            )
        _check_images(line, self.arguments)
        drawn = chosen("size")
        if drawn is None and request.images:
            drawn = size_to_draw(request.images[0], spec.max_pixels(self.file.config))
        check_text(chosen("negative") or "")
        settings = settings_for(
            spec,
            size=drawn,
            steps=chosen("steps"),
            cfg=chosen("cfg"),
            schedule=chosen("schedule"),
            image_cfg=chosen("image_cfg"),
            max_tiles=chosen("max_tiles") or MAX_TILES,
            negative=chosen("negative") or "",
            denoise=chosen("denoise") or 1.0,
        )
        if (edited := edited_size(request.images)) is not None:
            warn_of_other_size(settings.size, edited)
        mask = chosen("mask")
        return _Job(
            line=line,
            number=0,
            request=request,
            seed=chosen("seed") or 0,
            settings=settings,
            start=start_from(
                request.images, settings.denoise, None if mask is None else read_image_file(mask)
            ),
            temperature=self.arguments.temperature or 0.0,
        )

    def _draw(self, batch: Sequence[_Job], on_step: Callable[..., None] | None = None) -> list[Generated]:
        """Draws jobs of one size and settings."""
        settings = batch[0].settings
        if settings != self._told:
            self._told = settings
            width, height = settings.size
            self.report.fact(
                f"{width}x{height}, {settings.steps} steps, cfg {settings.cfg:g}, {settings.schedule}"
                + (f", denoise {settings.denoise:g}" if settings.denoise < 1 else "")
            )
            self.report.detail(
                f"device {self.pipeline.device}, {str(self.pipeline.dtype).removeprefix('torch.')}"
            )
        started = time.perf_counter()
        rewriting = dataclasses.replace(
            self.pipeline.spec.rewriting,
            temperature=batch[0].temperature,
            seed=[job.seed for job in batch],
            **(
                {}
                if self.arguments.max_new_tokens is None
                else {"max_new_tokens": self.arguments.max_new_tokens}
            ),
        )
        starts = None if batch[0].start is None else [job.start for job in batch if job.start is not None]
        drawn = self.pipeline.generate(
            [job.request for job in batch],
            [job.seed for job in batch],
            settings,
            rewriting=self.rewriting,
            rewrite_settings=rewriting,
            starts=starts,
            on_step=on_step,
        )
        self._seconds = (time.perf_counter() - started) / len(batch)
        return drawn

    def _write(self, job: _Job, drawn: Generated) -> None:
        """Writes an image and tells of it."""
        name, replaced = self.output.write(job.line.id, job.number, drawn.pixels, self._record(job, drawn))
        self._tell(job, drawn)
        if replaced:
            self.report.fact(f"replaced {name}, which was there")
        if self.output.stdout:
            self.report.fact(f"written to {name}")
        else:
            self.report.result(name)

    def _write_grid(self, jobs: Sequence[_Job], drawn: Sequence[Generated]) -> None:
        from ..images import tile_images

        for job, each in zip(jobs, drawn, strict=True):
            self._tell(job, each)
        records = [self._record(job, each) for job, each in zip(jobs, drawn, strict=True)]
        pixels = tile_images([each.pixels for each in drawn])
        name, replaced = self.output.write(jobs[0].line.id, 0, pixels, records[0] | {"grid": records})
        if replaced:
            self.report.fact(f"replaced {name}, which was there")
        self.report.result(name)

    def _tell(self, job: _Job, drawn: Generated) -> None:
        if drawn.request.rewrite is not None:
            self.report.fact(f"rewrite: {drawn.request.rewrite}")
        self.report.fact(f"seed {job.seed}, {self._seconds:.1f} s")

    def _record(self, job: _Job, drawn: Generated) -> dict[str, Any]:
        mask = job.line.option("mask", self.arguments)
        return {
            "prompt": drawn.request.prompt,
            "images": [_shown(path) for path in job.line.images],
            "mask": None if mask is None else _shown(mask),
            "style": drawn.request.style,
            "rewrite": drawn.request.rewrite,
            "temperature": job.temperature,
            "seed": job.seed,
            "settings": dataclasses.asdict(job.settings),
            "model": _shown(Path(self.arguments.model)),
            "lora": [_shown(path) for path in self.arguments.lora],
            "version": __version__,
        }


def _shown(path: Path) -> str:
    """A file's name for the record, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "replace")


def _batches(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Jobs that are drawn alike, as many as are drawn at once."""
    from ..pipeline import batches

    alike: dict[object, list[_Job]] = {}
    for job in jobs:
        alike.setdefault(
            (job.settings, job.temperature, job.start is None, bool(job.request.images)), []
        ).append(job)
    for same in alike.values():
        for part in batches(len(same), same[0].settings.size):
            yield same[part]


# Checks -------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for options that contradict each other."""
    if arguments.grid and arguments.prompts is not None:
        raise ConfigError("--grid joins the images of one PROMPT: leave it out, or --prompts")
    if arguments.grid and arguments.batch == 1:
        raise ConfigError("--grid joins the images of a batch: give --batch, or leave --grid out")
    if arguments.overwrite and arguments.prompts is None:
        raise ConfigError("--overwrite belongs to --prompts; a single --out FILE is replaced anyway")
    if arguments.offload and arguments.device == "cpu":
        raise ConfigError("--offload computes on a graphics card, and --device cpu does not: leave one out")
    if arguments.rewrite is False:
        for name in ("temperature", "max_new_tokens"):
            if getattr(arguments, name) is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is about rewrites, and --no-rewrite makes none: leave one out"
                )
    if arguments.temperature is not None and arguments.temperature < 0:
        raise ConfigError(f"--temperature is {arguments.temperature:g}: give 0 or more")
    if arguments.style is not None:
        check_style(arguments.style)


def _check_style(arguments: argparse.Namespace, rewriting: bool) -> None:
    style = arguments.style or next(iter(STYLES))
    if not STYLES.get(style, style) or (rewriting and arguments.rewrite_text is None):
        return
    # beside which there is no --rewrite
    if arguments.rewrite_text is not None:
        raise ConfigError("--style says how to rewrite, and --rewrite-text is the rewrite: leave --style out")
    raise ConfigError("--style says how to rewrite: add --rewrite, or leave --style out")


def _check_images(line: Line, arguments: argparse.Namespace) -> None:
    """Raises ConfigError for options about input images where there are none."""
    for name in ("image_cfg", "mask", "denoise"):
        value = line.option(name, arguments)
        if not line.images and value is not None and (name, value) != ("denoise", 1):
            raise ConfigError(
                f"--{name.replace('_', '-')} is about input images: give --image, or leave --{name.replace('_', '-')} out"
            )


def _take_from(picture: Path, arguments: argparse.Namespace) -> None:
    """Fills in what the call leaves open from the record of a picture. A prompt of the call's own is rewritten anew."""
    from ..images import read_record

    record = read_record(picture)
    settings = record["settings"]
    own_prompt = arguments.prompt is not None or arguments.prompts is not None
    own_rewrite = arguments.rewrite is not None or arguments.rewrite_text is not None
    if not own_prompt:
        arguments.prompt = record["prompt"]
        arguments.image = arguments.image or [Path(path) for path in record.get("images", ())]
        if arguments.mask is None and record.get("mask"):
            arguments.mask = Path(record["mask"])
        if not own_rewrite and arguments.style is None and arguments.temperature is None:
            # the words that were drawn, so that the picture is the same
            arguments.rewrite_text = record.get("rewrite")
            arguments.rewrite = None if arguments.rewrite_text is not None else False
    if arguments.seed is None:
        arguments.seed = record["seed"]
    if arguments.model == "tiny" and record.get("model"):
        arguments.model = record["model"]
    arguments.lora = arguments.lora or [Path(path) for path in record.get("lora", ())]
    for name in ("size", "steps", "cfg", "image_cfg", "schedule", "max_tiles", "negative", "denoise"):
        if getattr(arguments, name) is None and settings.get(name) is not None:
            value = settings[name]
            setattr(arguments, name, tuple(value) if name == "size" else value)
    if arguments.denoise == 1:
        arguments.denoise = None
