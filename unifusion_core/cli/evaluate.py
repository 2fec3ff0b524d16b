"""`unifusion evaluate`: measure a model, whatever it draws. The suites of coloured shapes are `unifusion shapes evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..evaluation.suites import ABOUT, BENCHMARKS, COMPARISONS, SUITES, About
from .options import add_part_options, finite, positive, seed, size

if TYPE_CHECKING:
    # for annotations alone
    from ..evaluation.benchmarks.benchmark import Benchmark, Judge

SAMPLES = 500
# judges of the demo
TINY, EXACT = "tiny", "exact"


def add_command(commands: argparse._SubParsersAction) -> None:
    """The command and its options."""
    on_data = (*BENCHMARKS, *COMPARISONS)
    parser = commands.add_parser("evaluate", help="measure a model: speed, and the field's benchmarks")
    parser.set_defaults(run=evaluate)
    add_suite_options(parser, [*SUITES, *on_data])
    data = parser.add_argument_group(
        "benchmarks", f"options of {', '.join(on_data)} (evaluation/README.md has a section for each)"
    )
    data.add_argument("--data", type=Path, metavar="PATH", help="the benchmark's file or folder")
    data.add_argument(
        "--judge",
        metavar="DIR",
        help=f'VLM folder that answers the questions; for shapes "{TINY}" (the embedded VLM) or "{EXACT}" (their scorer)',
    )
    data.add_argument(
        "--only", choices=("draw", "judge"), help="one step; a run goes on where the last one ended"
    )
    data.add_argument("--images", type=Path, metavar="DIR", help="judge these (ID-SEED.png), draw nothing")
    data.add_argument(
        "--seeds", type=positive, metavar="N", help="images per prompt, seeds counting on from --seed"
    )
    data.add_argument(
        "--of", choices=tuple(BENCHMARKS), help=f"the benchmark that {' and '.join(COMPARISONS)} draw"
    )
    data.add_argument("--style", default="", metavar="NAME", help="verifi: also rewrite in this style")
    system = data.add_mutually_exclusive_group()
    system.add_argument(
        "--system",
        default="",
        metavar="TEXT",
        help="verifi: also rewrite with this system text, not the model's own",
    )
    system.add_argument("--system-file", type=Path, metavar="FILE", help="the same, read from a text file")
    data.add_argument("--language", default="en", choices=("en", "cn"), help="gedit: of the instructions")
    data.add_argument("--against", type=Path, metavar="DIR", help="the difference from another run's --out")
    data.add_argument("--size", type=size, metavar="WxH", help="default: the first image's, or the model's")
    data.add_argument("--steps", type=positive, metavar="N", help="default: what suits the model")
    data.add_argument("--cfg", type=finite, metavar="X", help="default: what suits the model")
    data.add_argument("--schedule", metavar="NAME", help="default: what suits the model")
    data.add_argument(
        "--page", nargs="?", const=True, metavar="", help="write page.html, the report with plots, too"
    )
    # of earlier versions: answered with the command to write now
    parser.add_argument("--report", nargs="+", help=argparse.SUPPRESS)


def add_suite_options(parser: argparse.ArgumentParser, suites: Mapping[str, str] | list[str]) -> None:
    """Which suites, of what, on how many samples, and where the numbers go."""
    names = ", ".join(suites)
    parser.add_argument("--suite", nargs="+", metavar="NAME", help=f"of {names}; without it they are listed")
    add_part_options(parser)
    parser.add_argument(
        "--samples",
        type=positive,
        metavar="N",
        help=f"per measurement, default {SAMPLES}; of a benchmark's file default all",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="FILE.json for the numbers; a folder for a benchmark"
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the tables of suites, or without a name the list of suites. Raises ConfigError for one that does not exist, or that
    belongs to the demo."""
    from ..shapes.evaluation.suites import SUITES as OF_SHAPES

    names = arguments.suite or []
    benchmarks = {*BENCHMARKS, *COMPARISONS}
    on_data = [name for name in names if name in benchmarks]
    if arguments.report or (arguments.page and not on_data):
        raise ConfigError(
            "the page of results is made by unifusion shapes results DIR, from the reports (*.json) in a folder"
        )
    if not names:
        print_suites("unifusion evaluate", (*SUITES, *BENCHMARKS, *COMPARISONS), ABOUT)
        print(
            "\nunifusion shapes evaluate lists the suites of coloured shapes. evaluation/README.md tells more of each."
        )
        return
    for name in names:
        if name in OF_SHAPES and not (name in benchmarks and arguments.data):
            raise ConfigError(
                f'the suite "{name}" judges coloured shapes: write unifusion shapes evaluate --suite {name}'
                + (", or give --data and --of for a benchmark" if name in benchmarks else "")
            )
    if not on_data:
        run(names, SUITES, arguments)
        return
    if len(names) > 1:
        raise ConfigError(f"{', '.join(names)} are several suites, and {on_data[0]} runs alone: give one")
    run_benchmark(names[0], arguments)


def print_suites(command: str, names: Iterable[str], about: Mapping[str, About]) -> None:
    """One line for each suite."""
    rows = [(name, *about[name]) for name in names]
    header = ("suite", *About._fields)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"{command} --suite NAME, where NAME is one of these:\n")
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        "\nTimes are estimates for the embedded model on two idle cores, without a judge's; --samples N takes fewer samples."
    )


