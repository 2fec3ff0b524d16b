"""How long each suite takes with the embedded model: seconds at two numbers of samples, so that the fixed part is told apart.

OMP_NUM_THREADS=1 python tests/benchmarks/suites.py --samples 2 6

The lists of `unifusion evaluate` and `unifusion shapes evaluate` have estimates; this measures them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

from unifusion_core.cli.evaluate import SAMPLES
from unifusion_core.cli.main import main
from unifusion_core.evaluation.suites import BENCHMARKS, COMPARISONS, SUITES
from unifusion_core.shapes.benchmarks import write_benchmark
from unifusion_core.shapes.evaluation.suites import OF_THE_MODEL


def seconds(*words: str) -> float:
    """Of a call that must succeed."""
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    if status:
        raise SystemExit(f"unifusion {' '.join(words)} ended with status {status}")
    return time.monotonic() - began


def call_of(command: str, name: str, folder: Path) -> list[str]:
    """The words that run a suite, a benchmark on shapes judged by the embedded VLM."""
    if command == "evaluate" and name not in SUITES:
        base = "geneval2" if name in COMPARISONS else name
        data = write_benchmark(base, folder / "data" / base, 40)
        of = ["--of", base] if name in COMPARISONS else []
        return ["evaluate", "--suite", name, "--data", str(data), "--judge", "tiny", *of]
    return [*command.split(), "--suite", name]


def measure(command: str, name: str, samples: list[int]) -> None:
    """Prints the seconds at each number of samples, and what they mean for the default number."""
    with tempfile.TemporaryDirectory() as folder:
        words = call_of(command, name, Path(folder))
        on_data = "--data" in words
        taken = [
            seconds(
                *words, "--samples", str(n), "--out", f"{folder}/{n}" if on_data else f"{folder}/{n}.json"
            )
            for n in samples
        ]
    # what does not depend on the number may seem to fall
    per_sample = max(0.0, (taken[-1] - taken[0]) / (samples[-1] - samples[0]))
    fixed = taken[0] - per_sample * samples[0]
    print(
        f"{command} --suite {name}: {', '.join(f'{t:.1f} s at {n}' for t, n in zip(taken, samples, strict=True))}; "
        f"{per_sample:.2f} s per sample, {(fixed + SAMPLES * per_sample) / 60:.1f} min at {SAMPLES}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs=2, default=[2, 6])
    parser.add_argument("--suite", nargs="+")
    chosen = parser.parse_args()
    for command, names in (
        ("evaluate", [*SUITES, *BENCHMARKS, *COMPARISONS]),
        ("shapes evaluate", [*OF_THE_MODEL]),
    ):
        for name in names:
            if chosen.suite is None or name in chosen.suite:
                measure(command, name, chosen.samples)
