"""Runs suites by name. Rows are printed as they are measured and collected in a report."""

from __future__ import annotations

import datetime
import importlib
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import __version__
from ..errors import ConfigError
from ..files import check_writable
from .benchmarks.benchmark import Benchmark
from .report import as_report, header, line, write_report
from .subject import Row, Sampling, Subject, Suite
from .suites import BENCHMARKS

# "unifusion_core", under any name of the pack around it
PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]


def load_suite(place: Any) -> Any:
    """The function or class of "module:name" (module relative to this package). A function or a class is returned unchanged."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f".{module}", PACKAGE), name)


def load_benchmark(name: str, **options: Any) -> Benchmark:
    """A benchmark of `BENCHMARKS` by its name."""
    return load_suite(BENCHMARKS[name])(**options)


def evaluate(
    suites: Mapping[str, str | Suite],
    subject: Subject,
    *,
    samples: int,
    seed: int = 0,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, list[Row]]:
    """Runs suites and returns their rows.

    suites    name -> function, or "module:function"
    samples   per measurement, 1 or more
    out       JSON file for the report, written after every suite, so that a later failure loses nothing; sheets of images are
              written beside it
    say       prints a line

    Raises ConfigError for fewer than one sample, and for a report that cannot be written.
    """
    if samples < 1:
        raise ConfigError(f"{samples} samples were requested; at least 1 is needed")
    if out is not None:
        # better now than after hours of measuring
        check_writable(out)
    conditions: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": str(subject.model),
        "vlm": str(subject.vlm),
        "vae": str(subject.vae),
        "lora": [str(each) for each in subject.lora],
        "samples": samples,
        "seed": seed,
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    results: dict[str, list[Row]] = {}
    for name, place in suites.items():
        folder = out.with_name(f"{out.stem}-{name}") if out is not None else None
        say(header(name))
        results[name] = []
        for row in load_suite(place)(subject, Sampling(samples=samples, seed=seed, pictures=folder)):
            say(line(row))
            results[name].append(row)
        if out is not None:
            write_report(out, as_report(conditions, results))
    return results
