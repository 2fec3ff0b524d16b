"""`unifusion rewrite`: write what the target picture shows."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Container
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import ConfigError, UniFusionError
from ..files import check_writable
from ..vlm.styles import STYLES
from .options import (
    add_device_options,
    add_part_options,
    add_prompt_options,
    add_style_option,
    add_talk_options,
    dtype_of,
    seed,
)
from .processes import Processes
from .prompts import Line, PromptFile, read_prompts
from .report import Report, progress, strictly

if TYPE_CHECKING:
    # for annotations alone
    from ..vlm.backbone import VLMBackbone

logger = logging.getLogger(__name__)

# of a rewrite with a seed; without one the likeliest words are taken
VARIED_TEMPERATURE = 0.7


def add_command(commands: argparse._SubParsersAction) -> None:
    """The command and its options."""
    parser = commands.add_parser("rewrite", help="write what the target image shows")
    parser.set_defaults(run=rewrite_prompts)
    add_prompt_options(parser)
    add_style_option(parser)
    parser.add_argument("--seed", type=seed, metavar="N", help="another wording; default: the likeliest one")
    add_part_options(parser, vae=False)
    add_device_options(parser)
    parser.add_argument(
        "--out", type=Path, help='JSONL file for the lines of --prompts with "rewrite_text" added'
    )
    add_talk_options(parser)


def rewrite_prompts(arguments: argparse.Namespace) -> int:
    """Print the VLM's rewrite of a prompt, or write a JSONL file with those of many, line by line. Returns the exit status.

    Raises UniFusionError for a call or a single prompt that has none. A line of a file that has none is reported, and the others
    go on.
    """
    if arguments.prompts is None and arguments.out is not None:
        raise ConfigError("--out belongs to --prompts; a single rewrite is printed")
    prompts = read_prompts(arguments)
    report, processes = Report(arguments), Processes()
    write_one = _Rewriter(arguments, processes)
    if isinstance(prompts, Line):
        report.result(write_one(prompts))
        return 0
    try:
        return _rewrite_lines(arguments, prompts, write_one, report, processes)
    finally:
        processes.end()


def _rewrite_lines(
    arguments: argparse.Namespace,
    prompts: PromptFile,
    write_one: Callable[[Line], str],
    report: Report,
    processes: Processes,
) -> int:
    check_writable(arguments.out)
    if processes.is_first:
        for bad in prompts.bad:
            report.failure(bad.where, bad.error)
        if arguments.overwrite:
            arguments.out.unlink(missing_ok=True)
        _drop_half_line(arguments.out)
    processes.wait()
    done = _written_in(arguments.out, {line.id for line in prompts.lines()})
    # all processes append to it: a line is one call of the system
    with arguments.out.open("ab", buffering=0) as file, progress(prompts.count, "rewriting") as line_done:
        for line in processes.share(prompts.lines()):
            if line.id in done:
                report.kept += 1
                if done[line.id] != line.prompt:
                    logger.warning(
                        "%s: the rewrite that is kept is of another prompt (--overwrite makes it again)",
                        line.where,
                    )
            else:
                _append(line, write_one, report, file)
            line_done()
    status = report.summary(processes, "rewritten")
    if processes.is_first:
        report.result(str(arguments.out))
    return status


def _append(line: Line, write_one: Callable[[Line], str], report: Report, file: BinaryIO) -> None:
    try:
        content = {**line.source, "rewrite_text": write_one(line)}
    except (UniFusionError, OSError, RuntimeError, MemoryError) as error:
        report.failure(line.where, error)
        return
    file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
    report.done += 1


def _drop_half_line(path: Path) -> None:
    """Makes the file if it is missing, and cuts off a line that a killed call has not finished."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                end = start + last + 1
                break
            end = start
        file.truncate(end)


def _written_in(path: Path, ids: Container[str]) -> dict[str, str]:
    """Id and prompt of the lines that an earlier call wrote. Raises ConfigError for a file of other lines."""
    done: dict[str, str] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                content = json.loads(raw)
                known = content["id"] in ids and isinstance(content["rewrite_text"], str)
                done[content["id"]] = content["prompt"]
            except (ValueError, KeyError, TypeError, RecursionError):
                known = False
            if not known:
                raise ConfigError(
                    f"{path}, line {number} is no rewrite of a line of this prompt file: give another --out, or --overwrite"
                )
    return done


class _Rewriter:
    """The rewrite of a line. The VLM is loaded for the first one that has none."""

    def __init__(self, arguments: argparse.Namespace, processes: Processes) -> None:
        from ..checkpoints.generator_file import GeneratorFile

        self.arguments, self.device = arguments, arguments.device or processes.device
        self.file = GeneratorFile(arguments.model)
        self.settings = self.file.spec.rewriting
        if arguments.seed is not None:
            self.settings = replace(self.settings, temperature=VARIED_TEMPERATURE, seed=arguments.seed)
        if arguments.max_new_tokens is not None:
            self.settings = replace(self.settings, max_new_tokens=arguments.max_new_tokens)

    @cached_property
    def backbone(self) -> VLMBackbone:
        """The VLM of the call."""
        from .. import zoo
        from ..pipeline import check_device, default_device
        from ..vlm.folder import load_vlm

        # the generator's, because it says the chat template
        spec = self.file.config.vlm
        device = check_device(self.device or default_device())
        dtype = dtype_of(self.arguments) or self.file.default_dtype
        backbone = load_vlm(zoo.path_of(self.arguments.vlm, "vlm"), dtype, device, spec=spec)
        backbone.check_fits(spec)
        return backbone

    def __call__(self, line: Line) -> str:
        """Warns of what the model cannot draw; with --strict, raises PromptError. Raises UniFusionError if there is no
        rewrite."""
        from ..contracts import MAX_TILES
        from ..vlm.rewrite import describe_image, rewrite

        with strictly(self.arguments.strict):
            request = line.request(self.file.spec, line.option("style", self.arguments) or next(iter(STYLES)))
            # what has a rewrite keeps it
            if request.rewrite is not None:
                return request.rewrite
            spec = self.file.config.vlm
            not_drawn = self.file.spec.not_drawn(
                request, lambda image: describe_image(self.backbone, spec, image, self.file.spec.rewriting)
            )
            for sentence in not_drawn:
                logger.warning("%s%s", f"{line.where}: " if line.where else "", sentence)
        tiles = line.option("max_tiles", self.arguments) or MAX_TILES
        (done,) = rewrite(self.backbone, spec, [request], self.settings, max_tiles=tiles)
        return done.text
