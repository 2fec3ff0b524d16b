"""`unifusion evaluate`: measure a model on the small world."""

from __future__ import annotations

import argparse

from ..errors import ConfigError
from ..evaluation import SHIPPED_SUITES, SUITE_NAMES


def evaluate_suites(arguments: argparse.Namespace) -> None:
    """Print the tables of suites. Raises ConfigError for one that does not exist."""
    if arguments.report and arguments.page is None:
        raise ConfigError("--report is for --page: add it, or leave --report out")
    names = arguments.suite or ([] if arguments.report else SHIPPED_SUITES)
    unknown = [name for name in names if name not in SUITE_NAMES]
    if unknown:
        raise ConfigError(f'there is no suite "{unknown[0]}"; choose from {", ".join(SUITE_NAMES)}')
    if arguments.out is not None and not names:
        raise ConfigError("--out is for the numbers of suites that run: add --suite, or leave --out out")
    from ..evaluation.suite import Subject
    from ..evaluation.suites import evaluate

    subject = Subject(model=arguments.model, vlm=arguments.vlm, vae=arguments.vae)
    evaluate(
        names,
        subject,
        samples=arguments.samples,
        seed=arguments.seed,
        out=arguments.out,
        page=arguments.page,
        reports=arguments.report,
    )
    for written in (arguments.out, arguments.page):
        if written is not None:
            print(f"\n{written}")