def run(names: list[str], suites: Mapping[str, str], arguments: argparse.Namespace) -> None:
    """Run suites by name. Raises ConfigError for one that does not exist."""
    from ..evaluation.runner import evaluate as run_suites
    from ..evaluation.subject import Subject

    unknown = [name for name in names if name not in suites]
    if unknown:
        raise ConfigError(f'there is no suite "{unknown[0]}"; choose from {", ".join(suites)}')
    subject = Subject(model=arguments.model, vlm=arguments.vlm, vae=arguments.vae, lora=arguments.lora)
    chosen = {name: suites[name] for name in names}
    samples = arguments.samples or SAMPLES
    run_suites(chosen, subject, samples=samples, seed=arguments.seed, out=arguments.out)
    if arguments.out is not None:
        print(f"\n{arguments.out}")


def run_benchmark(name: str, arguments: argparse.Namespace) -> None:
    """Draw, judge and score a benchmark. Raises ConfigError for options that are missing or do not go together."""
    from ..evaluation.benchmarks.report import write_reports
    from ..evaluation.benchmarks.run import RunConfig, processes
    from ..evaluation.benchmarks.run import run as run_steps
    from ..evaluation.subject import Subject

    for option in ("data", "out"):
        if getattr(arguments, option) is None:
            raise ConfigError(f"the suite {name} needs --{option}")
    benchmark = _find_benchmark(name, arguments)
    if arguments.images is not None and arguments.only == "draw":
        raise ConfigError("--images are drawn already, and --only draw draws: leave one of them out")
    seeds = range(arguments.seed, arguments.seed + (arguments.seeds or benchmark.seeds))
    sampling = {
        name: getattr(arguments, name)
        for name in ("size", "steps", "cfg", "schedule")
        if getattr(arguments, name) is not None
    }
    config = RunConfig(
        data=arguments.data,
        seeds=tuple(seeds),
        samples=arguments.samples,
        sampling=sampling,
        only=arguments.only or "",
        images=arguments.images,
    )
    state = processes()
    device = state.device
    subject = None
    if benchmark.draws and arguments.images is None:
        subject = Subject(
            model=arguments.model, vlm=arguments.vlm, vae=arguments.vae, lora=arguments.lora, device=device
        )
    judge = None if arguments.judge is None else lambda: _load_judge(arguments.judge, device)
    done = run_steps(benchmark, config, arguments.out, subject=subject, judge=judge)
    if done is not None:
        text, files = write_reports(
            benchmark,
            done,
            arguments.out,
            images=arguments.images,
            against=arguments.against,
            page=bool(arguments.page),
        )
        print(text)
        print("\n" + "\n".join(map(str, files)))
    if state.num_processes > 1:
        # the first process may still have been writing
        state.wait_for_everyone()
        state.destroy_process_group()


def _find_benchmark(name: str, arguments: argparse.Namespace) -> Benchmark:
    from ..checkpoints.generator_file import GeneratorFile
    from ..evaluation.benchmarks.ways import layers, verifi

    if name != "verifi" and (arguments.style or arguments.system or arguments.system_file):
        given = "style" if arguments.style else "system" if arguments.system else "system-file"
        raise ConfigError(
            f"--{given} is a way to rewrite that the suite verifi compares: write --suite verifi --of "
            f"{arguments.of or name}, or leave it out"
        )
    if name not in COMPARISONS:
        return _load(name, arguments)
    if arguments.of is None:
        raise ConfigError(f"the suite {name} needs --of, the benchmark to draw: {', '.join(BENCHMARKS)}")
    base = _load(arguments.of, arguments)
    if name == "verifi":
        return verifi(base, arguments.style, _system_text(arguments))
    return layers(base, GeneratorFile(arguments.model).config.vlm.taps)


def _load(name: str, arguments: argparse.Namespace) -> Benchmark:
    from ..evaluation.runner import load_benchmark

    options = {"language": arguments.language} if name == "gedit" else {}
    return load_benchmark(name, **options)


def _system_text(arguments: argparse.Namespace) -> str:
    """--system, or what --system-file holds. Raises ConfigError for a file that is empty or no text."""
    if arguments.system_file is None:
        return str(arguments.system).strip()
    try:
        text = Path(arguments.system_file).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--system-file {arguments.system_file} is no text in UTF-8: {error}") from error
    if not text:
        raise ConfigError(f"--system-file {arguments.system_file} is empty: write the system text into it")
    return text


def _load_judge(name: str, device: object) -> Judge:
    import torch

    from ..evaluation.benchmarks.judge import VLMJudge

    if name == EXACT:
        from ..shapes.evaluation.judges import ExactJudge

        return ExactJudge()
    if name == TINY:
        from ..shapes.evaluation.judges import CaptionJudge

        return CaptionJudge.load(str(device))
    if (Path(name) / "training.json").exists():
        # only VLMs of the demo have it
        from ..shapes.evaluation.judges import load_trained_judge

        return load_trained_judge(Path(name), str(device))
    on_gpu = torch.device(str(device)).type == "cuda"
    return VLMJudge.load(Path(name), dtype=torch.bfloat16 if on_gpu else torch.float32, device=str(device))
