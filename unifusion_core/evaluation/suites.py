"""All suites by name, and how they are run: `unifusion evaluate --suite NAME`."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from .autoencoder import evaluate_autoencoder
from .designs import evaluate_designs, evaluate_edit_training, evaluate_picture_designs
from .edits import evaluate_edits
from .layers import evaluate_layers
from .page import check_page, read_reports, write_page
from .report import as_report, header, line, write_report
from .speed import evaluate_speed
from .suite import Row, Sampling, Subject, Suite
from .swap import evaluate_swap
from .text_to_image import evaluate_text_to_image
from .verifi import evaluate_verifi
from .vlm import evaluate_vlm
from .vlm_speed import evaluate_vlm_speed

SUITES: dict[str, Suite] = {
    "text-to-image": evaluate_text_to_image,
    "verifi": evaluate_verifi,
    "edits": evaluate_edits,
    "swap": evaluate_swap,
    "vlm": evaluate_vlm,
    "autoencoder": evaluate_autoencoder,
    "layers": evaluate_layers,
    "speed": evaluate_speed,
    "vlm-speed": evaluate_vlm_speed,
    "designs": evaluate_designs,
    "edit-training": evaluate_edit_training,
    "picture-designs": evaluate_picture_designs,
}


def evaluate(
    names: Sequence[str],
    subject: Subject,
    *,
    samples: int,
    seed: int = 0,
    out: Path | None = None,
    page: Path | None = None,
    reports: Sequence[Path] = (),
    say: Callable[[str], None] = print,
) -> dict[str, list[Row]]:
    """Run suites; each row is said as soon as it is known. JSON goes to `out`, sheets of pictures beside it; `page` gets
    the proof page of those suites that it has figures for, run now or before (`reports`: what `out` got then).

    Raises ConfigError for an unknown suite, too few samples, or a page that cannot be made, before anything is run.
    """
    for name in names:
        if name not in SUITES:
            raise ConfigError(f'there is no suite "{name}"; choose from {", ".join(SUITES)}')
    earlier = read_reports(reports)
    if page is not None:
        check_page(page, [*names, *(name for report in earlier for name in report["suites"])])
    if samples < 1:
        raise ConfigError(f"{samples} samples were asked for; at least 1 is needed")
    conditions: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": str(subject.model),
        "vlm": str(subject.vlm),
        "vae": str(subject.vae),
        "samples": samples,
        "seed": seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    results: dict[str, list[Row]] = {}
    for name in names:
        folder = out.with_name(f"{out.stem}-{name}") if out is not None else None
        say(header(name))
        results[name] = []
        for row in SUITES[name](subject, Sampling(samples=samples, seed=seed, pictures=folder)):
            say(line(row))
            results[name].append(row)
        if out is not None:
            # after every suite, so that a later failure loses nothing
            write_report(out, as_report(conditions, results))
    if page is not None:
        write_page([*earlier, as_report(conditions, results)], page)
    return results
