"""`unifusion rewrite`: write what the target picture shows."""

from __future__ import annotations

import argparse
import json

from ..errors import ConfigError
from .prompts import progress, read_lines

VARIED_TEMPERATURE = 0.7  # of a rewrite with a seed; without one the likeliest words are taken


def rewrite_prompts(arguments: argparse.Namespace) -> None:
    """Print the VLM's rewrite of a prompt, or write a JSONL file with those of many. Raises UniFusionError for what has none."""
    lines = read_lines(arguments)
    if arguments.prompts is None and arguments.out is not None:
        raise ConfigError("--out belongs to --prompts; a single rewrite is printed")
    from ..checkpoint import read_config
    from ..pipeline import default_device, default_dtype, generator_path, vlm_path
    from ..rewriting import rewrite
    from ..vlm.folder import load_vlm

    requests = [line.request(arguments.style) for line in lines]
    config = read_config(generator_path(arguments.model))
    spec = config.vlm  # whose chat template it is
    backbone = load_vlm(vlm_path(arguments.vlm), default_dtype(config), default_device(), spec=spec)
    backbone.check_fits(spec)
    temperature = 0.0 if arguments.seed is None else VARIED_TEMPERATURE
    texts: list[str] = []
    with progress(len(lines), "rewriting") as line_done:
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
