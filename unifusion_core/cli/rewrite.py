"""`unifusion rewrite`: write what the target picture shows."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError
from .options import add_part_options, add_prompt_options, add_style_option, seed
from .prompts import progress, read_lines

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
    parser.add_argument(
        "--out", type=Path, help='JSONL file for the lines of --prompts with "rewrite_text" added'
    )


def rewrite_prompts(arguments: argparse.Namespace) -> None:
    """Print the VLM's rewrite of a prompt, or write a JSONL file with those of many. Raises UniFusionError for what has none."""
    lines = read_lines(arguments)
    if arguments.prompts is None and arguments.out is not None:
        raise ConfigError("--out belongs to --prompts; a single rewrite is printed")
    from .. import zoo
    from ..checkpoints.generator_file import GeneratorFile
    from ..pipeline import default_device
    from ..vlm.folder import load_vlm
    from ..vlm.prompt_check import warn_of_unread_parts
    from ..vlm.rewrite import rewrite

    requests = [line.request(arguments.style) for line in lines]
    file = GeneratorFile(arguments.model)
    # the generator's, because it says the chat template
    spec = file.config.vlm
    backbone = load_vlm(zoo.path_of(arguments.vlm, "vlm"), file.default_dtype, default_device(), spec=spec)
    backbone.check_fits(spec)
    warn_of_unread_parts(backbone.tokenizer, requests)
    settings = file.spec.rewriting
    if arguments.seed is not None:
        settings = replace(settings, temperature=VARIED_TEMPERATURE, seed=arguments.seed)
    texts: list[str] = []
    with progress(len(lines), "rewriting") as line_done:
        for request in requests:
            text = request.rewrite
            # what has a rewrite keeps it
            if text is None:
                (done,) = rewrite(backbone, spec, [request], settings, max_tiles=arguments.max_tiles)
                text = done.text
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
